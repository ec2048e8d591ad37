"""How much each setting matters to each objective, and how: first-order functional ANOVA of a random forest.

After Hutter, Hoos and Leyton-Brown 2014, "An Efficient Approach for Assessing Hyperparameter Importance": a
forest learns the objective from the trials; averaged over all other settings, drawn evenly from the space, it
gives a setting's curve, and the variance of that curve in terms of the whole variance is its importance. The
averages are taken over a fixed sample of the space, not over the trees' partitions.

Shapes: N points of the space, T trials, G values of a curve, F columns that the forest sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from sega_bench.study.objectives import Floats
from sega_bench.study.space import Params, Setting, Space

FEWEST = 8
"""Of fewer trials nothing is told."""

_SAMPLES, _VALUES, _TREES = 512, 9, 100


@dataclass(frozen=True)
class Curve:
    """What one parameter does to one objective.

    Args:
        parameter: its name.
        objective: the score's.
        importance: share of the objective's variance over the space that this parameter alone explains; the
            shares of all need not sum to 1, for settings act together.
        values: along its range, or its choices.
        means: the objective at each, averaged over all other parameters.
        is_log: whether the values are evenly spaced in their logarithm.
    """

    parameter: str
    objective: str
    importance: float
    values: tuple[Any, ...]
    means: tuple[float, ...]
    is_log: bool = False


def curves(
    space: Space, trials: Sequence[Params], scores_TK: Floats, objectives: Sequence[str]
) -> list[Curve]:
    """The curves of every parameter, of one objective after the other; none of fewer than :data:`FEWEST`.

    Args:
        space: what was searched.
        trials: the values of each.
        scores_TK: what each scored, NaN where that is not known.
        objectives: names of the scores.
    """
    if len(trials) < FEWEST:
        return []
    seen_TF = np.stack([_columns(space, params) for params in trials])
    sample = _sample(space)
    sample_NF = np.stack([_columns(space, params) for params in sample])
    found = []
    for k, objective in enumerate(objectives):
        known_T = np.isfinite(scores_TK[:, k])
        if known_T.sum() < FEWEST:
            continue
        forest = RandomForestRegressor(_TREES, random_state=0).fit(seen_TF[known_T], scores_TK[known_T, k])
        variance = float(forest.predict(sample_NF).var())
        for setting in space:
            for parameter in setting.parameters:
                values = _along(setting)
                means = [float(forest.predict(_at(space, sample, parameter, v)).mean()) for v in values]
                places = [_number(setting, value) for value in values]
                at_N = [_number(setting, params[parameter]) for params in sample]
                own = float(np.interp(at_N, places, means).var())  # straight between values
                share = own / variance if variance > 0 else 0.0
                found.append(Curve(parameter, objective, min(share, 1.0), values, tuple(means), setting.log))
    return found


def _at(space: Space, sample: Sequence[Params], parameter: str, value: Any) -> Floats:
    return np.stack([_columns(space, {**params, parameter: value}) for params in sample])


def _columns(space: Space, params: Params) -> Floats:
    """A point as the forest sees it, (F,): a number each, a choice as one of several."""
    columns: list[float] = []
    for setting in space:
        for parameter in setting.parameters:
            value = params[parameter]
            if setting.choices:
                columns += [float(value == choice) for choice in setting.choices]
            else:
                columns.append(_number(setting, value))
    return np.array(columns)


def _number(setting: Setting, value: Any) -> float:
    """Where a value lies along its setting."""
    if setting.choices:
        return float(setting.choices.index(value))
    return float(np.log(value) if setting.log else value)


def _sample(space: Space) -> list[Params]:
    """Points spread evenly over the space, always the same."""
    rng = np.random.default_rng(0)
    return [
        {name: _place(setting, rng.random()) for setting in space for name in setting.parameters}
        for _ in range(_SAMPLES)
    ]


def _along(setting: Setting) -> tuple[Any, ...]:
    """Values from one end to the other, each once; all choices."""
    if setting.choices:
        return setting.choices
    return tuple(dict.fromkeys(_place(setting, share) for share in np.linspace(0, 1, _VALUES).tolist()))


def _place(setting: Setting, share: float) -> Any:
    """The value that lies at a share of the way through a setting; all that it has are equally likely."""
    if setting.count is not None:
        return setting.value(min(int(share * setting.count), setting.count - 1))
    if not setting.log:
        return setting.low + share * (setting.high - setting.low)
    half = 0.5 if setting.is_whole else 0.0  # as much of the range for the first and the last as for others
    low, high = setting.low - half, setting.high + half
    value = low * (high / low) ** share
    return min(max(round(value), int(setting.low)), int(setting.high)) if setting.is_whole else value

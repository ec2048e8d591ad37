"""Parameter importance: first-order functional ANOVA of a random forest.

After Hutter, Hoos and Leyton-Brown 2014, "An Efficient Approach for Assessing Hyperparameter Importance". A
forest is fitted to the trials. Its prediction averaged over all other parameters is a parameter's curve
(partial dependence), and the curve's share of the variance over the space is the parameter's importance.
Unlike the paper, which integrates over the trees' partitions, the averages run over a fixed random sample of
the space.

Shapes: N sampled points, T trials, K objectives, F features of the forest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from sega_bench.study.objectives import Floats
from sega_bench.study.space import Params, Setting, Space

MIN_TRIALS = 8
"""Fewer trials with a score yield no curves."""

_SAMPLES, _VALUES, _TREES = 512, 9, 100


@dataclass(frozen=True)
class Curve:
    """One parameter's importance for, and effect on, one objective; stored in answers.json.

    Args:
        parameter: its name.
        objective: the score's column.
        importance: share of the objective's variance over the space that the parameter explains alone. The
            shares need not sum to 1, because parameters interact.
        values: positions along its range, or its choices.
        means: the objective at each, averaged over all other parameters.
        is_log: whether the values are evenly spaced in their logarithm.
    """

    parameter: str
    objective: str
    importance: float
    values: tuple[Any, ...]
    means: tuple[float, ...]
    is_log: bool = False


def importance_curves(
    space: Space, trials: Sequence[Params], scores_TK: Floats, objectives: Sequence[str]
) -> list[Curve]:
    """Compute the curves of every parameter, objective by objective.

    Args:
        space: the search space.
        trials: each trial's parameters.
        scores_TK: each trial's objectives, NaN where unknown.
        objectives: their names.
    """
    if len(trials) < MIN_TRIALS:
        return []
    features_TF = _encode_all(space, trials)
    sample = _sample(space)
    curves: list[Curve] = []
    for k, objective in enumerate(objectives):
        known_T = np.isfinite(scores_TK[:, k])
        if known_T.sum() >= MIN_TRIALS:
            forest = RandomForestRegressor(_TREES, random_state=0)  # the same trials give the same curves
            forest.fit(features_TF[known_T], scores_TK[known_T, k])
            curves += _curves(space, forest, sample, objective)
    return curves


def _curves(
    space: Space, forest: RandomForestRegressor, sample: Sequence[Params], objective: str
) -> Iterator[Curve]:
    variance = float(forest.predict(_encode_all(space, sample)).var())
    for setting in space:
        values = _curve_values(setting)
        positions = [_position(setting, value) for value in values]
        for parameter in setting.parameters:
            means = [_partial_mean(space, forest, sample, parameter, value) for value in values]
            sampled_N = [_position(setting, params[parameter]) for params in sample]
            own_variance = float(np.interp(sampled_N, positions, means).var())
            share = own_variance / variance if variance > 0 else 0.0
            # The interpolated curve can vary a little more than the forest does.
            yield Curve(parameter, objective, min(share, 1.0), values, tuple(means), setting.log)


def _partial_mean(
    space: Space, forest: RandomForestRegressor, sample: Sequence[Params], parameter: str, value: Any
) -> float:
    """Mean prediction over the sample with one parameter fixed.

    scikit-learn's ``partial_dependence`` fixes one feature, but choices are encoded in several.
    """
    fixed = [{**params, parameter: value} for params in sample]
    return float(forest.predict(_encode_all(space, fixed)).mean())


def _encode_all(space: Space, points: Sequence[Params]) -> Floats:
    """The forest's features, (N, F)."""
    return np.stack([_encode(space, params) for params in points])


def _encode(space: Space, params: Params) -> Floats:
    """A point's features, (F,): one number per numeric parameter, one-hot choices."""
    features: list[float] = []
    for setting in space:
        for parameter in setting.parameters:
            value = params[parameter]
            if setting.choices:
                features += [float(value == choice) for choice in setting.choices]
            else:
                features.append(_position(setting, value))
    return np.array(features)


def _position(setting: Setting, value: Any) -> float:
    """A value's coordinate: its logarithm in a logarithmic range, its index among choices."""
    if setting.choices:
        return float(setting.choices.index(value))
    return float(np.log(value) if setting.log else value)


def _sample(space: Space) -> list[Params]:
    """The fixed sample, uniform over the space's distributions."""
    rng = np.random.default_rng(0)
    return [
        {name: _quantile(setting, rng.random()) for setting in space for name in setting.parameters}
        for _ in range(_SAMPLES)
    ]


def _curve_values(setting: Setting) -> tuple[Any, ...]:
    """Distinct values from one end of the range to the other, or all choices."""
    if setting.choices:
        return setting.choices
    return tuple(dict.fromkeys(_quantile(setting, q) for q in np.linspace(0, 1, _VALUES).tolist()))


def _quantile(setting: Setting, q: float) -> Any:
    """The distribution's quantile at ``q`` in [0, 1]."""
    if setting.size is not None:
        return setting.value_at(min(int(q * setting.size), setting.size - 1))
    if not setting.log:
        return setting.low + q * (setting.high - setting.low)
    # Half a step more at each end, so that rounding leaves the first and last integer their full share.
    half = 0.5 if setting.is_integer else 0.0
    low, high = setting.low - half, setting.high + half
    value = low * (high / low) ** q
    return min(max(round(value), int(setting.low)), int(setting.high)) if setting.is_integer else value

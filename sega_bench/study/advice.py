"""Caveats on a study's answers as sentences, for the terminal and the report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from sega_bench.analysis.advice import RANGES
from sega_bench.analysis.labels import format_value
from sega_bench.errors import UserError
from sega_bench.study import space
from sega_bench.study.answers import Answers, Failure
from sega_bench.study.format import rounded
from sega_bench.study.space import Setting
from sega_bench.study.trials import Study, Trial

_NEAR = 0.01
"""Distance from an end, as a share of the range, up to which a value is at the edge."""

_LIMITED_BY_STEPS = ("edit_warmup_steps", "edit_cooldown_steps")
"""Settings that have no further effect beyond the last step."""

_RELEVANT = 0.05
"""Importance below which a parameter's best value may be at the edge by chance."""


def advice(answers: Answers) -> Iterator[str]:
    """Yield what a reader must know before using the answers, one sentence each."""
    yield from map(_describe_failure, answers.failures)
    if answers.best_overall is None:
        constraints = " and ".join(map(str, answers.study.settings.constraints))
        keeps = f" and keeps {constraints}" if constraints else ""
        yield f"No trial on all prompts x seeds has all its scores{keeps}: add trials."
        return
    yield from _edges(answers, answers.best_overall.trial)
    if answers.study.held_out is None:
        yield (
            "The best setting's scores are optimistically biased, because the search selected it by them: "
            "validate on held-out seeds, study.held_out.seeds=[100,101,102,103]."
        )


def _describe_failure(failure: Failure) -> str:
    subject = "The baseline" if failure.trial is None else f"Trial {failure.trial.number}"
    params = {} if failure.trial is None else failure.trial.params
    values = ", ".join(f"{name} {rounded(value)}" for name, value in params.items())
    consequence = "it is judged by the others" if failure.is_usable else "it is excluded"
    return (
        f"{subject}{f' ({values})' * bool(values)} failed on {failure.blocks} of {failure.resource} "
        f"prompts x seeds ({failure.error}): {consequence}; retry_failed=true tries again."
    )


def _edges(answers: Answers, best: Trial) -> Iterator[str]:
    """Relevant parameters whose best value is at an end of a range that could be extended."""
    importance: dict[str, float] = {}
    for curve in answers.curves:
        importance[curve.parameter] = max(curve.importance, importance.get(curve.parameter, 0.0))
    for setting in answers.study.settings.space:
        for name in setting.parameters if not setting.choices else ():
            if importance.get(name, 1.0) >= _RELEVANT:
                yield from _edge(answers.study, setting, name, best.params[name])


def _edge(study: Study, setting: Setting, name: str, value: float) -> Iterator[str]:
    for word, end, sign in (("low", setting.low, -1), ("high", setting.high, 1)):
        if _is_near(setting, value, end) and _is_extensible(study, setting, end, sign):
            yield (
                f"The best {name}, {format_value(value)}, is at the edge of its space: move "
                f"study.space.{setting.name}.{word} beyond {format_value(end)}, under another name=."
            )


def _is_near(setting: Setting, value: float, end: float) -> bool:
    if setting.log:
        return abs(math.log(value / end)) <= _NEAR * math.log(setting.high / setting.low)
    return abs(value - end) <= _NEAR * (setting.high - setting.low)


def _is_extensible(study: Study, setting: Setting, end: float, sign: int) -> bool:
    """Whether values beyond an end of the range are legal and have an effect."""
    if end in RANGES.get(setting.name, ()):
        return False
    if setting.name in _LIMITED_BY_STEPS and sign > 0:
        return all(end < cell.num_inference_steps for cell in study.baseline.cells)
    width = end if setting.log else setting.high - setting.low
    beyond = end + sign * (setting.multiple_of or _NEAR * width)
    wider = replace(setting, low=min(setting.low, beyond), high=max(setting.high, beyond))
    try:
        space.check((wider,), study.baseline)
    except UserError:
        return False
    return True

"""What a reader must know before using what a study found, as sentences: for the terminal, for the report."""

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
"""Of a range: what is so near its end is at the edge."""

_WITHIN_STEPS = ("edit_warmup_steps", "edit_cooldown_steps")
"""Beyond the last step nothing changes any more."""

_MATTERS = 0.05
"""Share of an objective's variance: a setting that explains less may end anywhere."""


def advice(found: Answers) -> Iterator[str]:
    """What a reader must know before using it, as sentences."""
    yield from map(_failed, found.failures)
    if found.of_all is None:
        bounds = " and ".join(map(str, found.study.settings.constraints))
        yield f"No trial on all prompts x seeds has its scores and keeps {bounds or 'them'}: add trials."
        return
    yield from _edges(found, found.of_all.trial)
    if found.study.held_out is None:
        yield (
            "Scores of what won are too good, for it won by chance too: hold seeds out, "
            "study.held_out.seeds=[100,101,102,103]."
        )


def _failed(failure: Failure) -> str:
    """A setting with failed cells, as a sentence."""
    of = "The baseline" if failure.trial is None else f"Trial {failure.trial.number}"
    values = {} if failure.trial is None else failure.trial.params
    told = ", ".join(f"{name} {rounded(value)}" for name, value in values.items())
    judged = "it is judged by the others" if failure.counts else "it counts for nothing"
    return (
        f"{of}{f' ({told})' * bool(told)} failed on {failure.blocks} of {failure.given} prompts x seeds "
        f"({failure.error}): {judged}; retry_failed=true tries again."
    )


def _edges(found: Answers, best: Trial) -> Iterator[str]:
    """Settings that matter and are best where their range ends, though they could go on."""
    importance: dict[str, float] = {}
    for curve in found.curves:
        importance[curve.parameter] = max(curve.importance, importance.get(curve.parameter, 0.0))
    for setting in found.study.settings.space:
        for name in setting.parameters if not setting.choices else ():
            value, matters = best.params[name], importance.get(name, 1.0) >= _MATTERS
            for word, end, sign in (("low", setting.low, -1), ("high", setting.high, 1)):
                if _is_near(setting, value, end) and matters and _goes_on(found.study, setting, end, sign):
                    yield (
                        f"The best {name}, {format_value(value)}, is at the edge of its space: move "
                        f"study.space.{setting.name}.{word} beyond {format_value(end)}, under another name=."
                    )


def _is_near(setting: Setting, value: float, end: float) -> bool:
    if setting.log:
        return abs(math.log(value / end)) <= _NEAR * math.log(setting.high / setting.low)
    return abs(value - end) <= _NEAR * (setting.high - setting.low)


def _goes_on(study: Study, setting: Setting, end: float, sign: int) -> bool:
    """Whether a range could go on beyond its end: the values there are legal, and another thing."""
    if end in RANGES.get(setting.name, ()):
        return False
    if setting.name in _WITHIN_STEPS and sign > 0:
        return all(end < cell.num_inference_steps for cell in study.baseline.cells)
    width = end if setting.log else setting.high - setting.low
    beyond = end + sign * (setting.unit or _NEAR * width)
    wider = replace(setting, low=min(setting.low, beyond), high=max(setting.high, beyond))
    try:
        space.check((wider,), study.baseline)
    except UserError:
        return False
    return True

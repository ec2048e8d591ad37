"""What a reader must know before using what a study found, as sentences: for the terminal, for the report."""

from __future__ import annotations

from collections.abc import Iterator

from sega_bench.study.answers import Answers, Failure
from sega_bench.study.trials import Trial
from sega_bench.study.words import rounded
from sega_bench.views.advice import RANGES
from sega_bench.views.words import short

_NEAR = 0.01
"""Of a range: what is so near its end is at the edge."""

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
            for word, end in (("low", setting.low), ("high", setting.high)):
                is_near = abs(best.params[name] - end) <= _NEAR * (setting.high - setting.low)
                matters = importance.get(name, 1.0) >= _MATTERS
                if is_near and matters and end not in RANGES.get(setting.name, ()):
                    yield (
                        f"The best {name}, {short(best.params[name])}, is at the edge of its space: move "
                        f"study.space.{setting.name}.{word} beyond {short(end)}, under another name=."
                    )

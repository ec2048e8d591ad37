"""The verdict as sentences, which every view shares."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sega_bench.analysis.best import Judged
from sega_bench.analysis.groups import ALL
from sega_bench.analysis.labels import format_value
from sega_bench.analysis.verdict import row_means
from sega_bench.stats.resampling import FEWEST_BLOCKS

_MOST_AS_GOOD = 3


def verdict_sentence(judged: Judged, axes: Sequence[str], cost_name: str, concepts: str = ALL) -> str:
    """Which setting to use and why, or why none; one sentence.

    Args:
        judged: the verdict with its evidence.
        axes: the sweep's.
        cost_name: what the cost is called.
        concepts: the concept set as JSON, or "all".
    """
    verdict, evidence = judged.verdict, judged.evidence
    if not np.isfinite(evidence.headline_MN).any():
        return "No verdict: no edit that had something to do has been scored."
    if verdict.setting is None:
        return _nothing_works(judged, concepts)
    subject = setting_label(judged.matrix.settings[verdict.setting], axes)
    if len(judged.matrix) == 1:
        return f"{subject}: {_reached(judged)}; it is the only setting tried."
    cost = _cost(judged, verdict.setting, cost_name)
    least = f" and changes least ({cost})" if cost else ""
    tail = _as_good(judged, axes)
    return f"{subject} {_reached(judged)}, {_compared(judged)},{least}{tail}.".replace(",.", ".")


def sureness_sentences(judged: Judged) -> list[str]:
    """How sure the verdict is: how often resamples choose it, and what it promises on new seeds."""
    verdict, evidence = judged.verdict, judged.evidence
    if verdict.setting is None or len(judged.matrix) == 1:
        return []
    if not verdict.is_tested:
        return [
            "One seed cannot tell settings from chance: the point estimates decided. Add seeds, e.g. seeds=4."
        ]
    own, together = float(verdict.chosen_share[verdict.setting]), verdict.sureness
    sentences = [f"Chosen in {own:.0%} of resamples; it or a setting as good in {together:.0%}."]
    if math.isnan(verdict.expected):
        sentences.append(
            f"With fewer than {FEWEST_BLOCKS} seeds, what it promises on new seeds cannot be estimated."
        )
    else:
        name = "gain" if evidence.success_MN is None else "success"
        sentences.append(
            f"Expected {name} on new seeds {verdict.expected:.3g} (chosen on {verdict.reached:.3g})."
        )
    return sentences


def setting_label(setting: Mapping[str, Any], axes: Sequence[str]) -> str:
    """A setting in words, without the prefix that all edit settings share."""
    parts = [f"{name.removeprefix('edit_').replace('_', ' ')} {format_value(setting[name])}" for name in axes]
    return ", ".join(parts) or "The setting"


def _reached(judged: Judged) -> str:
    """How well the verdict's setting does, with its trials."""
    verdict, evidence = judged.verdict, judged.evidence
    assert verdict.setting is not None
    if evidence.success_MN is None:
        return f"gains {verdict.reached:.3g}"
    success_N = evidence.success_MN[verdict.setting]
    known_N = success_N[np.isfinite(success_N)]
    if np.isin(known_N, (0.0, 1.0)).all():
        return f"works in {int(known_N.sum())} of {len(known_N)}"
    return f"succeeds by {known_N.mean():.3g} in {len(known_N)} images"


def _compared(judged: Judged) -> str:
    verdict = judged.verdict
    assert verdict.best_tried is not None
    best = row_means(judged.evidence.headline_MN)[verdict.best_tried]
    if verdict.reached >= best - 1e-9:
        return "as well as anything tried"
    return f"within the margin of the best tried ({best:.3g})"


def _cost(judged: Judged, setting: int, cost_name: str) -> str:
    cost_MN = judged.evidence.cost_MN
    if cost_MN is None or not np.isfinite(cost_MN[setting]).any():
        return ""
    return f"{cost_name} {row_means(cost_MN)[setting]:.3g}"


def _as_good(judged: Judged, axes: Sequence[str]) -> str:
    """The settings that are as good, cheapest first."""
    cost_MN = judged.evidence.cost_MN
    numbers = np.flatnonzero(judged.verdict.as_good)
    if not len(numbers) or cost_MN is None:
        return ""
    ordered = numbers[np.argsort(row_means(cost_MN[numbers]), kind="stable")]
    labels = [
        " / ".join(format_value(judged.matrix.settings[m][name]) for name in axes)
        for m in ordered[:_MOST_AS_GOOD]
    ]
    more = f" and {len(ordered) - _MOST_AS_GOOD} more" if len(ordered) > _MOST_AS_GOOD else ""
    return f"; as good: {', '.join(labels)}{more}"


def _nothing_works(judged: Judged, concepts: str) -> str:
    gain = float(np.nanmax(row_means(judged.evidence.gain_MN), initial=-np.inf))
    texts = "" if concepts == ALL else f" of {' + '.join(json.loads(concepts))}"
    verb = "removes" if judged.is_removal else "adds"
    if not judged.verdict.arrives.any():
        best = f" (largest gain {gain:.3g})" if np.isfinite(gain) else ""
        return f"No setting works: nothing tried {verb} the concept{texts}{best}."
    return "No setting works: the best one tried cannot be told from no effect; add seeds."


def reasons(judged: Judged) -> Iterator[str]:
    """Advice for a sweep in which nothing works."""
    is_scored = np.isfinite(judged.evidence.headline_MN).any()
    if is_scored and judged.verdict.setting is None and not judged.verdict.arrives.any():
        verb = "remove" if judged.is_removal else "add"
        yield (
            f"No strength tried could {verb} the concept. The model may not know these words, or may not "
            "draw such things: look at the sheets, or try other words."
        )

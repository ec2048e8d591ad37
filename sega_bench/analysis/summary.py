"""The sweep as tables: one row for each cell, one row for each setting. Nothing else in the project reduces.

A score that was not taken is NaN: it is skipped and counted, and the mean of nothing is NaN.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sega_bench.analysis.best import StudyAnswers, find_row, recommended_setting
from sega_bench.analysis.comparable import comparable
from sega_bench.analysis.groups import (
    COUNTS,
    ENDS,
    STATISTICS,
    UNITS,
    Groups,
    anchored_means,
    concept_sets,
    describe_group,
    pair_means,
    paired_differences,
)
from sega_bench.stats.correlation import spearman
from sega_bench.stats.pareto import area_under_front, front, knee
from sega_bench.store import EXECUTION_COLUMNS, OUTCOME_COLUMNS, SETTING_COLUMNS

GAIN, COST = "clip_concept_delta", "lpips"
"""What a trade-off is between: how much of the concept came in, how far the image moved."""

SUMMARISED = (GAIN, "clip_directional", "clip_image", COST, "ssim", "changed_fraction")
"""The scores that every summary reduces; others only where they were taken, see :func:`reduced`."""

TRENDS = (GAIN, "changed_fraction", COST)
"""The scores whose trend along an axis is told."""

PAIRED = TRENDS
"""The scores in which settings are compared with the best one in pairs."""


def summarised_scores(frame: pd.DataFrame) -> list[str]:
    """The scores that a summary of this table reduces: :data:`SUMMARISED`, then all others that were taken.

    One of each concept (``clip_concept_1``) is left out, the concepts of other rows are others; and so is one
    that is no number.
    """
    others = [name for name in frame.columns if _may_be_reduced(frame, name)]
    return [*SUMMARISED, *(name for name in others if frame[name].notna().any())]


def _may_be_reduced(frame: pd.DataFrame, name: str) -> bool:
    is_other = name not in _NO_OTHER_SCORE and not re.search(r"_\d+$", name)
    return is_other and frame[name].dtype == "float64"


_NO_OTHER_SCORE = frozenset((*SETTING_COLUMNS, *OUTCOME_COLUMNS, *EXECUTION_COLUMNS, *SUMMARISED))


def summarise(frame: pd.DataFrame, axes: Sequence[str], answers: StudyAnswers = None) -> pd.DataFrame:
    """One row for each setting over all concept sets (``concepts`` is "all"), then for each concept set.

    Args:
        frame: as :func:`load` gives it.
        axes: the columns that vary; each combination of their values is a setting. None: one setting.
        answers: what a study found (:meth:`sega_bench.store.Store.answers`); None of a sweep.

    Returns:
        The axes; ``concepts``; ``n`` done cells, ``n_not_scored`` of them without one of :data:`SUMMARISED`
        that the sweep takes, ``n_failed``; of each score in :func:`reduced` ``_mean``, ``_sd``, ``_low`` and
        ``_high`` (:func:`sega_bench.stats.intervals.interval` over prompts, and the seeds of each), ``_n``.
        Scores that references have too, such as ``nsfw``, have theirs as ``nsfw_unedited``.

        ``<score>_gap`` of each of :data:`PAIRED`: how far the setting lies above the best one, over the pairs
        of the same prompt, seed and concepts; ``_gap_low`` and ``_gap_high``, the interval of that. What
        settings have in common, such as a face that is hard to edit, is not in it.

        ``area``: what the setting alone dominates of gain (``clip_concept_delta``) against preservation
        (1 - ``lpips``), from no gain at nothing preserved
        (:func:`sega_bench.stats.pareto.area_under_front`). ``front_area``: what all settings of its
        concept set dominate together, the area under their Pareto front. ``pareto``: no other setting of the
        concept set has more gain at no more cost, or as much at less. ``best``: the one setting of a concept
        set that is the knee of that front (:func:`sega_bench.stats.pareto.knee`), which depends on the
        range that was tried; of a study the one that it found best by its own objectives, if any. A concept
        set without both scores has no area and no marks. A setting of which cells failed, or are still to
        come, is judged by its pairs with one that has them (:func:`sega_bench.analysis.groups.anchored`).
    """
    edited = _with_unedited(frame, axes)
    names = summarised_scores(edited)
    scored = [name for name in SUMMARISED if edited[name].notna().any()] or list(SUMMARISED)
    rows: list[dict[str, Any]] = []
    for concepts, part in concept_sets(edited):
        groups = Groups(part, axes, names)
        described_ones = [values | describe_group(group, concepts, scored) for values, group in groups]
        settings = _front(described_ones, anchored_means(groups, GAIN), anchored_means(groups, COST))
        if answers is not None:
            found = find_row(settings, recommended_setting(answers, concepts))
            settings = [row | {"best": i == found} for i, row in enumerate(settings)]
        best = next((groups.rows(i) for i, row in enumerate(settings) if row["best"]), None)
        centre = {} if best is None else {name: pair_means(best, name) for name in PAIRED}
        rows += [
            row | paired_differences(group, centre, "gap")
            for row, (_, group) in zip(settings, groups, strict=True)
        ]
    statistics = [f"{name}_{statistic}" for name in names for statistic in STATISTICS]
    gaps = [f"{name}_gap{end}" for name in PAIRED for end in ENDS]
    columns = [*axes, "concepts", *COUNTS, *statistics, *gaps, "area", "front_area", "pareto", "best"]
    summary = pd.DataFrame(rows, columns=columns)
    summary = summary.astype({axis: frame[axis].dtype for axis in axes} | {"pareto": bool, "best": bool})
    summary.attrs = frame.attrs
    return summary


def curve(frame: pd.DataFrame, axis: str, axes: Sequence[str]) -> pd.DataFrame:
    """One row for each value of an axis over all concept sets, then for each: how the scores go with it.

    Args:
        frame: as :func:`load` gives it.
        axis: one of ``axes``.
        axes: the sweep's; only rows that differ in this one alone are compared
            (:func:`sega_bench.analysis.comparable.comparable`).

    Returns:
        The axis, ``concepts``, counts and statistics as in :func:`summarise`; ``<score>_within`` of each
        score in :func:`reduced`: how far the value lies above the mean over the whole axis, of the same
        prompt, seed and concepts; ``_within_low`` and ``_within_high``, the interval of that.
    """
    edited = comparable(_with_unedited(frame, axes), axis, axes)
    names = summarised_scores(edited)
    rows: list[dict[str, Any]] = []
    for concepts, part in concept_sets(edited):
        groups = Groups(part, [axis], names)
        centre = {name: pair_means(groups.whole, name) for name in names}
        for values, group in groups:
            rows.append(
                values | describe_group(group, concepts, names) | paired_differences(group, centre, "within")
            )
    statistics = [f"{name}_{statistic}" for name in names for statistic in STATISTICS]
    within = [f"{name}_within{end}" for name in names for end in ENDS]
    table = pd.DataFrame(rows, columns=[axis, "concepts", *COUNTS, *statistics, *within])
    table = table.astype({axis: frame[axis].dtype})
    table.attrs = frame.attrs
    return table


def interval_around(table: pd.DataFrame, score: str, compared: str) -> tuple[pd.Series[Any], pd.Series[Any]]:
    """The ends of a comparison's interval about the mean of the score: what a plot draws.

    Args:
        table: as :func:`summarise` or :func:`curve` gives it.
        score: one that is compared in it.
        compared: ``gap`` or ``within``.
    """
    offset = table[f"{score}_mean"] - table[f"{score}_{compared}"]
    low, high = (offset + table[f"{score}_{compared}{end}"] for end in ENDS[1:])
    return low, high


def _with_unedited(frame: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """The edited rows, as far as they are reduced, with the scores that their references have too."""
    scores = [*SUMMARISED, *(name for name in frame.columns if _may_be_reduced(frame, name))]
    needed = frame[list(dict.fromkeys([*axes, *UNITS, "method", "status", *scores]))]
    edited = ~frame["is_reference"]
    of = frame["reference_key"][edited]
    references = needed[~edited].set_index(frame["key"][~edited])
    unedited = {
        f"{name}_unedited": of.map(references[name]).astype("float64")
        for name in summarised_scores(references)
        if name not in SUMMARISED
    }
    return needed[edited].assign(**unedited)


def _front(
    settings: list[dict[str, Any]], gain: NDArray[np.float64], cost: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """The rows of one concept set with their areas, ``pareto`` and ``best``, by these means of each."""
    losses = np.column_stack([-gain, cost])
    on_front, best = front(losses), knee(losses)
    total = area_under_front(gain, cost)
    return [
        row
        | {"area": area_under_front(gain[i : i + 1], cost[i : i + 1]), "front_area": total}
        | {"pareto": bool(on_front[i]), "best": i == best}
        for i, row in enumerate(settings)
    ]


def areas(summary: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The area under the front of the settings that share a value of one axis, for each concept set.

    It compares the values (methods, schedulers) over whatever else the sweep varies.

    Args:
        summary: as :func:`summarise` gives it.
        axis: one of its axes.

    Returns:
        ``concepts``, the axis, ``settings`` (how many have both scores), ``area``.
    """
    rows = []
    for (concepts, value), part in summary.groupby(["concepts", axis], sort=False, dropna=False):
        gain, cost = part[f"{GAIN}_mean"].to_numpy(), part[f"{COST}_mean"].to_numpy()
        scored = int(np.isfinite(gain + cost).sum())
        area = area_under_front(gain, cost)
        rows.append({"concepts": concepts, axis: value, "settings": scored, "area": area})
    return pd.DataFrame(rows, columns=["concepts", axis, "settings", "area"])


def trends(frame: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Spearman correlation of each numeric axis' values with the mean score of the edited cells at each.

    Only cells that differ in the axis alone are compared
    (:func:`~sega_bench.analysis.comparable.comparable`).
    A value that lacks some cells is judged by its pairs (:func:`~sega_bench.analysis.groups.anchored`).

    Returns:
        One row an axis: ``axis``, ``values`` (how many different), ``peak`` (that with most mean gain), and
        :data:`TRENDS`, NaN where fewer than three values were scored (two points are always in line) or where
        the score never changes.
    """
    needed = list(dict.fromkeys([*axes, *UNITS, "method", "status", *TRENDS]))
    edited = frame.loc[~frame["is_reference"], needed]
    rows = []
    for axis in axes:
        if pd.api.types.is_numeric_dtype(frame[axis]) and not pd.api.types.is_bool_dtype(frame[axis]):
            like = comparable(edited, axis, axes)
            groups = Groups(like[like[axis].notna()], [axis], TRENDS)
            values = [point[axis] for point, _ in groups]
            means = pd.DataFrame({name: anchored_means(groups, name) for name in TRENDS}, values).sort_index()
            ranked = means[GAIN].dropna().sort_values(kind="stable")
            peak = ranked.index[-1] if len(ranked) else float("nan")
            places = means.index.to_numpy(dtype=np.float64)
            correlations = {name: spearman(places, means[name].to_numpy()) for name in TRENDS}
            rows.append({"axis": axis, "values": len(means), "peak": peak} | correlations)
    return pd.DataFrame(rows, columns=["axis", "values", "peak", *TRENDS])

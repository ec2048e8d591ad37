"""The sweep as tables: one row for each cell, one row for each setting. Nothing else in the project reduces.

A score that was not taken is NaN: it is skipped and counted, and the mean of nothing is NaN.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sega_bench.proportion import wilson
from sega_bench.store import EXECUTION_COLUMNS, OUTCOME_COLUMNS, SETTING_COLUMNS
from sega_bench.views.designs import comparable
from sega_bench.views.frames import digest, load, shown, to_frame, write_results
from sega_bench.views.statistics import (
    Estimate,
    area_under_front,
    estimate,
    knee,
    pareto,
    ratio,
    spearman,
)

__all__ = [
    "ALL",
    "COST",
    "GAIN",
    "PAIRED",
    "SUMMARISED",
    "TRENDS",
    "areas",
    "around",
    "at_best",
    "correlations",
    "curve",
    "digest",
    "load",
    "mean_of",
    "ratio_of",
    "reduced",
    "share_of",
    "shown",
    "summarise",
    "to_frame",
    "trends",
    "write_results",
]

GAIN, COST = "clip_concept_delta", "lpips"
"""What a trade-off is between: how much of the concept came in, how far the image moved."""

SUMMARISED = (GAIN, "clip_directional", "clip_image", COST, "ssim", "changed_fraction")
"""The scores that every summary reduces; others only where they were taken, see :func:`reduced`."""

TRENDS = (GAIN, "changed_fraction", COST)
"""The scores whose trend along an axis is told."""

PAIRED = TRENDS
"""The scores in which settings are compared with the best one in pairs."""

ALL = "all"
"""``concepts`` of a summary's pooled rows; in the others it is a JSON list, and can't be taken for this."""

_STATISTICS = tuple(field.name for field in fields(Estimate))
_COUNTS = ("n", "n_not_scored", "n_failed")
_ENDS = ("", "_low", "_high")
_Columns = dict[str, NDArray[Any]]


def reduced(frame: pd.DataFrame) -> list[str]:
    """The scores that a summary of this table reduces: :data:`SUMMARISED`, then all others that were taken.

    One of each concept (``clip_concept_1``) is left out, the concepts of other rows are others; and so is one
    that is no number.
    """
    known = {*SETTING_COLUMNS, *OUTCOME_COLUMNS, *EXECUTION_COLUMNS, *SUMMARISED}
    others = [name for name in frame.columns if name not in known and not re.search(r"_\d+$", name)]
    taken = [name for name in others if frame[name].dtype == "float64" and frame[name].notna().any()]
    return [*SUMMARISED, *taken]


def summarise(frame: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """One row for each setting over all concept sets (``concepts`` is "all"), then for each concept set.

    Args:
        frame: as :func:`load` gives it.
        axes: the columns that vary; each combination of their values is a setting. None: one setting.

    Returns:
        The axes; ``concepts``; ``n`` done cells, ``n_not_scored`` of them without one of :data:`SUMMARISED`
        that the sweep takes, ``n_failed``; of each score in :func:`reduced` ``_mean``, ``_sd``, ``_low`` and
        ``_high`` (:func:`sega_bench.views.statistics.interval` over prompts, and the seeds of each), ``_n``.
        Scores that references have too, such as ``nsfw``, have theirs as ``nsfw_unedited``.

        ``<score>_gap`` of each of :data:`PAIRED`: how far the setting lies above the best one, over the pairs
        of the same prompt, seed and concepts; ``_gap_low`` and ``_gap_high``, the interval of that. What
        settings have in common, such as a face that is hard to edit, is not in it.

        ``area``: what the setting alone dominates of gain (``clip_concept_delta``) against preservation
        (1 - ``lpips``), from no gain at nothing preserved
        (:func:`sega_bench.views.statistics.area_under_front`). ``front_area``: what all settings of its
        concept set dominate together, the area under their Pareto front. ``pareto``: no other setting of the
        concept set has more gain at no more cost, or as much at less. ``best``: the one setting of a concept
        set that is the knee of that front (:func:`sega_bench.views.statistics.knee`); it depends on the range
        that was tried. A concept set without both scores has no area and no marks.
    """
    edited = _with_unedited(frame)
    names = reduced(edited)
    scored = [name for name in SUMMARISED if edited[name].notna().any()] or list(SUMMARISED)
    parts = []
    for concepts, part in _sets(edited):
        groups = list(_groups(part, axes, names))
        settings = _front([_setting(rows, concepts, scored) | values for values, rows in groups])
        best = next((rows for row, (_, rows) in zip(settings, groups, strict=True) if row["best"]), None)
        centre = {} if best is None else {name: _of_units(best, name) for name in PAIRED}
        parts.append(
            [row | _apart(rows, centre, "gap") for row, (_, rows) in zip(settings, groups, strict=True)]
        )
    statistics = [f"{name}_{statistic}" for name in names for statistic in _STATISTICS]
    gaps = [f"{name}_gap{end}" for name in PAIRED for end in _ENDS]
    columns = [*axes, "concepts", *_COUNTS, *statistics, *gaps, "area", "front_area", "pareto", "best"]
    summary = pd.DataFrame([row for part in parts for row in part], columns=columns)
    summary = summary.astype({axis: frame[axis].dtype for axis in axes} | {"pareto": bool, "best": bool})
    summary.attrs = frame.attrs
    return summary


def curve(frame: pd.DataFrame, axis: str, axes: Sequence[str]) -> pd.DataFrame:
    """One row for each value of an axis over all concept sets, then for each: how the scores go with it.

    Args:
        frame: as :func:`load` gives it.
        axis: one of ``axes``.
        axes: the sweep's; only rows that differ in this one alone are compared
            (:func:`sega_bench.views.designs.comparable`).

    Returns:
        The axis, ``concepts``, counts and statistics as in :func:`summarise`; ``<score>_within`` of each
        score in :func:`reduced`: how far the value lies above the mean over the whole axis, of the same
        prompt, seed and concepts; ``_within_low`` and ``_within_high``, the interval of that.
    """
    edited = comparable(_with_unedited(frame), axis, axes)
    names = reduced(edited)
    rows: list[dict[str, Any]] = []
    for concepts, part in _sets(edited):
        whole = {name: part[name].to_numpy() for name in names} | _units(part)
        centre = {name: _of_units(whole, name) for name in names}
        for values, group in _groups(part, [axis], names):
            rows.append(values | _setting(group, concepts, names) | _apart(group, centre, "within"))
    statistics = [f"{name}_{statistic}" for name in names for statistic in _STATISTICS]
    within = [f"{name}_within{end}" for name in names for end in _ENDS]
    table = pd.DataFrame(rows, columns=[axis, "concepts", *_COUNTS, *statistics, *within])
    table = table.astype({axis: frame[axis].dtype})
    table.attrs = frame.attrs
    return table


def around(table: pd.DataFrame, score: str, compared: str) -> tuple[pd.Series[Any], pd.Series[Any]]:
    """The ends of a comparison's interval about the mean of the score: what a plot draws.

    Args:
        table: as :func:`summarise` or :func:`curve` gives it.
        score: one that is compared in it.
        compared: ``gap`` or ``within``.
    """
    offset = table[f"{score}_mean"] - table[f"{score}_{compared}"]
    low, high = (offset + table[f"{score}_{compared}{end}"] for end in _ENDS[1:])
    return low, high


def _sets(edited: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """All edited rows, then those of each concept set."""
    yield ALL, edited
    for concepts, part in edited.groupby("concepts", sort=False):
        yield str(concepts), part


def _with_unedited(frame: pd.DataFrame) -> pd.DataFrame:
    """The edited rows, with the scores that their references have too."""
    references = frame[frame["is_reference"]].set_index("key")
    edited = frame[~frame["is_reference"]]
    unedited = {
        f"{name}_unedited": edited["reference_key"].map(references[name]).astype("float64")
        for name in reduced(references.reset_index())
        if name not in SUMMARISED
    }
    return edited.assign(**unedited)


def _groups(
    frame: pd.DataFrame, axes: Sequence[str], scores: Sequence[str]
) -> Iterator[tuple[dict[str, Any], _Columns]]:
    """Each combination of the axes' values, null included, with its rows; in order of first appearance."""
    if frame.empty:
        return
    columns = {name: frame[name].to_numpy() for name in ("status", *scores)} | _units(frame)
    if not axes:
        yield {}, columns
        return
    numbers = frame.groupby(list(axes), sort=False, dropna=False).ngroup().to_numpy()
    order = np.argsort(numbers, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    values = frame[list(axes)].iloc[[group[0] for group in groups]].to_dict("records")
    for value, group in zip(values, groups, strict=True):
        setting = {str(axis): point for axis, point in value.items()}
        yield setting, {name: column[group] for name, column in columns.items()}


def _units(frame: pd.DataFrame) -> _Columns:
    """What is drawn at random in a bootstrap: the prompt of each row, and its seed of that prompt.

    And what makes a pair of rows of two settings: that, with the concepts.
    """
    alike = {"_prompt": ["prompt"], "_draw": ["prompt", "seed"], "_pair": ["prompt", "seed", "concepts"]}
    return {name: frame.groupby(by, sort=False).ngroup().to_numpy() for name, by in alike.items()}


def _of_units(rows: _Columns, name: str) -> NDArray[np.float64]:
    """The mean score of each pair's rows; NaN where there is none."""
    taken = ~np.isnan(rows[name])
    pairs = rows["_pair"][taken]
    counts = np.bincount(pairs, minlength=1)
    with np.errstate(invalid="ignore"):
        means: NDArray[np.float64] = np.bincount(pairs, rows[name][taken], minlength=1) / counts
    return means


def _apart(rows: _Columns, centre: Mapping[str, NDArray[np.float64]], label: str) -> dict[str, Any]:
    """How far a setting's scores lie above their pairs' centres, with the interval."""
    found: dict[str, Any] = {}
    for name, means in centre.items():
        of_pair = np.append(means, np.full(max(0, rows["_pair"].max() + 1 - len(means)), np.nan))
        told = estimate(rows[name] - of_pair[rows["_pair"]], rows["_draw"], rows["_prompt"])
        ends = (told.mean, told.low, told.high)
        found |= {f"{name}_{label}{end}": value for end, value in zip(_ENDS, ends, strict=True)}
    return found


def _setting(rows: _Columns, concepts: str, scored: list[str]) -> dict[str, Any]:
    done = rows["status"] == "done"
    unscored = np.any([np.isnan(rows[name][done]) for name in scored], axis=0)
    row: dict[str, Any] = {"concepts": concepts, "n": int(done.sum()), "n_not_scored": int(unscored.sum())}
    row["n_failed"] = int((rows["status"] == "failed").sum())
    for name in (name for name in rows if name != "status" and not name.startswith("_")):
        found = estimate(rows[name][done], rows["_draw"][done], rows["_prompt"][done])
        row |= {f"{name}_{label}": value for label, value in zip(_STATISTICS, astuple(found), strict=True)}
    return row


def _front(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one concept set with their areas, ``pareto`` and ``best``."""
    gain = np.array([row[f"{GAIN}_mean"] for row in settings], dtype=np.float64)
    cost = np.array([row[f"{COST}_mean"] for row in settings], dtype=np.float64)
    front = pareto(gain, cost)
    best, total = knee(gain, cost, front), area_under_front(gain, cost)
    return [
        row
        | {"area": area_under_front(gain[i : i + 1], cost[i : i + 1]), "front_area": total}
        | {"pareto": bool(front[i]), "best": i == best}
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

    Only cells that differ in the axis alone are compared (:func:`sega_bench.views.designs.comparable`).

    Returns:
        One row an axis: ``axis``, ``values`` (how many different), ``peak`` (that with most mean gain), and
        :data:`TRENDS`, NaN where fewer than three values were scored (two points are always in line) or where
        the score never changes.
    """
    edited = frame[~frame["is_reference"]]
    rows = []
    for axis in axes:
        if pd.api.types.is_numeric_dtype(frame[axis]) and not pd.api.types.is_bool_dtype(frame[axis]):
            means = comparable(edited, axis, axes).groupby(axis)[list(TRENDS)].mean()
            ranked = means[GAIN].dropna().sort_values(kind="stable")
            peak = ranked.index[-1] if len(ranked) else float("nan")
            places = means.index.to_numpy(dtype=np.float64)
            correlations = {name: spearman(places, means[name].to_numpy()) for name in TRENDS}
            rows.append({"axis": axis, "values": len(means), "peak": peak} | correlations)
    return pd.DataFrame(rows, columns=["axis", "values", "peak", *TRENDS])


def mean_of(frame: pd.DataFrame, score: str) -> Estimate:
    """The mean of a score over any rows of :func:`load`'s table, its interval over prompts and seeds."""
    units = _units(frame)
    return estimate(_floats(frame[score]), units["_draw"], units["_prompt"])


def ratio_of(frame: pd.DataFrame, over: str, under: str) -> Estimate:
    """One score in terms of another of the same rows, the interval over prompts and seeds."""
    units = _units(frame)
    return ratio(_floats(frame[over]), _floats(frame[under]), units["_draw"], units["_prompt"])


def share_of(frame: pd.DataFrame, score: str) -> Estimate:
    """The mean of a score between 0 and 1, with Wilson's interval, which is one where all succeed too.

    Rows of one prompt and seed are not independent of each other, so there are as many trials as of those.
    """
    taken = frame[frame[score].notna()]
    mean, trials = float(taken[score].mean()), len(np.unique(_units(taken)["_draw"]))
    return Estimate(mean, float("nan"), *wilson(mean * trials, trials), len(taken))


def correlations(frame: pd.DataFrame, axis: str, score: str, by: Sequence[str]) -> pd.DataFrame:
    """Spearman correlation of a score with an axis, one for each image that is alike in ``by``.

    Returns:
        One row for each combination of ``by`` that has three values or more: ``by`` and ``correlation``.
    """
    rows = []
    for values, curve in frame.groupby(list(by), sort=False, dropna=False):
        found = spearman(_floats(curve[axis]), _floats(curve[score]))
        if np.isfinite(found):
            rows.append(dict(zip(by, values, strict=True)) | {"correlation": found})
    return pd.DataFrame(rows, columns=[*by, "correlation"])


def at_best(edited: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """The rows of the setting that is the knee of the front, concept sets pooled; none if there is none."""
    if not axes:
        return edited
    numbers = edited.groupby(list(axes), sort=False, dropna=False).ngroup()
    means = edited[[GAIN, COST]].groupby(numbers).mean()
    gain, cost = _floats(means[GAIN]), _floats(means[COST])
    best = knee(gain, cost, pareto(gain, cost))
    return edited.iloc[:0] if best is None else edited[numbers == means.index[best]]


def _floats(column: pd.Series[Any]) -> NDArray[np.float64]:
    return column.to_numpy(dtype=np.float64, na_value=np.nan)

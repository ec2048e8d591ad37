"""The sweep as tables: one row for each cell, one row for each setting. Nothing else in the project reduces.

A score that was not taken is NaN: it is skipped and counted, and the mean of nothing is NaN.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sega_bench.store import EXECUTION_COLUMNS, OUTCOME_COLUMNS, SETTING_COLUMNS
from sega_bench.views.frames import digest, load, shown, to_frame, write_results
from sega_bench.views.statistics import (
    Estimate,
    area_under_front,
    estimate,
    knee,
    pareto,
    ratio,
    spearman,
    wilson,
)

__all__ = [
    "ALL",
    "COST",
    "GAIN",
    "SUMMARISED",
    "TRENDS",
    "areas",
    "at_best",
    "correlations",
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

ALL = "all"
"""``concepts`` of a summary's pooled rows; in the others it is a JSON list, and can't be taken for this."""

_STATISTICS = tuple(field.name for field in fields(Estimate))
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
    parts = [_front([_setting(rows, ALL, scored) | values for values, rows in _groups(edited, axes, names)])]
    for concepts, part in edited.groupby("concepts", sort=False):
        settings = [
            _setting(rows, str(concepts), scored) | values for values, rows in _groups(part, axes, names)
        ]
        parts.append(_front(settings))
    statistics = [f"{name}_{statistic}" for name in names for statistic in _STATISTICS]
    counts = ["n", "n_not_scored", "n_failed"]
    columns = [*axes, "concepts", *counts, *statistics, "area", "front_area", "pareto", "best"]
    summary = pd.DataFrame([row for part in parts for row in part], columns=columns)
    summary = summary.astype({axis: frame[axis].dtype for axis in axes})
    summary.attrs = frame.attrs
    return summary


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
    """What is drawn at random in a bootstrap: the prompt of each row, and its seed of that prompt."""
    drawn = {"_prompt": ["prompt"], "_draw": ["prompt", "seed"]}
    return {name: frame.groupby(by, sort=False).ngroup().to_numpy() for name, by in drawn.items()}


def _setting(rows: _Columns, concepts: str, scored: list[str]) -> dict[str, Any]:
    done = rows["status"] == "done"
    unscored = np.any([np.isnan(rows[name][done]) for name in scored], axis=0)
    row: dict[str, Any] = {"concepts": concepts, "n": int(done.sum()), "n_not_scored": int(unscored.sum())}
    row["n_failed"] = int((rows["status"] == "failed").sum())
    for name in rows.keys() - {"status", "_prompt", "_draw"}:
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

    Where the axes are not crossed (one at a time is moved, say), the cells are those whose other axes have
    their most common values, if several values are left.

    Returns:
        One row an axis: ``axis``, ``values`` (how many different), ``peak`` (that with most mean gain), and
        :data:`TRENDS`, NaN where fewer than three values were scored (two points are always in line) or where
        the score never changes.
    """
    edited = frame[~frame["is_reference"]]
    rows = []
    for axis in axes:
        if pd.api.types.is_numeric_dtype(frame[axis]) and not pd.api.types.is_bool_dtype(frame[axis]):
            means = _comparable(edited, axis, axes).groupby(axis)[list(TRENDS)].mean()
            ranked = means[GAIN].dropna().sort_values(kind="stable")
            peak = ranked.index[-1] if len(ranked) else float("nan")
            places = means.index.to_numpy(dtype=np.float64)
            correlations = {name: spearman(places, means[name].to_numpy()) for name in TRENDS}
            rows.append({"axis": axis, "values": len(means), "peak": peak} | correlations)
    return pd.DataFrame(rows, columns=["axis", "values", "peak", *TRENDS])


def _comparable(edited: pd.DataFrame, axis: str, axes: Sequence[str]) -> pd.DataFrame:
    """The rows in which an axis may be blamed for the differences."""
    others = [name for name in axes if name != axis]
    settings = edited[list(axes)].drop_duplicates()
    if len(settings) == np.prod([settings[name].nunique(dropna=False) for name in axes]):
        return edited  # crossed: every value meets the same others
    usual = {name: settings[name].mode(dropna=False).iloc[0] for name in others}
    held = edited[np.logical_and.reduce([_equals(edited[name], value) for name, value in usual.items()])]
    return held if held[axis].nunique() > 1 else edited


def _equals(column: pd.Series[Any], value: Any) -> NDArray[np.bool_]:
    same = column.isna() if pd.isna(value) else (column == value).fillna(False)
    return same.to_numpy(dtype=bool)


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

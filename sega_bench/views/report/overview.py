"""What a page says before it shows a cell: what was asked, which setting to use, how each axis acts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sega_bench import __version__
from sega_bench.analysis.advice import next_steps
from sega_bench.analysis.best import Found
from sega_bench.analysis.claims import claims
from sega_bench.analysis.groups import ALL
from sega_bench.analysis.labels import concept_labels
from sega_bench.analysis.summary import COST, GAIN, areas, around, curve, reduced, trends
from sega_bench.views.report.cells import Cells, rounded
from sega_bench.views.report.thumbnails import SIDE

_ASKED = ("name", "description", "model", "engine", "scores", "versions", "code_version")
_AREAS = ("area", "front_area")
_UNFINISHED = "The study is not finished, so it recommends nothing yet: the same command goes on."
_STATISTICS = ("mean", "low", "high", "sd", "n")


def overview(
    frame: pd.DataFrame,
    summary: pd.DataFrame,
    plan: Mapping[str, Any],
    cells: Cells,
    answers: Found,
) -> dict[str, Any]:
    """The page's first script.

    Args:
        frame: as :func:`sega_bench.analysis.summary.load` gives it.
        summary: as :func:`sega_bench.analysis.summary.summarise` gives it.
        plan: what plan.json says.
        cells: the page's.
        answers: what a study found (:meth:`sega_bench.store.Store.answers`); None of a sweep.

    Returns:
        ``asked``: of plan.json. ``counts``: cells by their state. ``values``, ``constants``, ``scores``: see
        :class:`~sega_bench.views.report.cells.Cells`. ``sets``: what each value of ``concepts`` is called.
        ``axes``: their names. ``settings``: the summary's rows; ``curves``: for each axis those of its curve.
        ``at`` are the places of the axes' values, ``set`` that of the concept set, -1 for all. A score has
        mean, low, high, deviation, n, and the ends of the interval in pairs: with the best setting, or with
        the same images at the other values of the axis.
        ``claims``: the rows of :func:`sega_bench.analysis.claims.claims`. ``areas``: for each named axis, the
        place of a value, the concept set, and the area under the front of that value's settings.
        ``is_study``, and ``study``: what it found, null while it is not finished. ``together``: the axes that
        advance together. ``advice``: where to look next.
    """
    axes = [name for name in plan["axes"] if name in cells.values]
    # A study's values are each of one setting, and say nothing alone.
    crossed = axes if answers is None else []
    sets = [concepts for concepts in summary["concepts"].unique() if concepts != ALL]
    labels = concept_labels(sets)
    number = {concepts: i for i, concepts in enumerate(sets)} | {ALL: -1}
    names = [name for name in reduced(frame) if f"{name}_mean" in summary]
    return {
        **_asked(frame, plan),
        "axes": axes,
        "is_study": answers is not None,
        "study": answers or None,
        "together": list(plan.get("settings", {}).get("zip") or {}),
        "sets": [labels[concepts] for concepts in sets],
        "values": cells.values,
        "constants": cells.constants,
        "scores": cells.scores,
        "reduced": [name for name in names if summary[f"{name}_mean"].notna().any()],
        "titles": _titles(plan),
        "gain": GAIN,
        "cost": COST,
        "settings": _settings(summary, axes, number, names, cells),
        "curves": {
            axis: _rows(curve(frame, axis, list(plan["axes"])), [axis], number, names, "within", cells)
            for axis in crossed
            if len(cells.values[axis]) > 1
        },
        "claims": _claims(frame, list(plan["axes"]), answers, number),
        "areas": {axis: _areas(summary, axis, number, cells) for axis in crossed if _is_named(summary, axis)},
        "advice": _advice(frame, summary, plan) if answers is None else answers.get("advice", [_UNFINISHED]),
        "thumbnail_side": SIDE,
        "version": __version__,
    }


def _asked(frame: pd.DataFrame, plan: Mapping[str, Any]) -> dict[str, Any]:
    """What the plan says, and how much of it is there."""
    done, failed = (int((frame["status"] == state).sum()) for state in ("done", "failed"))
    counted = {name: plan["counts"].get(name) for name in ("edited", "references", "unet_evals")}
    there = {"planned": len(plan["keys"]), "done": done, "failed": failed, "rows": len(frame)}
    return {
        "asked": {name: plan.get(name) for name in _ASKED} | {"settings": _reproducible(plan)},
        "counts": there | counted,
    }


def _settings(
    summary: pd.DataFrame,
    axes: Sequence[str],
    number: Mapping[str, int],
    names: Sequence[str],
    cells: Cells,
) -> list[dict[str, Any]]:
    """The summary's rows with their marks and areas."""
    told = summary[["pareto", "best", *_AREAS]].to_dict("records")
    marks = [row | {name: rounded(row[name]) for name in _AREAS} for row in told]
    rows = _rows(summary, axes, number, names, "gap", cells)
    return [row | {str(name): mark[name] for name in mark} for row, mark in zip(rows, marks, strict=True)]


def _advice(frame: pd.DataFrame, summary: pd.DataFrame, plan: Mapping[str, Any]) -> list[str]:
    return next_steps(summary, trends(frame, list(plan["axes"]))) if len(frame) else []


def _rows(
    table: pd.DataFrame,
    axes: Sequence[str],
    number: Mapping[str, int],
    names: Sequence[str],
    compared: str,
    cells: Cells,
) -> list[dict[str, Any]]:
    places = [cells.places(axis, table[axis]) for axis in axes]
    told = {name: _told(table, name, compared) for name in names if f"{name}_mean" in table}
    counts = zip(table["concepts"], table["n"], table["n_failed"], strict=True)
    return [
        {
            "at": [place[i] for place in places],
            "set": number[concepts],
            "n": n,
            "failed": failed,
            "scores": {name: values[i] for name, values in told.items()},
        }
        for i, (concepts, n, failed) in enumerate(counts)
    ]


def _told(table: pd.DataFrame, name: str, compared: str) -> list[list[float | None]]:
    """Of each row: mean, low, high, deviation, n; then, where it is compared, the ends of that interval."""
    columns = [table[f"{name}_{part}"] for part in _STATISTICS]
    if f"{name}_{compared}" in table:
        columns += around(table, name, compared)
    return [[rounded(value) for value in values] for values in zip(*columns, strict=True)]


def _claims(
    frame: pd.DataFrame, axes: Sequence[str], answers: Found, number: Mapping[str, int]
) -> list[dict[str, Any]]:
    return [
        {name: row[name] for name in ("claim", "measure", "direction", "at", "n")}
        | {name: rounded(row[name]) for name in ("value", "low", "high")}
        | {"set": number[row["concepts"]]}
        for row in claims(frame, axes, answers).to_dict("records")
    ]


def _is_named(summary: pd.DataFrame, axis: str) -> bool:
    """Whether an axis is of names, such as methods, which are compared over all else that varies."""
    is_alone = summary.columns[1] == "concepts"
    return not is_alone and not pd.api.types.is_numeric_dtype(summary[axis])


def _areas(summary: pd.DataFrame, axis: str, number: Mapping[str, int], cells: Cells) -> list[list[Any]]:
    found = areas(summary, axis)
    sets_of_rows = [number[concepts] for concepts in found["concepts"]]
    rows = zip(cells.places(axis, found[axis]), sets_of_rows, map(rounded, found["area"]), strict=True)
    return [list(row) for row in rows]


def _titles(plan: Mapping[str, Any]) -> dict[str, str]:
    """What the scores are called where their column's name says too little, or too much."""
    perceptual = (plan["scores"].get(COST) or {}).get("name", "LPIPS")
    return {GAIN: "CLIP gain", COST: str(perceptual), "changed_fraction": "changed fraction"}


def _reproducible(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a command needs beside a cell's own."""
    settings = plan.get("settings", {})
    return {name: settings.get(name, {}) for name in ("model", "sampling")}

"""The page's summary data: the configuration, the verdict, each axis' curve, claims and advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sega_bench.analysis.groups import ALL
from sega_bench.analysis.labels import concept_labels
from sega_bench.analysis.results import Results
from sega_bench.analysis.scores import COST, GAIN
from sega_bench.analysis.summary import interval_around, summarised_scores
from sega_bench.version import __version__
from sega_bench.views.report.cells import Cells, rounded
from sega_bench.views.report.thumbnails import SIDE

_PLAN_KEYS = ("name", "description", "model", "engine", "scores", "versions", "code_version")
_AREAS = ("area", "front_area")
_UNFINISHED = "The study is not finished, so it recommends nothing yet: the same command goes on."
_STATISTICS = ("mean", "low", "high", "sd", "n")


def overview(results: Results, cells: Cells) -> dict[str, Any]:
    """The page's first script: everything but the cells.

    Returns:
        ``asked``: the configuration, from plan.json. ``counts``: cells by their state. ``values``,
        ``constants``, ``scores``: see :class:`~sega_bench.views.report.cells.Cells`. ``sets``: what each
        value of ``concepts`` is called. ``axes``: their names. ``settings``: the summary's rows; ``curves``:
        for each axis those of its curve. ``at`` are the places of the axes' values, ``set`` that of the
        concept set, -1 for all. A score has mean, low, high, deviation, n, and the ends of the interval in
        pairs: with the best setting, or with the same images at the other values of the axis. ``claims``: the
        rows of :func:`sega_bench.analysis.claims.claims`. ``areas``: for each named axis, the place of a
        value, the concept set, and the area under the front of that value's settings. ``verdicts``: the
        verdict's sentences over all concept sets, then of each. ``is_study``, and ``study``: its answers,
        null until it finishes. ``together``: the axes that advance together. ``advice``: where to look next.
    """
    summary, answers = results.summary, results.answers
    axes = [name for name in results.axes if name in cells.values]
    # A study's values are each of one setting, and say nothing alone.
    crossed = axes if answers is None else []
    sets = list(results.per_concept["concepts"].unique())
    labels = concept_labels(sets)
    number = {concepts: i for i, concepts in enumerate(sets)} | {ALL: -1}
    names = [name for name in summarised_scores(results.frame) if f"{name}_mean" in summary]
    return {
        **_provenance(results),
        "axes": axes,
        "is_study": answers is not None,
        "study": answers or None,
        "together": results.zipped_axes,
        "sets": [labels[concepts] for concepts in sets],
        "values": cells.values,
        "constants": cells.constants,
        "scores": cells.scores,
        "reduced": [name for name in names if summary[f"{name}_mean"].notna().any()],
        "titles": _titles(results),
        "gain": GAIN,
        "verdicts": [results.verdict_lines_of(concepts) for concepts in (ALL, *sets)],
        "cost": COST,
        "settings": _settings(summary, axes, number, names, cells),
        "curves": {
            axis: _rows(results.curve(axis), [axis], number, names, "within", cells)
            for axis in crossed
            if len(cells.values[axis]) > 1
        },
        "claims": _claims(results, number),
        "areas": {axis: _areas(results, axis, number, cells) for axis in crossed if _is_named(results, axis)},
        "advice": results.advice if answers is None else answers.get("advice", [_UNFINISHED]),
        "thumbnail_side": SIDE,
        "version": __version__,
    }


def _provenance(results: Results) -> dict[str, Any]:
    """What plan.json says, and how many of its cells there are."""
    plan, status = results.plan, results.frame["status"]
    done, failed = (int((status == state).sum()) for state in ("done", "failed"))
    counted = {name: plan["counts"].get(name) for name in ("edited", "references", "unet_evals")}
    present = {"planned": len(plan["keys"]), "done": done, "failed": failed, "rows": len(results.frame)}
    return {
        "asked": {name: plan.get(name) for name in _PLAN_KEYS} | {"settings": _reproducible(plan)},
        "counts": present | counted,
    }


def _settings(
    summary: pd.DataFrame,
    axes: Sequence[str],
    number: Mapping[str, int],
    names: Sequence[str],
    cells: Cells,
) -> list[dict[str, Any]]:
    """The summary's rows with their marks and areas."""
    marked = summary[["pareto", "best", "works", "as_good", *_AREAS]].to_dict("records")
    marks = [row | {name: rounded(row[name]) for name in _AREAS} for row in marked]
    rows = _rows(summary, axes, number, names, "gap", cells)
    return [row | {str(name): mark[name] for name in mark} for row, mark in zip(rows, marks, strict=True)]


def _rows(
    table: pd.DataFrame,
    axes: Sequence[str],
    number: Mapping[str, int],
    names: Sequence[str],
    compared: str,
    cells: Cells,
) -> list[dict[str, Any]]:
    places = [cells.places(axis, table[axis]) for axis in axes]
    scores = {name: _score_values(table, name, compared) for name in names if f"{name}_mean" in table}
    counts = zip(table["concepts"], table["n"], table["n_failed"], strict=True)
    return [
        {
            "at": [place[i] for place in places],
            "set": number[concepts],
            "n": n,
            "failed": failed,
            "scores": {name: values[i] for name, values in scores.items()},
        }
        for i, (concepts, n, failed) in enumerate(counts)
    ]


def _score_values(table: pd.DataFrame, name: str, compared: str) -> list[list[float | None]]:
    """For each row: mean, low, high, deviation, n; where settings are compared, that interval's ends."""
    columns = [table[f"{name}_{part}"] for part in _STATISTICS]
    if f"{name}_{compared}" in table:
        columns += interval_around(table, name, compared)
    return [[rounded(value) for value in values] for values in zip(*columns, strict=True)]


def _claims(results: Results, number: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {name: row[name] for name in ("claim", "measure", "direction", "at", "n")}
        | {name: rounded(row[name]) for name in ("value", "low", "high")}
        | {"set": number[row["concepts"]]}
        for row in results.claims.to_dict("records")
    ]


def _is_named(results: Results, axis: str) -> bool:
    """Whether the values of an axis are names, such as methods, to be compared over all else that varies."""
    return len(results.axes) > 1 and not pd.api.types.is_numeric_dtype(results.summary[axis])


def _areas(results: Results, axis: str, number: Mapping[str, int], cells: Cells) -> list[list[Any]]:
    table = results.areas(axis)
    sets_of_rows = [number[concepts] for concepts in table["concepts"]]
    rows = zip(cells.places(axis, table[axis]), sets_of_rows, map(rounded, table["area"]), strict=True)
    return [list(row) for row in rows]


def _titles(results: Results) -> dict[str, str]:
    """Scores whose column name says too little, or too much."""
    return {GAIN: "CLIP gain", COST: results.cost_name, "changed_fraction": "changed fraction"}


def _reproducible(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a command needs beside a cell's own."""
    settings = plan.get("settings", {})
    return {name: settings.get(name, {}) for name in ("model", "sampling")}

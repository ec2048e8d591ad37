"""Advice on what to run next: sentences that the summary supports."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from sega_bench.analysis.groups import ALL
from sega_bench.analysis.labels import concept_labels, format_value
from sega_bench.analysis.scores import COST, GAIN

RANGES: dict[str, tuple[float, float]] = {
    "edit_guidance_scale": (0.0, math.inf),
    "edit_threshold": (0.0, 1.0),
    "edit_weights": (0.0, math.inf),
    "edit_momentum_scale": (0.0, math.inf),
    "edit_mom_beta": (0.0, 1.0),
    "guidance_scale": (1.0, math.inf),
    "edit_warmup_steps": (0.0, math.inf),
    "edit_cooldown_steps": (0.0, math.inf),
}
"""The axes that can be extended, and how far."""

_STRENGTH = {"edit_guidance_scale": 1, "edit_threshold": -1, "edit_warmup_steps": -1, "edit_weights": 1}
"""Whether an edit grows stronger with a setting (1) or weaker (-1)."""


def next_steps(summary: pd.DataFrame, trends: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    """Plain sentences, most important first; empty where the sweep gives no reason for any.

    Args:
        summary: as :func:`sega_bench.analysis.summary.summarise` gives it.
        trends: as :func:`sega_bench.analysis.summary.trends` returns it, for the same axes.
        axes: the sweep's.
    """
    pooled = summary[summary["concepts"] == ALL]
    steps = list(_failures(pooled))
    best = pooled[pooled["best"]]
    if best.empty:
        return [*steps, *_without_best(pooled, trends, axes)]
    noise = list(_noise(pooled))
    if noise:  # a position on an axis means nothing where settings cannot be told apart
        return steps + noise
    crossed = _are_crossed(pooled, axes)
    for _, trend in trends.iterrows():
        if trend["axis"] in RANGES and trend["values"] > 1:
            steps += _along(trend, pooled, best.iloc[0], crossed)
    return steps + list(_disagreement(summary, axes))


def _are_crossed(pooled: pd.DataFrame, axes: Sequence[str]) -> bool:
    """Whether every combination of the axes' values is a setting."""
    return len(pooled) == math.prod(pooled[axis].nunique(dropna=False) for axis in axes)


def _failures(pooled: pd.DataFrame) -> Iterator[str]:
    failed = int(pooled["n_failed"].sum())
    if failed:
        cells, them = ("cell", "it") if failed == 1 else ("cells", "them")
        yield f"{failed} {cells} failed: retry_failed=true tries {them} again."


def _noise(pooled: pd.DataFrame) -> Iterator[str]:
    others = pooled[~pooled["best"]]
    if others.empty:
        return
    if others[[f"{GAIN}_gap_low", f"{COST}_gap_low"]].isna().all(axis=None):
        yield "One seed cannot tell settings from chance: add seeds, e.g. seeds=4."
    elif not (_apart(others, GAIN) | _apart(others, COST)).any():
        yield (
            "No other setting can be told from the verdict's, neither by its CLIP gain nor by its cost "
            "(differences in pairs of the same prompt and seed, 95 %): add seeds or prompts before choosing."
        )


def _apart(others: pd.DataFrame, score: str) -> pd.Series[bool]:
    """Which settings differ from the best one, chance aside."""
    return (others[f"{score}_gap_low"] > 0) | (others[f"{score}_gap_high"] < 0)


def _without_best(pooled: pd.DataFrame, trends: pd.DataFrame, axes: Sequence[str]) -> Iterator[str]:
    """What to try where no setting works: stronger edits, but only where gain grows with strength."""
    if pooled[f"{GAIN}_mean"].isna().all():
        yield f"No cell has {GAIN}, so no setting can be judged."
        return
    for _, trend in trends.iterrows():
        axis = trend["axis"]
        if axis in _STRENGTH and trend["values"] > 1 and _STRENGTH[axis] * trend[GAIN] > 0:
            values = sorted(float(value) for value in pooled[axis].dropna().unique())
            edge = "largest" if _STRENGTH[axis] > 0 else "smallest"
            is_at_end = (values[-1] if edge == "largest" else values[0]) in RANGES[axis]
            further = [] if is_at_end else _beyond(axis, values, edge)
            if further:
                proposal = _proposal(axis, values, further, _are_crossed(pooled, axes))
                yield f"Gain grows with strength: {proposal}."


def _along(trend: pd.Series[Any], pooled: pd.DataFrame, best: pd.Series[Any], crossed: bool) -> Iterator[str]:
    """What to try along one numeric axis with at least two values."""
    axis = trend["axis"]
    values = sorted(float(value) for value in pooled[axis].dropna().unique())
    if pd.isna(best[axis]):
        return
    place = values.index(float(best[axis]))
    edge = {0: "smallest", len(values) - 1: "largest"}.get(place)
    subject = f"The best {axis} ({format_value(values[place])})"
    if edge is None and not axis.endswith("_steps"):
        below, above = values[place - 1], values[place + 1]
        finer = [(below + values[place]) / 2, (values[place] + above) / 2]
        between = f"lies between {format_value(below)} and {format_value(above)}"
        yield f"{subject} {between}: {_proposal(axis, values, finer, crossed)}."
    elif edge is not None and values[place] not in RANGES[axis]:
        further = _beyond(axis, values, edge)
        yield f"{subject} is the {edge} tried: {_proposal(axis, values, further, crossed)}."
    if edge != "largest" and trend["peak"] == values[-1] and trend[GAIN] > 0:
        price = f", and so does {COST}" if trend[COST] > 0 else ""
        yield f"CLIP gain still grows at the largest {axis} tried ({format_value(values[-1])}){price}."


def _beyond(axis: str, values: list[float], edge: str) -> list[float]:
    """The next value past an edge: one step on, or half the way to the end of the range if that is nearer."""
    low, high = RANGES[axis]
    if edge == "smallest":
        further = 2 * values[0] - values[1]
        return [further if further > low else _whole(axis, (values[0] + low) / 2)]
    if axis.endswith("_steps"):
        return []  # how many steps the scheduler takes isn't known here: the next index may be none
    further = 2 * values[-1] - values[-2]
    return [further if further < high else (values[-1] + high) / 2]


def _whole(axis: str, value: float) -> float:
    return math.floor(value) if axis.endswith("_steps") else value


def _proposal(axis: str, values: list[float], more: list[float], crossed: bool) -> str:
    if not more:
        return "try a larger one"
    if not crossed:  # the axis advances with another one, and can't be given alone
        return f"try {' and '.join(map(format_value, more))} too"
    return f"try axes.{axis}=[{','.join(format_value(value) for value in sorted(values + more))}]"


def _disagreement(summary: pd.DataFrame, axes: Sequence[str]) -> Iterator[str]:
    best = summary[summary["best"] & (summary["concepts"] != ALL)]
    places = [", ".join(f"{axis} {format_value(row[axis])}" for axis in axes) for _, row in best.iterrows()]
    if len(set(places)) > 1 and _is_worse_for_one(summary, axes):
        labels = concept_labels(best["concepts"])
        each = [f"{labels[c]} at {place}" for c, place in zip(best["concepts"], places, strict=True)]
        more = f"; {len(each) - 4} more in summary.csv" if len(each) > 4 else ""
        yield f"The concepts' best settings differ: {'; '.join(each[:4])}{more}."


def _is_worse_for_one(summary: pd.DataFrame, axes: Sequence[str]) -> bool:
    """Whether the best trade-off over all can be told from a concept's own best one."""
    over_all = summary.loc[summary["best"] & (summary["concepts"] == ALL), axes]
    there = summary[summary["concepts"] != ALL].merge(over_all, on=axes)
    return bool((_apart(there, GAIN) | _apart(there, COST)).any())

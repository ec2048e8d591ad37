"""Pareto fronts of losses: which points are on one, where its knee is, how much it dominates. Pure.

Shapes: N points, K losses; a smaller loss is better. A gain enters as its negative.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WORST_COST = 1.0
"""Cost of the reference point (gain 0, cost 1) from which areas are measured."""


def front(losses_NK: Floats) -> NDArray[np.bool_]:
    """Which points no other beats in one loss without losing in another; never one with a NaN."""
    on_N: NDArray[np.bool_] = np.all(np.isfinite(losses_NK), axis=1)
    for i in np.flatnonzero(on_N):
        no_worse_N = (losses_NK <= losses_NK[i]).all(axis=1)
        on_N[i] = not (no_worse_N & (losses_NK < losses_NK[i]).any(axis=1)).any()
    return on_N


def knee(losses_NK: Floats) -> int | None:
    """Index of the front's best trade-off, None if it is empty; of a single loss, that of the least.

    With every loss scaled to 0..1 along the front, the knee has the smallest sum. Ties go to the smallest
    first loss, then to the last point.
    """
    on = np.flatnonzero(front(losses_NK))
    if not len(on):
        return None
    losses = losses_NK[on]
    spread_K = np.ptp(losses, axis=0)
    unit = (losses - losses.min(axis=0)) / np.where(spread_K > 0, spread_K, 1.0)
    merit = np.round(unit.sum(axis=1), 9)  # rounded, so that equals are equal
    return int(on[np.lexsort((-losses[:, 0], -merit))[-1]])


def hypervolume(losses_NK: Floats, worst_K: Floats) -> float:
    """Volume of what the points dominate within the box that ends at the worst losses.

    By slices along the last loss, each the hypervolume of one loss fewer: exact, and quick enough for the
    hundreds of points and few losses of a study.
    """
    inside = losses_NK[(losses_NK < worst_K).all(axis=1)]  # no NaN is
    if not len(inside):
        return 0.0
    if inside.shape[1] == 1:
        return float(worst_K[0] - inside.min())
    inside = inside[front(inside)]
    inside = inside[np.argsort(inside[:, -1], kind="stable")]
    depths = np.diff(inside[:, -1], append=worst_K[-1])
    slices = [hypervolume(inside[: i + 1, :-1], worst_K[:-1]) for i in range(len(inside))]
    return float(depths @ np.array(slices))


def area_under_front(gain: Floats, cost: Floats) -> float:
    """Area that the points dominate, from no gain at cost :data:`WORST_COST`: the hypervolume of two scores.

    In units of the gain: a free edit of gain 0.4 has the area 0.4, and one that costs 0.25 has 0.3. More is
    better, of one setting as of the front of many. Points that gain nothing, or cost more than the worst,
    have none; with no point at all, or NaN alone, it is NaN.

    Args:
        gain: (N,), in any order.
        cost: (N,), of the same points.
    """
    on_N = front(np.column_stack([-gain, cost]))
    if not on_N.any():
        return math.nan
    order = np.argsort(cost[on_N], kind="stable")  # along the front the gain grows with the cost
    steps = np.diff(np.maximum(gain[on_N][order], 0.0), prepend=0.0)
    return float(steps @ np.maximum(WORST_COST - cost[on_N][order], 0.0))

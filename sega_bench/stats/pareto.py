"""Pareto fronts of losses: membership, knee, hypervolume and area. Pure.

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
    """Which points no other point dominates, (N,); a point with a NaN is never on the front."""
    on_N: NDArray[np.bool_] = np.all(np.isfinite(losses_NK), axis=1)
    for i in np.flatnonzero(on_N):
        no_worse_N = (losses_NK <= losses_NK[i]).all(axis=1)
        on_N[i] = not (no_worse_N & (losses_NK < losses_NK[i]).any(axis=1)).any()
    return on_N


def knee(losses_NK: Floats) -> int | None:
    """Index of the front's best trade-off; None if the front is empty.

    The knee has the smallest sum of losses, each scaled to 0..1 along the front. With a single loss it is the
    minimum. Ties go to the smallest first loss, then to the last point.
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
    """Volume that the points dominate below the reference point ``worst_K``.

    Exact, by slices along the last loss, each a hypervolume of one loss fewer: fast enough for the
    hundreds of points and few losses of a study.
    """
    inside = losses_NK[(losses_NK < worst_K).all(axis=1)]  # NaN never is
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
    """Hypervolume of gain and cost, from the reference point of gain 0 and cost :data:`WORST_COST`.

    The unit is that of the gain: a free edit of gain 0.4 has area 0.4, and one that costs 0.25 has 0.3.
        More is
    better, for one setting and for a front of many. Points without gain, or with a cost above the worst, add
    nothing. The area is NaN without any point that has both values.

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

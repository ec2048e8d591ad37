"""Fronts of losses: who is on one, where its knee is, how much it dominates. Pure.

Shapes: N points, K losses, each of which is the better the smaller it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sega_bench.study.objectives import Floats


def front(losses_NK: Floats) -> NDArray[np.bool_]:
    """Which points no other beats in one loss without losing in another; never one with a NaN."""
    on_N: NDArray[np.bool_] = np.all(np.isfinite(losses_NK), axis=1)
    for i in np.flatnonzero(on_N):
        no_worse_N = (losses_NK <= losses_NK[i]).all(axis=1)
        on_N[i] = not (no_worse_N & (losses_NK < losses_NK[i]).any(axis=1)).any()
    return on_N


def knee(losses_NK: Floats) -> int | None:
    """Index of the front's best trade-off, None if it is empty; of a single loss, that of the least.

    All losses scaled to 0..1 along the front, the knee has the smallest sum; of equals it is the one with the
    least first loss. For gain and cost it is that of :func:`sega_bench.views.statistics.knee`.
    """
    on = np.flatnonzero(front(losses_NK))
    if not len(on):
        return None
    losses = losses_NK[on]
    spread_K = np.ptp(losses, axis=0)
    unit = (losses - losses.min(axis=0)) / np.where(spread_K > 0, spread_K, 1.0)
    merit = np.round(unit.sum(axis=1), 9)  # rounded, so that equals are equal
    return int(on[np.lexsort((losses[:, 0], merit))[0]])


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

"""Statistics of arrays: means with intervals, fronts and the areas under them. Pure, seeded, no tables.

Only :mod:`sega_bench.views.tables` reduces rows, and it does so with these.

Shapes: N values, G clusters of them, R resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

Floats = NDArray[np.float64]
Interval = tuple[float, float]

NOWHERE: Interval = (math.nan, math.nan)
"""The interval of what is not known."""

WORST_COST = 1.0
"""Of the reference point (gain 0, cost 1) that areas are measured from: no gain, nothing preserved."""

_RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A mean over the values there are.

    Args:
        mean: NaN of nothing.
        sd: standard deviation of the values; NaN of fewer than two.
        low, high: 95 % interval of the mean; NaN where it cannot be told.
        n: how many values.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int


def estimate(values: Floats, clusters: NDArray[Any], groups: NDArray[Any] | None = None) -> Estimate:
    """Mean, deviation and :func:`interval` of the values that are not NaN.

    Args:
        values: (N,); NaN is one that was not taken.
        clusters: (N,), see :func:`interval`.
        groups: (N,), likewise.
    """
    taken = ~np.isnan(values)
    values = values[taken]
    mean = float(values.mean()) if len(values) else math.nan
    deviation = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    low, high = interval(values, clusters[taken], None if groups is None else groups[taken])
    return Estimate(mean, deviation, low, high, len(values))


def ratio(
    over: Floats, under: Floats, clusters: NDArray[Any], groups: NDArray[Any] | None = None
) -> Estimate:
    """The sum of one value in terms of the sum of another, of the pairs that are whole.

    Args:
        over: (N,); NaN is one that was not taken.
        under: (N,), likewise. If it sums to zero or less in a resample, the interval is not known.
        clusters: (N,), see :func:`interval`.
        groups: (N,), likewise.
    """
    taken = ~(np.isnan(over) | np.isnan(under))
    over, under = over[taken], under[taken]
    total = float(under.sum())
    value = float(over.sum()) / total if total > 0 else math.nan
    low, high = interval(over, clusters[taken], None if groups is None else groups[taken], under)
    return Estimate(value, math.nan, low, high, len(over))


def interval(
    values: Floats, clusters: NDArray[Any], groups: NDArray[Any] | None = None, of: Floats | None = None
) -> Interval:
    """95 % bootstrap interval of the mean, seeded; or of a ratio of two sums.

    Whole clusters are drawn, with replacement: the edits of one unedited image share its prompt and seed, and
    are not independent of each other. Where clusters belong to several groups (the seeds of each prompt), the
    groups are drawn first, then the clusters within each that was drawn.

    The interval is the expanded percentile interval (Hesterberg 2015, "What Teachers Should Know About the
    Bootstrap", section 5.3): its quantiles lie further out than 2.5 % and 97.5 %, by what makes the normal
    interval of so many values a t interval. Without that, four seeds would give far too narrow a one.

    Args:
        values: (N,), no NaN.
        clusters: (N,) labels; with a single one nothing is known, and both ends are NaN.
        groups: (N,) labels, the same for all values of a cluster; None is a single group.
        of: (N,), what the sum of the values is divided by the sum of; None is one each, which makes the mean.
    """
    labels, first, place_N = np.unique(clusters, return_index=True, return_inverse=True)
    if len(labels) < 2:
        return NOWHERE
    group_G = np.zeros(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1][first]
    order = np.argsort(group_G, kind="stable")
    sizes = np.unique(group_G, return_counts=True)[1]
    weights_RG = _resamples(tuple(sizes.tolist()))
    sums_G = np.bincount(place_N, weights=values)[order]
    divisor_R = weights_RG @ np.bincount(place_N, weights=of)[order]
    if divisor_R.min() <= 0:
        return NOWHERE
    tail = _tail(len(labels))
    low, high = np.quantile((weights_RG @ sums_G) / divisor_R, [tail, 1 - tail])
    return float(low), float(high)


@lru_cache(maxsize=4)
def _resamples(sizes: tuple[int, ...]) -> Floats:
    """How often each cluster is drawn in each resample, (R, G), groups of these sizes one after the other."""
    rng = np.random.default_rng(0)
    groups = len(sizes)
    drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=_RESAMPLES)
    within = [rng.multinomial(drawn[:, g] * size, np.full(size, 1 / size)) for g, size in enumerate(sizes)]
    return np.concatenate(within, axis=1).astype(np.float64)


def _tail(clusters: int) -> float:
    """Which quantile of the resamples is the lower end of a 95 % interval of so many clusters."""
    return float(ndtr(-math.sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, 0.975)))


def pareto(gain: Floats, cost: Floats) -> NDArray[np.bool_]:
    """Which points no other beats in one of the two without losing in the other; never one with a NaN."""
    front = np.isfinite(gain) & np.isfinite(cost)
    for i in np.flatnonzero(front):
        no_worse = (gain >= gain[i]) & (cost <= cost[i])
        front[i] = not np.any(no_worse & ((gain > gain[i]) | (cost < cost[i])))
    return front


def knee(gain: Floats, cost: Floats, front: NDArray[np.bool_]) -> int | None:
    """Index of the front's best trade-off; None for an empty front.

    With gain and cost both scaled to 0..1 along the front, the knee has the largest gain minus cost: it lies
    furthest beyond the chord between the front's ends. Of equals, it is the one with most gain.
    """
    on = np.flatnonzero(front)
    if not len(on):
        return None
    merit = np.round(_unit(gain[on]) - _unit(cost[on]), 9)  # rounded, so that equals are equal
    return int(on[np.lexsort((gain[on], merit))[-1]])


def _unit(values: Floats) -> Floats:
    unit: Floats = (values - values.min()) / (np.ptp(values) or 1.0)
    return unit


def area_under_front(gain: Floats, cost: Floats) -> float:
    """Area that the points dominate (their hypervolume), from no gain at cost :data:`WORST_COST`.

    In units of the gain: a free edit of gain 0.4 has the area 0.4, and one that costs 0.25 has 0.3. More is
    better, of one setting as of the front of many. Points that gain nothing, or cost more than the worst,
    have none; with no point at all, or NaN alone, it is NaN.

    Args:
        gain: (N,), in any order.
        cost: (N,), of the same points.
    """
    front = pareto(gain, cost)
    if not front.any():
        return math.nan
    order = np.argsort(cost[front], kind="stable")  # along the front the gain grows with the cost
    steps = np.diff(np.maximum(gain[front][order], 0.0), prepend=0.0)
    return float(steps @ np.maximum(WORST_COST - cost[front][order], 0.0))


def spearman(x: Floats, y: Floats) -> float:
    """Rank correlation, ties at their mean rank.

    NaN for fewer than three pairs (two points are always in line), or where one of both never changes.
    """
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(values: Floats) -> Floats:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks

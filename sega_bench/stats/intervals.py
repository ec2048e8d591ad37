"""Means, ratios and proportions with their 95 % intervals. Pure and seeded.

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
"""The interval of a value that is not known."""

_RESAMPLES = 1000
_Z_95 = 1.959963984540054
"""The standard normal distribution's 97.5 % quantile."""


@dataclass(frozen=True)
class Estimate:
    """A mean over the values that are not NaN.

    Args:
        mean: NaN without any value.
        sd: standard deviation of the values; NaN for fewer than two.
        low, high: 95 % interval of the mean; NaN where it cannot be computed.
        n: number of values.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int


def estimate(values: Floats, clusters: NDArray[Any], groups: NDArray[Any] | None = None) -> Estimate:
    """Mean, deviation and :func:`interval` of the values that are not NaN.

    Args:
        values: (N,); NaN for a value that is missing.
        clusters: (N,), see :func:`interval`.
        groups: (N,), see :func:`interval`.
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
    """Ratio of two sums, over the pairs in which neither value is NaN.

    Args:
        over: (N,) numerator; NaN for a value that is missing.
        under: (N,) denominator. If it sums to zero or less in a resample, the interval is NaN.
        clusters: (N,), see :func:`interval`.
        groups: (N,), see :func:`interval`.
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
    """Seeded 95 % bootstrap interval of a mean, or of a ratio of two sums.

    Whole clusters are drawn with replacement, because the edits of one unedited image share its prompt and
    seed and are not independent. Where clusters belong to several groups (the seeds of each prompt), groups
    are drawn first, then clusters within each drawn group.

    The interval is the expanded percentile interval (Hesterberg 2015, "What Teachers Should Know About the
    Bootstrap", section 5.3). Its quantiles lie further out than 2.5 % and 97.5 %, by the factor that turns
    the normal interval of this number of values into a t interval. Otherwise four seeds would give far too
    narrow an interval.

    Args:
        values: (N,) without NaN.
        clusters: (N,) labels; with a single cluster both ends are NaN.
        groups: (N,) labels, the same for all values of a cluster; None for a single group.
        of: (N,) values whose sum divides the sum of ``values``; None for ones, which makes the mean.
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
    """Number of draws of each cluster in each resample, (R, G), for consecutive groups of these sizes."""
    rng = np.random.default_rng(0)
    groups = len(sizes)
    drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=_RESAMPLES)
    within = [rng.multinomial(drawn[:, g] * size, np.full(size, 1 / size)) for g, size in enumerate(sizes)]
    return np.concatenate(within, axis=1).astype(np.float64)


def _tail(clusters: int) -> float:
    """Quantile of the resamples at the lower end of a 95 % interval of this number of clusters."""
    return float(ndtr(-math.sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, 0.975)))


def wilson(successes: float, n: float) -> Interval:
    """95 % interval of a proportion (Wilson 1927), always inside [0, 1]; NaN when ``n`` is 0.

    ``successes`` may be fractional: a trial with several outcomes counts as the share that succeeded.
    """
    if n == 0:
        return NOWHERE
    z2 = _Z_95**2
    centre = (successes + z2 / 2) / (n + z2)
    half = _Z_95 / (n + z2) * math.sqrt(successes * (n - successes) / n + z2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)

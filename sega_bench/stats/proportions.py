"""Shares of successes, with confidence intervals for clustered values that hold at 0 % and 100 %. Pure.

Values that share a prompt or a seed succeed together, so that there are fewer independent trials than
values. The *trials* of a share are its effective sample size (Korn and Graubard 1998): the number of values
divided by the design effect, which is the variance of the share over its design
(:mod:`sega_bench.stats.random_effects`) in terms of that of independent values. The interval is the one of
so many independent trials.

Shapes: M settings, N values of each, between 0 and 1 (a value may itself be a share, of several concepts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

from sega_bench.stats.blocks import Blocks, Floats
from sega_bench.stats.random_effects import SamplingError, Scope, resolve_scope, sampling_error, student_t

Side = Literal["both", "lower", "upper"]


@dataclass(frozen=True)
class ShareIntervals:
    """Shares with their intervals; all arrays are (M,).

    Args:
        mean: share of successes; NaN without a value.
        low, high: ends of the interval, within 0 and 1; a one-sided one ends at 0 or 1.
        n: number of values.
        trials: number of independent trials that the values are worth, at most ``n``.
        scope: see :mod:`sega_bench.stats.random_effects`.
    """

    mean: Floats
    low: Floats
    high: Floats
    n: NDArray[np.intp]
    trials: Floats
    scope: Scope

    def __len__(self) -> int:
        return len(self.mean)


def share_intervals(
    values_MN: Floats,
    prompt_N: NDArray[Any],
    seed_N: NDArray[Any],
    level: float = 0.95,
    scope: Scope = "auto",
    side: Side = "both",
    family: int = 1,
) -> ShareIntervals:
    """Shares of successes of several settings on the same prompts and seeds.

    Two-sided intervals are Wilson's (1927), whose coverage is close to the level on average. One-sided
    bounds are Clopper and Pearson's (1934), whose coverage is never below it for independent trials: a
    decision stands on them.

    Args:
        values_MN: (M, N) successes, 0 to 1; NaN for a value that is missing.
        prompt_N: (N,) labels.
        seed_N: (N,) labels.
        level: confidence, simultaneous over the family.
        scope: see :func:`sega_bench.stats.random_effects.mean_intervals`.
        side: which bounds.
        family: number of intervals that shall all hold at once, by Bonferroni; 1: each on its own.
    """
    values_MN = np.asarray(values_MN, dtype=np.float64)
    blocks = Blocks.of(prompt_N, seed_N)
    scope = resolve_scope(blocks, scope)
    tail = (1 - level) / family / (2 if side == "both" else 1)
    n_M = (~np.isnan(values_MN)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_M = np.where(np.isnan(values_MN), 0.0, values_MN).sum(axis=1) / n_M
    means_MPS, counts_MPS = blocks.pictures(values_MN)
    error = sampling_error(means_MPS, counts_MPS, blocks.crossed, scope)
    pictures_M = (counts_MPS > 0).sum(axis=(1, 2))
    trials_M = effective_size(error, mean_M * (1 - mean_M), n_M, pictures_M, tail)
    low_M, high_M = (wilson if side == "both" else clopper_pearson)(mean_M, trials_M, tail)
    return ShareIntervals(
        mean_M,
        np.where(n_M > 0, 0.0, np.nan) if side == "upper" else low_M,
        np.where(n_M > 0, 1.0, np.nan) if side == "lower" else high_M,
        n_M,
        trials_M,
        scope,
    )


def effective_size(
    error: SamplingError, variance_M: Floats, n_M: NDArray[np.intp], pictures_M: NDArray[np.intp], tail: float
) -> Floats:
    """Number of independent values that these are worth: between the number of clusters and that of values.

    Args:
        error: sampling error of the mean of these values.
        variance_M: (M,) variance of one value, if all were independent.
        n_M: (M,) number of values.
        pictures_M: (M,) number of pictures.
        tail: error rate of one bound, at which the design effect's own uncertainty is allowed for.
    """
    # A design effect that is estimated from few clusters makes the tails heavier: Korn and Graubard's
    # correction.
    with np.errstate(invalid="ignore", divide="ignore"):
        inflation_M = (student_t(error.df, 1 - tail) / ndtri(1 - tail)) ** 2
        effect_M = error.se**2 * np.maximum(n_M - 1, 1) / variance_M
        size_M = n_M / (effect_M * inflation_M)
    # Where all succeed or none does, nothing tells how alike the pictures of a seed or prompt are: a number
    # half way (as a ratio) between that of the clusters, if they were the same, and that of pictures, if
    # independent.
    least_M = np.maximum(error.clusters, 1)
    is_unknown = ~np.isfinite(size_M) | (error.se == 0)
    size_M = np.clip(np.where(is_unknown, np.sqrt(least_M * pictures_M), size_M), least_M, n_M)
    return np.where(error.clusters >= n_M, n_M, size_M).astype(np.float64)


def wilson(share_M: Floats, trials_M: Floats, tail: float) -> tuple[Floats, Floats]:
    """Wilson's (1927) score interval with this error rate at either end; NaN without a trial."""
    z2 = float(ndtri(1 - tail)) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        n_M = np.where(trials_M > 0, trials_M, np.nan)
        centre_M = (share_M * n_M + z2 / 2) / (n_M + z2)
        half_M = np.sqrt(z2 * (n_M * share_M * (1 - share_M) + z2 / 4)) / (n_M + z2)
    return np.maximum(centre_M - half_M, 0.0), np.minimum(centre_M + half_M, 1.0)


def clopper_pearson(share_M: Floats, trials_M: Floats, tail: float) -> tuple[Floats, Floats]:
    """Clopper and Pearson's (1934) interval with this error rate at either end; NaN without a trial.

    Successes and trials may be fractional (Korn and Graubard 1998).
    """
    n_M = np.where(trials_M > 0, trials_M, np.nan)
    k_M = np.clip(share_M, 0.0, 1.0) * n_M
    with np.errstate(invalid="ignore"):
        low_M = np.where(k_M > 0, betaincinv(np.where(k_M > 0, k_M, 1.0), n_M - k_M + 1, tail), 0.0)
        rest_M = n_M - k_M
        high_M = np.where(rest_M > 0, betaincinv(k_M + 1, np.where(rest_M > 0, rest_M, 1.0), 1 - tail), 1.0)
    is_known = ~np.isnan(n_M)
    return np.where(is_known, low_M, np.nan), np.where(is_known, high_M, np.nan)

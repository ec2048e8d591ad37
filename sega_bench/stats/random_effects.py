"""Means with confidence intervals over prompts and seeds. Pure.

The model of a picture's value is ``mean + prompt + seed + residual``, each but the mean random with its own
variance (a two-way random effects model without replication). In a nested design the seed belongs to the
residual.
What an interval speaks of is its *scope*:

``seeds``
    Other seeds of these very prompts: the prompts are fixed, the seeds random.
``prompts``
    Other prompts with these very seeds.
``all``
    Other prompts and other seeds.

The intervals are Student's t intervals, with Satterthwaite's (1946) degrees of freedom where prompts and
seeds are both random, and Hall's (1992) correction for skewed values. For symmetric values this is the t
interval itself. ``tools/coverage.py`` simulates the coverage.

Shapes: M settings (or anything else that is estimated at once), N values of each, P prompts, S seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from sega_bench.stats.blocks import Blocks, Floats

Scope = Literal["auto", "seeds", "prompts", "all"]

FEWEST_PROMPTS = 3
"""Number of prompts from which ``auto`` speaks of other prompts.

Two prompts have one degree of freedom, whose t is 12.7: an interval about six times wider, of use to nobody.
"""


FEWEST_FOR_SKEWNESS = 4
"""Number of independent units from which skewness is estimated: that of three is noise alone."""


@dataclass(frozen=True)
class MeanInterval:
    """One mean with its interval: a row of :class:`MeanIntervals`."""

    mean: float
    sd: float
    low: float
    high: float
    n: int
    se: float
    df: float
    scope: Scope


@dataclass(frozen=True)
class MeanIntervals:
    """Means with their intervals; all arrays are (M,).

    Args:
        mean: plain mean of the values that are not NaN; NaN without one.
        sd: standard deviation of these values; NaN for fewer than two.
        low, high: ends of the interval; NaN where it cannot be computed. Skewed values have one that is not
            symmetric about the mean.
        n: number of values.
        se: standard error of the mean within the scope.
        df: degrees of freedom of the standard error.
        clusters: number of independent units in the scope, the fewer of both kinds where prompts and seeds
            are random.
        scope: what the intervals speak of; never ``auto``.
    """

    mean: Floats
    sd: Floats
    low: Floats
    high: Floats
    n: NDArray[np.intp]
    se: Floats
    df: Floats
    clusters: NDArray[np.intp]
    scope: Scope

    def __getitem__(self, m: int) -> MeanInterval:
        return MeanInterval(
            mean=float(self.mean[m]),
            sd=float(self.sd[m]),
            low=float(self.low[m]),
            high=float(self.high[m]),
            n=int(self.n[m]),
            se=float(self.se[m]),
            df=float(self.df[m]),
            scope=self.scope,
        )

    def __len__(self) -> int:
        return len(self.mean)


def mean_interval(
    values_N: Floats,
    prompt_N: NDArray[Any],
    seed_N: NDArray[Any],
    level: float = 0.95,
    scope: Scope = "auto",
) -> MeanInterval:
    """Mean of one setting's values with its confidence interval: see :func:`mean_intervals`."""
    return mean_intervals(np.asarray(values_N, dtype=np.float64)[None], prompt_N, seed_N, level, scope)[0]


def mean_intervals(
    values_MN: Floats,
    prompt_N: NDArray[Any],
    seed_N: NDArray[Any],
    level: float = 0.95,
    scope: Scope = "auto",
) -> MeanIntervals:
    """Means of several settings on the same prompts and seeds, each with its own confidence interval.

    The values of one picture are averaged first, each picture weighing as much as it has values, so that the
    mean is the plain mean of the values. Failed cells may be missing anywhere.

    * One random factor (scope ``seeds`` or ``prompts``, or a nested design over prompts): t interval of the
      factor's means.
    * Seeds of fixed prompts in a nested design: the prompts' variances added (Welch 1947).
    * Two (scope ``all`` in a crossed design): variance components by Henderson's method 1 (1953), which for
      complete data is the analysis of variance. A negative component counts as zero.

    Args:
        values_MN: (M, N); NaN for a value that is missing.
        prompt_N: (N,) labels.
        seed_N: (N,) labels. The same label under two prompts is the same noise.
        level: confidence of each interval on its own.
        scope: ``auto`` is ``all`` from :data:`FEWEST_PROMPTS` prompts on, or ``prompts`` where these share a
            single seed, and ``seeds`` with fewer.

    Returns:
        Intervals that are NaN where the scope's factor has fewer than two units.
    """
    values_MN = np.asarray(values_MN, dtype=np.float64)
    blocks = Blocks.of(prompt_N, seed_N)
    scope = resolve_scope(blocks, scope)
    mean_M, sd_M, n_M = _moments(values_MN)
    error = sampling_error(*blocks.pictures(values_MN), blocks.crossed, scope)
    t_M = student_t(error.df, (1 + level) / 2)
    low_M = mean_M - error.se * _skewed(t_M, error.skewness)
    high_M = mean_M - error.se * _skewed(-t_M, error.skewness)
    return MeanIntervals(mean_M, sd_M, low_M, high_M, n_M, error.se, error.df, error.clusters, scope)


def resolve_scope(blocks: Blocks, scope: Scope) -> Scope:
    """The scope that ``auto`` stands for in this design; any other as it is."""
    if scope != "auto":
        return scope
    if blocks.prompts < FEWEST_PROMPTS:
        return "seeds"
    return "prompts" if blocks.crossed and blocks.seeds == 1 else "all"


def student_t(df_M: Floats, quantile: float) -> Floats:
    """Quantiles of Student's t; NaN where the degrees of freedom are not positive."""
    with np.errstate(invalid="ignore"):
        result: Floats = stdtrit(np.where(df_M > 0, df_M, np.nan), quantile)
    return result


def _skewed(t_M: Floats, skewness_M: Floats) -> Floats:
    """The quantiles of a t statistic of skewed values: Hall's monotone cubic transformation, inverted.

    Hall (1992), "On the removal of skewness by transformation", J. R. Stat. Soc. B 54, 221-228.
    """
    is_skewed = np.abs(skewness_M) > 1e-6  # below, the quotient would lose its digits
    a_M = np.where(is_skewed, skewness_M, 1.0)
    return np.where(is_skewed, 3.0 / a_M * (np.cbrt(1.0 + a_M * (t_M - a_M / 6.0)) - 1.0), t_M)


def _moments(values_MN: Floats) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """Mean, standard deviation and number of the values that are not NaN."""
    is_known = ~np.isnan(values_MN)
    n_M = is_known.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_M = np.where(is_known, values_MN, 0.0).sum(axis=1) / n_M
        squares_M = np.where(is_known, (values_MN - mean_M[:, None]) ** 2, 0.0).sum(axis=1)
        sd_M = np.sqrt(squares_M / np.where(n_M > 1, n_M - 1, np.nan))
    return mean_M, sd_M, n_M


@dataclass(frozen=True)
class SamplingError:
    """How means of pictures vary over other samples; all arrays are (M,), NaN where nothing can be told.

    Args:
        se: standard error.
        df: its degrees of freedom.
        clusters: number of independent units, the fewer of both kinds where prompts and seeds are random.
        skewness: of the mean's distribution.
    """

    se: Floats
    df: Floats
    clusters: NDArray[np.intp]
    skewness: Floats


def sampling_error(mean_MPS: Floats, count_MPS: Floats, crossed: bool, scope: Scope) -> SamplingError:
    """The sampling error of each setting's overall mean within a scope.

    Args:
        mean_MPS: (M, P, S) as :meth:`sega_bench.stats.blocks.Blocks.pictures` returns it.
        count_MPS: (M, P, S) from there too.
        crossed: whether the prompts share their seeds.
        scope: any but ``auto``.
    """
    total_M = count_MPS.sum(axis=(1, 2), keepdims=True)
    share_MPS = count_MPS / np.maximum(total_M, 1.0)
    centre_M = (share_MPS * mean_MPS).sum(axis=(1, 2), keepdims=True)
    # Deviations from the overall mean: sums of squares of the values themselves would cancel.
    deviation_MPS = np.where(count_MPS > 0, mean_MPS - centre_M, 0.0)
    # Rounding leaves 1e-17 where all values are equal, and its skewness would be anything.
    scale_M = np.abs(np.where(count_MPS > 0, mean_MPS, 0.0)).max(axis=(1, 2), initial=0.0)[:, None, None]
    deviation_MPS = np.where(np.abs(deviation_MPS) > 1e-14 * scale_M, deviation_MPS, 0.0)
    if scope == "seeds":
        variance_M, third_M, df_M, clusters_M = _fixed_prompts(deviation_MPS, share_MPS, crossed)
    elif scope == "prompts" and crossed:
        swapped = np.swapaxes(deviation_MPS, 1, 2), np.swapaxes(share_MPS, 1, 2)
        variance_M, third_M, df_M, clusters_M = _fixed_prompts(*swapped, crossed=True)
    elif crossed:
        variance_M, third_M, df_M, clusters_M = _two_way(deviation_MPS, share_MPS)
    else:
        influence_MP = (share_MPS * deviation_MPS).sum(axis=2)
        variance_M, third_M, df_M, clusters_M = _one_way(influence_MP, (share_MPS > 0).any(axis=2))
    se_M = np.sqrt(variance_M)
    with np.errstate(invalid="ignore", divide="ignore"):
        skewness_M = np.where(se_M > 0, third_M / se_M**3, 0.0)
    return SamplingError(se_M, df_M, clusters_M, skewness_M)


_Moments = tuple[Floats, Floats, Floats, NDArray[np.intp]]
"""Second and third cumulant of a mean, degrees of freedom, number of independent units."""


def _one_way(influence_MG: Floats, is_there_MG: NDArray[np.bool_]) -> _Moments:
    """Cumulants of a sum of G independent influences whose mean is zero, from the influences themselves."""
    clusters_M = is_there_MG.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        factor_M = np.where(clusters_M > 1, clusters_M / (clusters_M - 1), np.nan)
    variance_M = factor_M * (influence_MG**2).sum(axis=1)
    return variance_M, _third_cumulant(influence_MG, clusters_M), clusters_M - 1.0, clusters_M


def _third_cumulant(influence_MG: Floats, n_M: NDArray[np.intp]) -> Floats:
    """Unbiased third cumulant of a sum of ``n`` independent influences.

    It counts as 0 for fewer than :data:`FEWEST_FOR_SKEWNESS`.
    """
    factor_M = n_M**2 / np.where(n_M >= FEWEST_FOR_SKEWNESS, (n_M - 1.0) * (n_M - 2.0), np.inf)
    result: Floats = factor_M * (influence_MG**3).sum(axis=-1)
    return result


def _fixed_prompts(deviation_MPS: Floats, share_MPS: Floats, crossed: bool) -> _Moments:
    """Cumulants over seeds alone: each prompt's own mean is taken off first."""
    is_there_MPS = share_MPS > 0
    share_MP = share_MPS.sum(axis=2, keepdims=True)
    centre_MP = (share_MPS * deviation_MPS).sum(axis=2, keepdims=True) / np.where(share_MP > 0, share_MP, 1.0)
    within_MPS = np.where(is_there_MPS, deviation_MPS - centre_MP, 0.0)
    n_MP = is_there_MPS.sum(axis=2)
    if crossed:
        # A prompt that lacks seeds has smaller residuals than the others, by n - 1 over n.
        seeds_M = is_there_MPS.any(axis=1).sum(axis=1)[:, None]
        own_MP, all_M = np.maximum(n_MP, 2), np.maximum(seeds_M, 2)
        lost_MP = np.sqrt(own_MP / (own_MP - 1) * (all_M - 1) / all_M)
        influence_MPS = share_MPS * within_MPS * lost_MP[:, :, None]
        is_there_MS: NDArray[np.bool_] = np.any(is_there_MPS, axis=1)
        return _one_way(influence_MPS.sum(axis=1), is_there_MS)
    influence_MPS = share_MPS * within_MPS
    df_MP = np.maximum(n_MP - 1.0, 0.0)
    df_M = df_MP.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        # A prompt with a single seed borrows the variance that the others have on average.
        pooled_M = (within_MPS**2).sum(axis=(1, 2)) / np.where(df_M > 0, df_M, np.nan)
        own_MP = n_MP / df_MP * (influence_MPS**2).sum(axis=2)
        borrowed_MP = pooled_M[:, None] * (share_MPS**2).sum(axis=2)
        part_MP = np.where(df_MP > 0, own_MP, borrowed_MP)
        part_df_MP = np.where(df_MP > 0, df_MP, df_M[:, None])
        variance_M = part_MP.sum(axis=1)
        spread_M = (part_MP**2 / part_df_MP).sum(axis=1)
        welch_M = np.where(spread_M > 0, variance_M**2 / spread_M, df_M)
    third_M = _third_cumulant(influence_MPS, n_MP).sum(axis=1)
    return variance_M, third_M, welch_M, n_MP.sum(axis=1)


def _two_way(deviation_MPS: Floats, share_MPS: Floats) -> _Moments:
    """Cumulants over prompts and seeds, both random and crossed."""
    is_there_MPS = share_MPS > 0
    prompts_M, seeds_M = is_there_MPS.any(axis=2).sum(axis=1), is_there_MPS.any(axis=1).sum(axis=1)
    residual_df_M = is_there_MPS.sum(axis=(1, 2)) - prompts_M - seeds_M + 1
    of_prompt_M, of_seed_M, of_residual_M = _variance_components(deviation_MPS, is_there_MPS)
    prompt_M = of_prompt_M * (share_MPS.sum(axis=2) ** 2).sum(axis=1)
    seed_M = of_seed_M * (share_MPS.sum(axis=1) ** 2).sum(axis=1)
    residual_M = of_residual_M * (share_MPS**2).sum(axis=(1, 2))
    variance_M = prompt_M + seed_M + residual_M
    with np.errstate(invalid="ignore", divide="ignore"):
        # Satterthwaite: the variance is a sum of mean squares, (prompt) + (seed) - (residual).
        spread_M = (
            (prompt_M + residual_M) ** 2 / (prompts_M - 1)
            + (seed_M + residual_M) ** 2 / (seeds_M - 1)
            + residual_M**2 / residual_df_M
        )
        df_M = variance_M**2 / np.where(spread_M > 0, spread_M, np.nan)
    # Without a component two of the mean squares cancel, and the degrees of freedom are those of the third.
    no_prompt_M, no_seed_M = prompt_M == 0, seed_M == 0
    df_M = np.select(
        [no_prompt_M & no_seed_M, no_prompt_M, no_seed_M], [residual_df_M, seeds_M - 1, prompts_M - 1], df_M
    )
    influence_MPS = share_MPS * deviation_MPS
    third_M = _third_cumulant(influence_MPS.sum(axis=2), prompts_M)
    third_M = third_M + _third_cumulant(influence_MPS.sum(axis=1), seeds_M)
    return variance_M, third_M, np.where(np.isnan(variance_M), np.nan, df_M), np.minimum(prompts_M, seeds_M)


def _variance_components(
    deviation_MPS: Floats, is_there_MPS: NDArray[np.bool_]
) -> tuple[Floats, Floats, Floats]:
    """Variances of prompt, seed and residual, never negative; NaN where the design cannot tell them apart."""
    prompt_n, seed_n = is_there_MPS.sum(axis=2), is_there_MPS.sum(axis=1)
    prompts, seeds = (prompt_n > 0).sum(axis=1), (seed_n > 0).sum(axis=1)
    n = np.maximum(prompt_n.sum(axis=1), 1)
    mean_square = deviation_MPS.sum(axis=(1, 2)) ** 2 / n
    squares_M3 = np.stack(
        [
            (deviation_MPS.sum(axis=2) ** 2 / np.maximum(prompt_n, 1)).sum(axis=1) - mean_square,
            (deviation_MPS.sum(axis=1) ** 2 / np.maximum(seed_n, 1)).sum(axis=1) - mean_square,
            (deviation_MPS**2).sum(axis=(1, 2)) - mean_square,
        ],
        axis=1,
    )
    prompt_k, seed_k = (prompt_n**2).sum(axis=1) / n, (seed_n**2).sum(axis=1) / n
    # The expected sums of squares (prompts, seeds, total) in terms of the three components.
    expected_33M = np.array(
        [
            [n - prompt_k, prompts - seed_k, prompts - 1],
            [seeds - prompt_k, n - seed_k, seeds - 1],
            [n - prompt_k, n - seed_k, n - 1],
        ],
        dtype=np.float64,
    )
    expected_M33 = np.moveaxis(expected_33M, 2, 0)
    is_solvable = (prompts > 1) & (seeds > 1) & (n > prompts + seeds - 1)
    is_solvable &= np.abs(np.linalg.det(expected_M33 / n[:, None, None])) > 1e-9
    expected_M33 = np.where(is_solvable[:, None, None], expected_M33, np.eye(3))
    components_M3 = np.linalg.solve(expected_M33, squares_M3[..., None])[..., 0]
    # A component that is zero comes out as 1e-17 of the total, and would count as one that is there.
    components_M3 = np.where(components_M3 > 1e-12 * squares_M3[:, 2:], components_M3, 0.0)
    of_prompt, of_seed, of_residual = np.where(is_solvable[:, None], components_M3, np.nan).T
    return of_prompt, of_seed, of_residual

"""Comparisons of many settings at once, in pairs of the same prompt, seed and concept. Pure and seeded.

Comparing 20 settings at 95 % each finds a difference in most sweeps where there is none. Here the bounds of
one call hold *all at once*: the probability that any of them fails is 5 %.

Each comparison has its own variance, since a strong setting varies more than a weak one. Its bound lies a
quantile of Student's t away, at an error rate that is the same for all: the one at which the smallest
p-value of correlated comparisons without any difference falls below it in 5 % of the sweeps. It is never
below Bonferroni's.

Shapes: M settings, N values of each on the same N units (NaN where one is missing), B clusters, R draws.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import nctdtrinc, stdtr

from sega_bench.stats.blocks import Blocks, Bools, Floats
from sega_bench.stats.proportions import Side, effective_size
from sega_bench.stats.random_effects import FEWEST_PROMPTS, Scope, resolve_scope, sampling_error, student_t

_DRAWS = 4000
_NO_SPREAD = 1e-12
_MOST_DF = 12
"""Most degrees of freedom that are simulated: with more, the error rate hardly changes."""

_CANDIDATE_SHARE = 0.5
"""Probability with which a setting that is worse than the best by just the margin becomes a candidate."""


@dataclass(frozen=True)
class Comparisons:
    """Differences of settings to one reference; all arrays are (M,).

    Args:
        difference: mean over the pairs that both have; NaN without one.
        low, high: simultaneous bounds, infinite on a side that was not asked for; NaN where there is none.
        se: standard error of the difference.
        df: its degrees of freedom; infinite for shares.
        n: number of pairs.
        error_rate: probability with which one bound fails alone, by which all hold at once.
        scope: see :mod:`sega_bench.stats.random_effects`.
    """

    difference: Floats
    low: Floats
    high: Floats
    se: Floats
    df: Floats
    n: NDArray[np.intp]
    error_rate: float
    scope: Scope

    @property
    def differs(self) -> Bools:
        """Which settings are shown to differ from the reference."""
        result: Bools = (self.low > 0) | (self.high < 0)
        return result


@dataclass(frozen=True)
class BestComparisons:
    """Every setting against the best one, which the data chose; all arrays are (M,).

    Args:
        best: place of the setting with the largest mean difference to the others; None without any value.
        difference: to ``best``, over the pairs that both have.
        low: simultaneous lower bound of the setting minus the truly best one, at most 0; NaN where there is
            none, and with a margin for settings that are no candidates.
        may_be_best: whether the setting is not shown to be worse than ``best``. Among equally good settings
            none is excluded, with the level's probability.
        is_candidate: without a margin every setting that has values. With one: those within it by their mean.
        scope: see :mod:`sega_bench.stats.random_effects`.
    """

    best: int | None
    difference: Floats
    low: Floats
    may_be_best: Bools
    is_candidate: Bools
    scope: Scope


def compare_with_reference(
    values_MN: Floats,
    reference_N: Floats,
    prompt_N: NDArray[Any],
    seed_N: NDArray[Any],
    level: float = 0.95,
    side: Side = "both",
    scope: Scope = "auto",
    shares: bool = False,
) -> Comparisons:
    """Differences of M settings to a reference that was chosen *before* looking at these values.

    All M bounds (2 M of both sides) hold at once with probability ``level``: Dunnett's (1955) comparison
    with a control, for paired values of unequal variances. Settings with the same values count as one.

    Args:
        values_MN: (M, N) values.
        reference_N: (N,) values of the reference on the same units.
        prompt_N: (N,) labels.
        seed_N: (N,) labels.
        level: simultaneous confidence.
        side: which bounds.
        scope: see :func:`sega_bench.stats.random_effects.mean_intervals`.
        shares: whether the values are successes between 0 and 1: then a difference of zero in every pair
            still has an interval (Bonett and Price 2012), and the trials are the effective ones of
            :func:`sega_bench.stats.proportions.effective_size`.
    """
    sample = _Sample.of(prompt_N, seed_N, scope, shares)
    pairs = sample.pairs(np.asarray(values_MN, dtype=np.float64) - np.asarray(reference_N, dtype=np.float64))
    rate = pairs.error_rate(1 - level, two_sided=side == "both")
    margin_M = pairs.half_width(rate)
    low_M, high_M = pairs.centre - margin_M, pairs.centre + margin_M
    if shares:
        low_M, high_M = np.maximum(low_M, -1.0), np.minimum(high_M, 1.0)
    return Comparisons(
        pairs.difference,
        np.where(np.isnan(low_M) | (side != "upper"), low_M, -np.inf),
        np.where(np.isnan(high_M) | (side != "lower"), high_M, np.inf),
        pairs.se,
        pairs.df,
        pairs.n,
        rate,
        sample.scope,
    )


def compare_with_best(
    values_MN: Floats,
    prompt_N: NDArray[Any],
    seed_N: NDArray[Any],
    level: float = 0.95,
    scope: Scope = "auto",
    margin: float | None = None,
    shares: bool = False,
) -> BestComparisons:
    """Multiple comparisons with the best (Hsu 1984): how much worse than the truly best setting each may be.

    The best one is not known, and the data that choose it are the data that judge. Hsu's argument: whichever
    setting is truly the best, the one-sided comparisons of all others with *it* hold at once with probability
    ``level``. The lower bound of a setting is therefore its least over all that may be the best.

    Who is shown to be worse than the one that *came out* best is another question, for this one has the
    luck on its side: ``may_be_best`` has bounds of its own, with which 20 equal settings differ in 5 % of
    the sweeps.

    With a margin, the question is which settings are worse than the best by less than it (``low > -margin``).
    Only the candidates, whose mean is within the margin, are tested, at half the error rate: a setting that
    is worse by just the margin becomes a candidate with probability 1/2 (a conditional test: Ellis, Pecanka
    and Goeman 2020). A setting that is worse by the margin or more should then pass in ``1 - level`` of the
    sweeps at most; this is an approximation, checked by simulation. A setting that is no candidate moves the
    bounds of the others only while it may still be the best, and slightly through the error rate of
    ``may_be_best``.

    Args:
        values_MN: (M, N) values; larger is better.
        prompt_N: (N,) labels.
        seed_N: (N,) labels.
        level: simultaneous confidence.
        scope: see :func:`sega_bench.stats.random_effects.mean_intervals`.
        margin: how much worse is as good; None: all settings are compared.
        shares: see :func:`compare_with_reference`.
    """
    values_MN = np.asarray(values_MN, dtype=np.float64)
    sample = _Sample.of(prompt_N, seed_N, scope, shares)
    best = _best_on_shared_units(values_MN)
    none_M = np.full(len(values_MN), np.nan)
    if best is None:
        no_M = np.zeros(len(values_MN), dtype=bool)
        return BestComparisons(None, none_M, none_M, no_M, no_M, sample.scope)
    with_best = sample.pairs(values_MN - values_MN[best])
    chosen_rate = with_best.error_rate_of_chosen(values_MN, sample.blocks, 1 - level)
    with np.errstate(invalid="ignore"):
        # The best one among settings that lack values may be beaten on the pairs that both have.
        may_be_best_M = with_best.centre + with_best.half_width(chosen_rate) >= 0
        may_be_best_M |= with_best.difference >= 0
        candidate_M = with_best.n > 0 if margin is None else with_best.difference > -margin
    may_be_best_M[best] = candidate_M[best] = True
    judged = np.flatnonzero(candidate_M)
    tail = 1 - level if margin is None else _CANDIDATE_SHARE * (1 - level)
    rate = sample.pairs(values_MN[judged] - values_MN[best]).error_rate(tail)
    low = np.zeros(len(judged))
    for rival in np.flatnonzero(may_be_best_M):
        pairs = sample.pairs(values_MN[judged] - values_MN[rival])
        bound = np.where(judged == rival, 0.0, pairs.centre - pairs.half_width(rate))
        low = np.minimum(low, bound)  # NaN where a pair cannot be compared: nothing is known then
    none_M[judged] = np.maximum(low, -1.0) if shares else low
    return BestComparisons(best, with_best.difference, none_M, may_be_best_M, candidate_M, sample.scope)


def _best_on_shared_units(values_MN: Floats) -> int | None:
    """The setting with the largest mean, where units that not all have are adjusted for.

    Each value counts as its deviation from the mean of all settings on its unit, so that a setting is not
    praised for the easy units that it has.
    """
    is_known = ~np.isnan(values_MN)
    if not is_known.any():
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        unit_N = np.where(is_known, values_MN, 0.0).sum(axis=0) / is_known.sum(axis=0)
        mean_M = np.where(is_known, values_MN - unit_N, 0.0).sum(axis=1) / is_known.sum(axis=1)
    return int(np.nanargmax(np.round(mean_M, 12)))


@dataclass(frozen=True)
class _Sample:
    """The units that all settings share, and how their differences are judged."""

    blocks: Blocks
    scope: Scope
    shares: bool

    @classmethod
    def of(cls, prompt_N: NDArray[Any], seed_N: NDArray[Any], scope: Scope, shares: bool) -> _Sample:
        blocks = Blocks.of(prompt_N, seed_N)
        return cls(blocks, resolve_scope(blocks, scope), shares)

    def pairs(self, difference_MN: Floats) -> _Pairs:
        """Estimates of these differences."""
        means_MPS, counts_MPS = self.blocks.pictures(difference_MN)
        error = sampling_error(means_MPS, counts_MPS, self.blocks.crossed, self.scope)
        is_known = ~np.isnan(difference_MN)
        n_M = is_known.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_M = np.where(is_known, difference_MN, 0.0).sum(axis=1) / n_M
        if not self.shares:
            return _Pairs(mean_M, mean_M, error.se, error.df, n_M, means_MPS, counts_MPS)
        with np.errstate(invalid="ignore", divide="ignore"):
            better_M = np.where(is_known, np.maximum(difference_MN, 0.0), 0.0).sum(axis=1) / n_M
            worse_M = np.where(is_known, np.maximum(-difference_MN, 0.0), 0.0).sum(axis=1) / n_M
        pictures_M = (counts_MPS > 0).sum(axis=(1, 2))
        size_M = effective_size(error, better_M + worse_M - mean_M**2, n_M, pictures_M, 0.025)
        # Bonett and Price (2012): one more pair of either kind of disagreement.
        size_M = np.where(n_M > 0, size_M, np.nan) + 2
        better_M, worse_M = ((rate_M * (size_M - 2) + 1) / size_M for rate_M in (better_M, worse_M))
        centre_M = better_M - worse_M
        se_M = np.sqrt((better_M + worse_M - centre_M**2) / size_M)
        df_M = np.where(n_M > 0, np.inf, np.nan)
        return _Pairs(mean_M, centre_M, se_M, df_M, n_M, means_MPS, counts_MPS)


@dataclass(frozen=True)
class _Pairs:
    """Mean differences of settings, where their intervals are centred, and how sure they are: (M,) each."""

    difference: Floats
    centre: Floats
    se: Floats
    df: Floats
    n: NDArray[np.intp]
    means_MPS: Floats
    counts_MPS: Floats

    def half_width(self, error_rate: float) -> Floats:
        """How far a bound with this error rate lies from the centre."""
        with np.errstate(invalid="ignore"):
            df_M = np.where(np.isinf(self.df), 1e9, self.df)
            result: Floats = self.se * student_t(df_M, 1 - error_rate)
        return result

    def error_rate(self, tail: float, two_sided: bool = False) -> float:
        """Error rate of one bound at which all bounds of these differences hold at once, but for ``tail``.

        Settings with the same differences, and those without any difference or value, are not counted twice.
        """
        rows_MB = _distinct(np.where(self.counts_MPS > 0, self.means_MPS, np.nan), leave_out_zero=True)
        if len(rows_MB) < 2:
            return tail / 2 if two_sided else tail
        df = self._typical_df()
        return simultaneous_error_rate(_shrunk_covariance(rows_MB, df), df, tail, two_sided)

    def error_rate_of_chosen(self, values_MN: Floats, blocks: Blocks, tail: float) -> float:
        """The same for comparisons with the setting that comes out best of M equal ones."""
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a unit without any value
            means_MPS, counts_MPS = blocks.pictures(values_MN - np.nanmean(values_MN, axis=0))
        rows_MB = _distinct(np.where(counts_MPS > 0, means_MPS, np.nan), leave_out_zero=False)
        if len(rows_MB) < 3:
            return tail / 2
        df = self._typical_df()
        return error_rate_of_chosen(_shrunk_covariance(rows_MB, df), df, tail)

    def _typical_df(self) -> float:
        is_known_M = np.isfinite(self.se) & (self.n > 1)
        df_M = np.where(np.isinf(self.df), self.n - 1.0, self.df)[is_known_M]
        return float(np.median(df_M)) if len(df_M) else 1.0


def _distinct(values_MPS: Floats, leave_out_zero: bool) -> Floats:
    """The rows that have values, each once, in a fixed order; NaN where one is missing."""
    rows = values_MPS.reshape(len(values_MPS), -1)
    rows = np.unique(np.where(np.isnan(rows), np.inf, np.round(rows, 12)), axis=0)
    rows = np.where(np.isinf(rows), np.nan, rows)
    is_empty_M = np.isnan(rows).all(axis=1)
    if leave_out_zero:
        is_empty_M |= ((rows == 0) | np.isnan(rows)).all(axis=1)
    result: Floats = rows[~is_empty_M]
    return result


def _shrunk_covariance(rows_MB: Floats, df: float) -> Floats:
    """Covariance of the rows, its correlations shrunk towards none as far as they are noise.

    Few clusters look far more alike than they are, and too high a correlation would make too low a bound
    (Schäfer and Strimmer 2005).
    """
    known_MB = ~np.isnan(rows_MB)
    n_M = known_MB.sum(axis=1)
    mean_M = np.where(known_MB, rows_MB, 0.0).sum(axis=1) / n_M
    deviation_MB = np.where(known_MB, rows_MB - mean_M[:, None], 0.0)
    length_M = np.sqrt((deviation_MB**2).sum(axis=1))
    unit_MB = deviation_MB / np.where(length_M > 0, length_M, 1.0)[:, None]
    correlation_MM = np.clip(unit_MB @ unit_MB.T, -1.0, 1.0)
    squares = correlation_MM[~np.eye(len(rows_MB), dtype=bool)] ** 2
    # Twice the expected noise, to be cautious: with once, 6 to 7 % of simulated sweeps of four seeds
    # differed.
    noise = 2 * float(((1 - squares) ** 2).sum()) / max(df, 1.0)
    correlation_MM *= 1 - min(1.0, noise / max(float(squares.sum()), 1e-12))
    np.fill_diagonal(correlation_MM, 1.0)
    sd_M = length_M / np.sqrt(n_M)
    result: Floats = correlation_MM * np.outer(sd_M, sd_M)
    return result


def simultaneous_error_rate(covariance_MM: Floats, df: float, tail: float, two_sided: bool) -> float:
    """Error rate of each bound with which all bounds of M t statistics hold at once, but for ``tail``.

    Simulated with a fixed seed: means of normal values with this covariance, each with a standard error of
    its own. It lies between Bonferroni's and that of a single bound.
    """
    sides = 2 if two_sided else 1
    draws_RDM, df = _draws(covariance_MM, df)
    spread_RM = _root_mean_square(draws_RDM[:, 1:])
    # A comparison without variance has no t statistic: it cannot be the largest.
    t_RM = np.where(spread_RM > _NO_SPREAD, draws_RDM[:, 0] / np.maximum(spread_RM, _NO_SPREAD), 0.0)
    largest_R = (np.abs(t_RM) if two_sided else t_RM).max(axis=1)
    rate = stdtr(df, -float(np.quantile(largest_R, 1 - tail)))
    return float(np.clip(rate, tail / sides / len(covariance_MM), tail / sides))


def error_rate_of_chosen(covariance_MM: Floats, df: float, tail: float) -> float:
    """Error rate of each bound on what M equal settings lie below the one that chance made the best.

    With probability ``1 - tail`` none of them is shown to be worse. The chosen setting has the luck on its
    side: the rate is lower than that of comparisons with a setting chosen beforehand. Simulated like that
    one.
    """
    settings = len(covariance_MM)
    draws_RDM, df = _draws(covariance_MM, df)
    chosen_R11 = draws_RDM[:, 0].argmax(axis=1)[:, None, None]
    gap_RDM = np.take_along_axis(draws_RDM, chosen_R11, axis=2) - draws_RDM
    error_RM = _root_mean_square(gap_RDM[:, 1:])
    largest_R = (gap_RDM[:, 0] / np.where(error_RM > 0, error_RM, np.inf)).max(axis=1)
    rate = stdtr(df, -float(np.quantile(largest_R, 1 - tail)))
    return float(np.clip(rate, tail / settings / (settings - 1), tail / 2))


def _draws(covariance_MM: Floats, df: float) -> tuple[NDArray[np.float32], int]:
    """Normal draws of M settings, (R, 1 + df, M): a mean, and the contrasts that its variance is made of."""
    whole_df = min(max(1, round(df)), _MOST_DF)
    values_M, vectors_MM = np.linalg.eigh(covariance_MM)
    root_MM = (vectors_MM * np.sqrt(np.maximum(values_M, 0.0))).T.astype(np.float32)
    normal = np.random.default_rng(0).standard_normal(
        (_DRAWS * (whole_df + 1), len(values_M)), dtype=np.float32
    )
    return (normal @ root_MM).reshape(_DRAWS, whole_df + 1, -1), whole_df


def _root_mean_square(draws_RDM: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = np.sqrt(np.einsum("rdm,rdm->rm", draws_RDM, draws_RDM) / draws_RDM.shape[1])
    return result


def detectable(
    n_settings: int, n_seeds: int, n_prompts: int = 1, level: float = 0.95, power: float = 0.5
) -> float:
    """Smallest difference that a sweep can tell from none, in standard deviations of a paired difference.

    For the comparison of each setting with one of them, two-sided and simultaneous by Bonferroni, which is
    what the comparisons come to where few seeds say little about correlations. The deviation is that of one
    picture's difference. Of it, prompts, seeds and the residual are taken to have a third of the variance
    each where both prompts and seeds are random; else it is all from the seeds.

    Args:
        n_settings: number of settings, the reference included.
        n_seeds: number of seeds, shared by the prompts.
        n_prompts: number of prompts.
        level: simultaneous confidence.
        power: share of sweeps in which a difference of this size is told apart.

    Returns:
        NaN where nothing can be told apart: one setting, or one seed of fewer than three prompts.
    """
    if n_settings < 2:
        return float("nan")
    if n_prompts < FEWEST_PROMPTS or n_seeds < 2:
        units = n_prompts if n_prompts >= FEWEST_PROMPTS else n_seeds
        variance, df = 1 / max(units, 1), units - 1.0
    else:
        prompt, seed, residual = 1 / n_prompts / 3, 1 / n_seeds / 3, 1 / (n_prompts * n_seeds) / 3
        variance = prompt + seed + residual
        df = variance**2 / (
            (prompt + residual) ** 2 / (n_prompts - 1)
            + (seed + residual) ** 2 / (n_seeds - 1)
            + residual**2 / ((n_prompts - 1) * (n_seeds - 1))
        )
    if df < 1:
        return float("nan")
    critical = float(student_t(np.array([df]), 1 - (1 - level) / 2 / (n_settings - 1))[0])
    return float(nctdtrinc(df, 1 - power, critical)) * float(np.sqrt(variance))

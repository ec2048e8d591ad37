"""The verdict: the gentlest setting that works. The one rule behind every star, sentence and piece of advice.

A setting *works* if

(a) the concept arrives: the simultaneous lower bound of its success, or of its gain, lies above what an edit
    towards a meaningless text reaches (the placebo), and
(b) it is not inferior to the best one tried: the simultaneous lower bound of the paired difference to the
best
    is above minus the margin.

Of the settings that work the verdict is the one with the least cost; those whose cost cannot be told from it
are "as good". Cost is compared by its median over the pairs, so that no monotone rescaling of the score moves
the verdict. Pure functions of arrays.

Shapes: M settings, N pairs (one prompt, seed and concept set), B blocks (the units that are resampled).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sega_bench.stats.blocks import Blocks
from sega_bench.stats.multiple import compare_with_reference
from sega_bench.stats.proportions import Side
from sega_bench.stats.random_effects import resolve_scope
from sega_bench.stats.resampling import FEWEST_BLOCKS, bootstrap_counts, held_out_blocks

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

ALPHA = 0.05
"""Probability with which any of the simultaneous bounds may be wrong."""

RESAMPLES = 200
"""How often the choice is made again to see how sure it is."""

_NO_COST = 1e-6


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on.

    Args:
        success_MN: share of an edit's concepts that were achieved, in [0, 1]; None without a judge.
        gain_MN: gain of the concepts' score over the unedited image.
        cost_MN: how far the image moved; None where no cost was scored.
        prompt_N, seed_N: each pair's prompt and seed.
        success_floor: success that an edit reaches without doing anything.
        gain_floor: gain that an edit towards a meaningless text reaches.
        margin: what counts as not inferior: absolute for success, relative to the best for gain.
    """

    success_MN: Floats | None
    gain_MN: Floats
    cost_MN: Floats | None
    prompt_N: NDArray[Any]
    seed_N: NDArray[Any]
    success_floor: float = 0.0
    gain_floor: float = 0.0
    margin: float = 0.05

    @property
    def headline_MN(self) -> Floats:
        """The score by which settings work: success if there is a judge, else gain."""
        return self.gain_MN if self.success_MN is None else self.success_MN

    @property
    def allowed_loss(self) -> float:
        """The margin in units of the headline."""
        if self.success_MN is not None:
            return self.margin
        means_M = row_means(self.gain_MN)
        best = np.nanmax(means_M) if np.isfinite(means_M).any() else math.nan
        return self.margin * max(float(best), 0.0)


@dataclass(frozen=True)
class Verdict:
    """The setting to use, and how sure that is.

    Args:
        setting: index of the gentlest setting that works; None if none does.
        best_tried: index of the setting with the best headline; None without any score.
        works: (M,) settings that work.
        as_good: (M,) working settings whose cost cannot be told from the verdict's; without it.
        chosen_share: (M,) share of resamples in which each setting is the verdict; NaN for fewer than two
            blocks.
        expected: headline of what the other blocks choose, on each block; NaN for fewer than
            :data:`FEWEST_BLOCKS`.
        reached: headline of the verdict on all blocks; NaN without one.
        arrives: (M,) settings that meet (a).
        is_tested: whether bounds could be computed. If not, the point estimates decide.
    """

    setting: int | None
    best_tried: int | None
    works: Bools
    as_good: Bools
    chosen_share: Floats
    expected: float
    reached: float
    arrives: Bools
    is_tested: bool

    @property
    def sureness(self) -> float:
        """Share of resamples that choose the verdict or a setting as good."""
        if self.setting is None:
            return math.nan
        return float(self.chosen_share[self.setting] + self.chosen_share[self.as_good].sum())


def judge(evidence: Evidence, resamples: int = RESAMPLES) -> Verdict:
    """The verdict on these settings.

    Args:
        evidence: their scores.
        resamples: how often the choice is made again; 0 leaves out how sure it is.
    """
    rule = _Rule(evidence)
    choice = rule.choose(np.ones(len(evidence.prompt_N)))
    return Verdict(
        choice.setting,
        choice.best,
        choice.works_M,
        rule.as_good(choice),
        _chosen_share(rule, evidence, resamples),
        _expected(rule, evidence) if resamples else math.nan,
        math.nan if choice.setting is None else float(row_means(evidence.headline_MN)[choice.setting]),
        choice.arrives_M,
        rule.is_tested,
    )


@dataclass(frozen=True)
class _Choice:
    setting: int | None
    best: int | None
    works_M: Bools
    arrives_M: Bools


class _Rule:
    """The rule with its standard errors, which are those of all blocks in each resample too."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._allowed = evidence.allowed_loss
        self._reach: dict[int, Floats] = {}
        self._headline = evidence.headline_MN
        arrive = [(evidence.gain_MN, evidence.gain_floor)]
        if evidence.success_MN is not None:
            arrive.append((evidence.success_MN, evidence.success_floor))
        # Two chances to arrive: each has half of alpha.
        self._arrive = [
            (scores_MN, floor, self._half_width(scores_MN, ALPHA / len(arrive)))
            for scores_MN, floor in arrive
        ]

    @property
    def is_tested(self) -> bool:
        """Whether there are blocks enough for a bound."""
        blocks = Blocks.of(self._evidence.prompt_N, self._evidence.seed_N)
        scope = resolve_scope(blocks, "auto")
        return (blocks.seeds if scope == "seeds" else blocks.prompts) > 1

    def choose(self, weight_N: Floats) -> _Choice:
        """The verdict with the pairs weighted."""
        mean_M = row_means(self._headline, weight_N)
        nothing_M = np.zeros(len(mean_M), dtype=bool)
        if not np.isfinite(mean_M).any():
            return _Choice(None, None, nothing_M, nothing_M)
        best = self._best(mean_M, weight_N)
        arrives_M = nothing_M.copy()
        for scores_MN, floor, half_M in self._arrive:
            arrives_M |= np.nan_to_num(row_means(scores_MN, weight_N) - half_M, nan=-np.inf) > floor
        if self._evidence.success_MN is not None:
            # Gain alone does not make an edit work that the judge never sees succeed.
            success_M = row_means(self._evidence.success_MN, weight_N)
            arrives_M &= np.nan_to_num(success_M, nan=-np.inf) > self._evidence.success_floor
        difference_M = row_means(self._headline - self._headline[best], weight_N)
        lower_M = difference_M - self._reach_of(best)
        works_M = arrives_M & (np.nan_to_num(lower_M, nan=-np.inf) > -self._allowed - 1e-12)
        # The best one tried is never inferior to itself.
        works_M[best] = arrives_M[best]
        return _Choice(self._gentlest(works_M, mean_M, weight_N), best, works_M, arrives_M)

    def as_good(self, choice: _Choice) -> Bools:
        """Working settings whose cost cannot be told from the chosen one's; not the chosen one."""
        result_M = np.zeros_like(choice.works_M)
        cost_MN = self._evidence.cost_MN
        if choice.setting is None or cost_MN is None:
            return result_M
        others = np.flatnonzero(choice.works_M)
        others = others[others != choice.setting]
        if not len(others):
            return result_M
        # Ratios vary less from image to image than differences do. A cost of zero is no change at all.
        log_MN = np.log(np.maximum(cost_MN, _NO_COST))
        difference_MN = log_MN[others] - log_MN[choice.setting]
        half_M = self._half_width(difference_MN, ALPHA, "both")
        mean_M = row_means(difference_MN)
        is_told = np.where(half_M > 0, np.abs(mean_M) > half_M, ~np.isclose(mean_M, 0.0))
        # A costlier setting whose cost merely varies more is not as good as a cheaper one that is told apart.
        cost_C = row_means(cost_MN[others])
        result_M[others] = ~is_told & (cost_C < np.min(cost_C[is_told], initial=np.inf))
        return result_M

    def _best(self, mean_M: Floats, weight_N: Floats) -> int:
        """The best headline; of equals the one that gains most."""
        gain_M = np.nan_to_num(row_means(self._evidence.gain_MN, weight_N), nan=-np.inf)
        order = np.lexsort((gain_M, np.round(np.nan_to_num(mean_M, nan=-np.inf), 9)))
        return int(order[-1])

    def _gentlest(self, works_M: Bools, mean_M: Floats, weight_N: Floats) -> int | None:
        """The working setting of least cost; without a cost, of the best headline."""
        if not works_M.any():
            return None
        candidates = np.flatnonzero(works_M)
        cost_MN = self._evidence.cost_MN
        if cost_MN is None or not np.isfinite(cost_MN[candidates]).any():
            return int(candidates[np.argmax(mean_M[candidates])])
        cost_C = np.array([_median(cost_MN[m], weight_N) for m in candidates])
        gain_C = row_means(self._evidence.gain_MN[candidates], weight_N)
        return int(candidates[np.lexsort((-np.nan_to_num(gain_C), np.nan_to_num(cost_C, nan=np.inf)))[0]])

    def _reach_of(self, best: int) -> Floats:
        """Half widths of the differences to the best one; zero where every pair agrees."""
        if best not in self._reach:
            difference_MN = self._headline - self._headline[best]
            self._reach[best] = self._half_width(difference_MN, ALPHA)
        return self._reach[best]

    def _half_width(self, values_MN: Floats, alpha: float, side: Side = "lower") -> Floats:
        """Distance from each mean to its simultaneous bound.

        Where no bound can be computed, as for a single block, it is zero: the point estimates decide.
        """
        mean_M = row_means(values_MN)
        if not self.is_tested or not np.isfinite(mean_M).any():
            return np.where(np.isnan(mean_M), np.nan, 0.0)
        zero_N = np.zeros(values_MN.shape[1])
        prompt_N, seed_N = self._evidence.prompt_N, self._evidence.seed_N
        bounds = compare_with_reference(values_MN, zero_N, prompt_N, seed_N, 1 - alpha, side)
        half_M = bounds.difference - bounds.low
        # Too few shared pairs for a bound prove nothing.
        result_M: Floats = np.where(np.isnan(half_M), np.inf, half_M)
        return result_M


def row_means(values_MN: Floats, weight_N: Floats | None = None) -> Floats:
    """Mean of each row's values that are not NaN; NaN without one."""
    weight_N = np.ones(values_MN.shape[1]) if weight_N is None else weight_N
    is_known = ~np.isnan(values_MN)
    total_M = is_known @ weight_N
    with np.errstate(invalid="ignore", divide="ignore"):
        means_M: Floats = np.where(is_known, values_MN, 0.0) @ weight_N / total_M
    return means_M


def _median(values_N: Floats, weight_N: Floats) -> float:
    """The lower weighted median, which every monotone rescaling carries along."""
    is_known = ~np.isnan(values_N) & (weight_N > 0)
    if not is_known.any():
        return math.nan
    values, weights = values_N[is_known], weight_N[is_known]
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


def _chosen_share(rule: _Rule, evidence: Evidence, resamples: int) -> Floats:
    """The share of bootstrap resamples of prompts and seeds in which each setting is chosen."""
    settings = len(evidence.gain_MN)
    if not rule.is_tested or not resamples:
        return np.full(settings, math.nan)
    counts_RN = bootstrap_counts(evidence.prompt_N, evidence.seed_N, resamples)
    chosen = [rule.choose(weight_N.astype(np.float64)).setting for weight_N in counts_RN]
    counts_M = np.bincount([m for m in chosen if m is not None], minlength=settings)
    return counts_M / resamples


def _expected(rule: _Rule, evidence: Evidence) -> float:
    """Mean headline on each held-out block of what the other blocks choose; NaN of too few blocks."""
    splits_KN = held_out_blocks(evidence.prompt_N, evidence.seed_N)
    if len(splits_KN) < FEWEST_BLOCKS:
        return math.nan
    return _mean([*_held_out(rule, evidence, splits_KN)])


def _held_out(rule: _Rule, evidence: Evidence, splits_KN: Bools) -> Iterator[float]:
    for is_held_out_N in splits_KN:
        chosen = rule.choose((~is_held_out_N).astype(np.float64)).setting
        if chosen is not None:
            yield _mean(evidence.headline_MN[chosen, is_held_out_N])


def _mean(values: Any) -> float:
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else math.nan

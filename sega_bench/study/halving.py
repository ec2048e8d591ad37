"""Which trials are given more: those on the front, or near it. Pure.

Successive halving (Jamieson and Talwalkar 2016) with a front in place of a rank, and with common random
numbers: all trials have seen the same blocks, so that the paired differences between two of them decide,
which vary far less than the scores do. A trial is dropped once another *covers* it: as far as the
differences can tell, it is better in no loss by more than a margin (epsilon-dominance, Laumanns et al. 2002).
So evaluations go to what the front would miss, and of near neighbours to one.

Shapes: T trials, B blocks that all of them were given, K losses, C constraints.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from sega_bench.stats.pareto import front
from sega_bench.study.objectives import Floats
from sega_bench.study.scoring import mean_of_known

CONFIDENCE = 0.6
"""Of each one-sided interval of a mean difference: all losses must agree, so that it may be low."""

MARGIN = 0.01
"""In terms of how far the front reaches in each loss: by so much a trial is better only next to nothing."""

_NONE = 1e-12
"""A reach that is none, but for rounding."""


def promoted(
    losses_TBK: Floats, candidates_T: NDArray[np.bool_], excess_TBC: Floats | None = None
) -> NDArray[np.bool_]:
    """Which of the candidates go on: the best trade-off first, then whatever none of those before covers.

    Args:
        losses_TBK: less the baseline's, so that means over different blocks can be compared; NaN where a
            block has failed. A trial without any loss neither goes on nor covers another.
        candidates_T: the trials in question; the others are given more already.
        excess_TBC: by how much each of C constraints is missed. A trial that clearly misses one is dropped,
            one that seems to miss it covers no other.
    """
    means_TK = mean_of_known(losses_TBK)
    keeps_T: NDArray[np.bool_] = np.all(np.isfinite(means_TK), axis=1)
    may_keep_T = keeps_T
    if excess_TBC is not None:
        keeps_T = keeps_T & (mean_of_known(excess_TBC) <= 0).all(axis=1)
        may_keep_T = may_keep_T & ~(lower_bounds(excess_TBC) > 0).any(axis=1)
    on_T = front(np.where(keeps_T[:, None], means_TK, np.nan))
    reach_K = np.ptp(means_TK[on_T], axis=0) if on_T.any() else np.zeros(means_TK.shape[1])
    merit_T = (means_TK / np.where(reach_K > _NONE, reach_K, 1.0)).sum(axis=1)
    covering_T, goes_on_T = keeps_T & ~candidates_T, np.zeros_like(candidates_T)
    for trial in np.argsort(merit_T, kind="stable"):
        if candidates_T[trial] and may_keep_T[trial]:
            behind_TBK = losses_TBK[trial] - losses_TBK[covering_T]
            is_covered_T = (lower_bounds(behind_TBK) >= -MARGIN * reach_K).all(axis=1)
            goes_on_T[trial] = not is_covered_T.any()
            covering_T[trial] = goes_on_T[trial] and keeps_T[trial]
    return goes_on_T


def lower_bounds(differences_TBK: Floats) -> Floats:
    """The lower end of the mean difference's interval over blocks, (T, K); -inf of fewer than two."""
    known_TK = np.isfinite(differences_TBK).sum(axis=1)
    mean_TK = mean_of_known(differences_TBK)
    squares_TK = mean_of_known((differences_TBK - mean_TK[:, None]) ** 2)
    freedom_TK = np.maximum(known_TK - 1, 1)
    bounds_TK = mean_TK - stdtrit(freedom_TK, CONFIDENCE) * np.sqrt(squares_TK / freedom_TK)
    return np.where(known_TK > 1, bounds_TK, -np.inf)


def resources(first: int, most: int) -> list[int]:
    """How many blocks a trial has in each round: twice as many as in the one before, until all."""
    rounds = [first]
    while rounds[-1] < most:
        rounds.append(min(2 * rounds[-1], most))
    return rounds

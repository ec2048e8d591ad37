"""Multi-objective successive halving: decides which trials of a rung are promoted. Pure.

Successive halving (Jamieson and Talwalkar 2016) promotes by rank. Here a trial is promoted unless another
one *covers* it: trial A covers trial B if, as far as the data can tell, B is better than A in no loss by more
than a margin (epsilon-dominance, Laumanns et al. 2002). Of several near neighbours one is promoted. All
trials have seen the same blocks (common random numbers), so they are compared by paired differences, which
vary far less than the scores.

Shapes: T trials, B blocks that all of them have seen, K losses, C constraints.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from sega_bench.stats.pareto import front
from sega_bench.study.objectives import Floats
from sega_bench.study.scoring import mean_over_blocks

CONFIDENCE = 0.6
"""Level of each one-sided interval of a mean difference; low, because all losses have to agree."""

MARGIN = 0.01
"""Epsilon of the dominance, as a share of the front's extent in each loss."""

_ZERO_EXTENT = 1e-12
"""An extent up to this is rounding."""


def promoted(
    losses_TBK: Floats, candidates_T: NDArray[np.bool_], violations_TBC: Floats | None = None
) -> NDArray[np.bool_]:
    """Select the candidates to promote, (T,), greedily from the best trade-off on.

    Args:
        losses_TBK: less the baseline's on the same block, so that means over different blocks are
            comparable; NaN where a block failed. A trial without losses is not promoted and covers nothing.
        candidates_T: the trials to decide on; the others have been promoted before.
        violations_TBC: constraint values, above 0 where violated. A trial that violates one for certain is
            not promoted; one that violates it on average covers nothing.
    """
    means_TK = mean_over_blocks(losses_TBK)
    is_feasible_T: NDArray[np.bool_] = np.all(np.isfinite(means_TK), axis=1)
    may_be_feasible_T = is_feasible_T
    if violations_TBC is not None:
        is_feasible_T = is_feasible_T & (mean_over_blocks(violations_TBC) <= 0).all(axis=1)
        may_be_feasible_T = may_be_feasible_T & ~(lower_bounds(violations_TBC) > 0).any(axis=1)
    on_front_T = front(np.where(is_feasible_T[:, None], means_TK, np.nan))
    extent_K = np.ptp(means_TK[on_front_T], axis=0) if on_front_T.any() else np.zeros(means_TK.shape[1])
    # A front of one point has no extent to scale by; its losses then count as they are.
    total_T = (means_TK / np.where(extent_K > _ZERO_EXTENT, extent_K, 1.0)).sum(axis=1)
    # Trials promoted before cover from the start, candidates from their promotion on.
    is_covering_T, is_promoted_T = is_feasible_T & ~candidates_T, np.zeros_like(candidates_T)
    for trial in np.argsort(total_T, kind="stable"):  # stable: ties go to the earlier trial on every machine
        if candidates_T[trial] and may_be_feasible_T[trial]:
            behind_TBK = losses_TBK[trial] - losses_TBK[is_covering_T]
            is_covered_T = (lower_bounds(behind_TBK) >= -MARGIN * extent_K).all(axis=1)
            is_promoted_T[trial] = not is_covered_T.any()
            is_covering_T[trial] = is_promoted_T[trial] and is_feasible_T[trial]
    return is_promoted_T


def lower_bounds(differences_TBK: Floats) -> Floats:
    """Lower ends of the mean differences' Student intervals over blocks, (T, K); -inf below two blocks."""
    count_TK = np.isfinite(differences_TBK).sum(axis=1)
    mean_TK = mean_over_blocks(differences_TBK)
    variance_TK = mean_over_blocks((differences_TBK - mean_TK[:, None]) ** 2)
    freedom_TK = np.maximum(count_TK - 1, 1)
    # The biased variance over n - 1 is the squared standard error of the mean.
    bounds_TK = mean_TK - stdtrit(freedom_TK, CONFIDENCE) * np.sqrt(variance_TK / freedom_TK)
    return np.where(count_TK > 1, bounds_TK, -np.inf)


def rungs(min_resource: int, max_resource: int) -> list[int]:
    """Number of blocks at each rung: doubled from rung to rung, ``max_resource`` at the last."""
    resources = [min_resource]
    while resources[-1] < max_resource:
        resources.append(min(2 * resources[-1], max_resource))
    return resources

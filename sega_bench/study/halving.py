"""Which trials are given more: those on the front, or near it. Pure.

Successive halving (Jamieson and Talwalkar 2016) with a front in place of a rank, and with common random
numbers: all trials have seen the same blocks, so that the paired differences between two of them decide,
which vary far less than the scores do. A trial is dropped once some other is better in every loss, as far as
the differences can tell.

Shapes: T trials, B blocks that all of them have seen, K losses, C constraints.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from sega_bench.study.objectives import Floats

CONFIDENCE = 0.6
"""Of each one-sided interval of a mean difference: all objectives must agree, so that it may be low."""


def promoted(
    losses_TBK: Floats, candidates_T: NDArray[np.bool_], excess_TBC: Floats | None = None
) -> NDArray[np.bool_]:
    """Which of the candidates go on.

    Args:
        losses_TBK: no loss is NaN of a trial that can be compared; one that has a NaN neither goes on nor
            keeps another from it.
        candidates_T: the trials in question; the others are only compared with.
        excess_TBC: by how much each of C constraints is missed. A trial that clearly misses one is dropped,
            one that seems to miss it drops no other.
    """
    known_T = np.isfinite(losses_TBK).all(axis=(1, 2))
    goes_on_T: NDArray[np.bool_] = candidates_T & known_T
    rivals_T = known_T
    if excess_TBC is not None:
        goes_on_T &= ~(lower_bounds(excess_TBC) > 0).any(axis=1)
        rivals_T = known_T & (excess_TBC.mean(axis=1) <= 0).all(axis=1)
    for trial in np.flatnonzero(goes_on_T):
        behind_TBK = losses_TBK[trial] - losses_TBK[rivals_T]
        goes_on_T[trial] = not (lower_bounds(behind_TBK) > 0).all(axis=1).any()
    return goes_on_T


def lower_bounds(differences_TBK: Floats) -> Floats:
    """The lower end of the mean difference's interval over blocks, (T, K); -inf of a single block."""
    blocks = differences_TBK.shape[1]
    if blocks < 2:
        return np.full(differences_TBK.shape[::2], -np.inf)
    error_TK = differences_TBK.std(axis=1, ddof=1) / np.sqrt(blocks)
    bounds: Floats = differences_TBK.mean(axis=1) - stdtrit(blocks - 1, CONFIDENCE) * error_TK
    return bounds


def resources(first: int, most: int) -> list[int]:
    """How many blocks a trial has in each round: twice as many as in the one before, until all."""
    rounds = [first]
    while rounds[-1] < most:
        rounds.append(min(2 * rounds[-1], most))
    return rounds

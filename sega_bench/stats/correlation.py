"""Rank correlation of two arrays. Pure."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def spearman(x: Floats, y: Floats) -> float:
    """Spearman's rank correlation of two arrays, (N,) each; ties have their mean rank.

    Pairs with a NaN are skipped. The result is NaN for fewer than three pairs (two points always lie on a
    line), and where either array is constant.
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

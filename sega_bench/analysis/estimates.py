"""Estimates over any rows of a sweep's table, as the paper's claims need them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sega_bench.analysis.best import (
    Criteria,
    StudyAnswers,
    find_row,
    judge_settings,
    needed_columns,
    recommended_setting,
)
from sega_bench.analysis.groups import ALL
from sega_bench.stats.correlation import spearman
from sega_bench.stats.intervals import Estimate
from sega_bench.stats.proportions import share_intervals
from sega_bench.stats.random_effects import mean_interval

Floats = NDArray[np.float64]


def mean_of(frame: pd.DataFrame, score: str) -> Estimate:
    """The mean of a score over any rows of :func:`sega_bench.load`'s table, with its interval."""
    return _estimate(_floats(frame[score]), frame)


def ratio_of(frame: pd.DataFrame, over: str, under: str) -> Estimate:
    """The sum of one score divided by the sum of another, over rows that have both.

    The interval is by linearisation. NaN where the divisor's sum is not positive.
    """
    taken = frame[frame[over].notna() & frame[under].notna()]
    over_N, under_N = _floats(taken[over]), _floats(taken[under])
    if not len(taken) or under_N.sum() <= 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan, len(taken))
    ratio = float(over_N.sum() / under_N.sum())
    influence = _estimate((over_N - ratio * under_N) / under_N.mean(), taken)
    return Estimate(ratio, math.nan, ratio + influence.low, ratio + influence.high, len(taken))


def share_of(frame: pd.DataFrame, score: str) -> Estimate:
    """The mean of a score in [0, 1] with a proportion's interval, which has a width where all succeed too."""
    taken = frame[frame[score].notna()]
    if taken.empty:
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0)
    share = share_intervals(_floats(taken[score])[None], taken["prompt"].to_numpy(), taken["seed"].to_numpy())
    return Estimate(float(share.mean[0]), math.nan, float(share.low[0]), float(share.high[0]), len(taken))


def correlations(frame: pd.DataFrame, axis: str, score: str, by: Sequence[str]) -> pd.DataFrame:
    """Spearman correlation of a score with an axis, for each image that is alike in ``by``.

    Returns:
        One row per combination of ``by`` that has three values or more: ``by`` and ``correlation``.
    """
    rows = []
    for values, curve in frame.groupby(list(by), sort=False, dropna=False)[[axis, score]]:
        correlation = spearman(_floats(curve[axis]), _floats(curve[score]))
        if np.isfinite(correlation):
            rows.append(dict(zip(by, values, strict=True)) | {"correlation": correlation})
    return pd.DataFrame(rows, columns=[*by, "correlation"])


def at_best(
    edited: pd.DataFrame, axes: Sequence[str], answers: StudyAnswers, criteria: Criteria
) -> pd.DataFrame:
    """The rows of the best setting over all concept sets: the verdict's, or the one that a study recommends.

    Args:
        edited: edited rows that are done.
        axes: the columns that vary; without any, all rows are those of the only setting.
        answers: a study's answers; None for a sweep.
        criteria: by which settings are judged.
    """
    if not axes or edited.empty:
        return edited
    judged = judge_settings(
        edited[needed_columns(edited, axes, criteria)].assign(status="done"), axes, criteria
    )
    matrix, best = judged.matrix, judged.verdict.setting
    if answers is not None:
        best = find_row(matrix.settings, recommended_setting(answers, ALL))
    return edited.iloc[:0] if best is None else edited[matrix.row_of == best]


def _estimate(values_N: Floats, frame: pd.DataFrame) -> Estimate:
    if not np.isfinite(values_N).any():
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0)
    interval = mean_interval(values_N, frame["prompt"].to_numpy(), frame["seed"].to_numpy())
    return Estimate(interval.mean, interval.sd, interval.low, interval.high, interval.n)


def _floats(column: pd.Series[Any]) -> Floats:
    return column.to_numpy(dtype=np.float64, na_value=np.nan)

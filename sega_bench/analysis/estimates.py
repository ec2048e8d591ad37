"""Estimates over any rows of a sweep's table, as the paper's claims ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sega_bench.analysis.best import StudyAnswers, find_row, recommended_setting
from sega_bench.analysis.groups import ALL, Groups, anchored_means, sampling_units
from sega_bench.analysis.summary import COST, GAIN
from sega_bench.stats.correlation import spearman
from sega_bench.stats.intervals import Estimate, estimate, ratio, wilson
from sega_bench.stats.pareto import knee


def mean_of(frame: pd.DataFrame, score: str) -> Estimate:
    """The mean of a score over any rows of :func:`load`'s table, its interval over prompts and seeds."""
    drawn = sampling_units(frame)
    return estimate(_floats(frame[score]), drawn["_draw"], drawn["_prompt"])


def ratio_of(frame: pd.DataFrame, over: str, under: str) -> Estimate:
    """One score in terms of another of the same rows, the interval over prompts and seeds."""
    drawn = sampling_units(frame)
    return ratio(_floats(frame[over]), _floats(frame[under]), drawn["_draw"], drawn["_prompt"])


def share_of(frame: pd.DataFrame, score: str) -> Estimate:
    """The mean of a score between 0 and 1, with Wilson's interval, which is one where all succeed too.

    Rows of one prompt and seed are not independent of each other, so there are as many trials as of those.
    """
    taken = frame[frame[score].notna()]
    mean, trials = float(taken[score].mean()), len(np.unique(sampling_units(taken)["_draw"]))
    return Estimate(mean, float("nan"), *wilson(mean * trials, trials), len(taken))


def correlations(frame: pd.DataFrame, axis: str, score: str, by: Sequence[str]) -> pd.DataFrame:
    """Spearman correlation of a score with an axis, one for each image that is alike in ``by``.

    Returns:
        One row for each combination of ``by`` that has three values or more: ``by`` and ``correlation``.
    """
    rows = []
    for values, curve in frame.groupby(list(by), sort=False, dropna=False)[[axis, score]]:
        found = spearman(_floats(curve[axis]), _floats(curve[score]))
        if np.isfinite(found):
            rows.append(dict(zip(by, values, strict=True)) | {"correlation": found})
    return pd.DataFrame(rows, columns=[*by, "correlation"])


def at_best(edited: pd.DataFrame, axes: Sequence[str], answers: StudyAnswers) -> pd.DataFrame:
    """The rows of the setting that is best over all concept sets; none if there is none.

    It is the knee of the front, or what a study found.
    """
    if not axes:
        return edited
    numbers = edited.groupby(list(axes), sort=False, dropna=False).ngroup()
    groups = Groups(edited.assign(status="done"), axes, [GAIN, COST])
    gain, cost = anchored_means(groups, GAIN), anchored_means(groups, COST)
    if answers is None:
        best = knee(np.column_stack([-gain, cost]))
    else:
        firsts = edited[list(axes)].groupby(numbers).head(1)
        best = find_row(firsts.to_dict("records"), recommended_setting(answers, ALL))
    return edited.iloc[:0] if best is None else edited[numbers == best]


def _floats(column: pd.Series[Any]) -> NDArray[np.float64]:
    return column.to_numpy(dtype=np.float64, na_value=np.nan)

"""Scores of a sweep as arrays: one row per setting, one column per pair of prompt, seed and concepts.

Shapes: M settings, N pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PAIR = ("prompt", "seed", "concepts")
"""What two settings' images must share to be compared."""


@dataclass(frozen=True)
class ScoreMatrix:
    """The scores of one concept set's edited cells, or of all, by setting and pair.

    Args:
        settings: (M,) the axes' values of each setting, in order of first appearance.
        prompt_N, seed_N, concepts_N: (N,) each pair's prompt, seed and concept set.
        row_of: (rows,) the setting of each of the table's rows.
        scores: the (M, N) arrays by name; NaN where a cell is missing, failed or not scored.
    """

    settings: Sequence[Mapping[str, Any]]
    prompt_N: NDArray[Any]
    seed_N: NDArray[Any]
    concepts_N: NDArray[Any]
    row_of: NDArray[np.intp]
    scores: Mapping[str, Floats]

    @classmethod
    def of(cls, edited: pd.DataFrame, axes: Sequence[str], names: Sequence[str]) -> ScoreMatrix:
        """The matrix of edited rows.

        Where several rows share a setting and a pair, as replays of several prompts do, their mean counts.

        Args:
            edited: rows of :func:`sega_bench.load`'s table.
            axes: the columns whose combinations of values are the settings; none: one setting.
            names: of the scores.
        """
        if axes:
            groups = edited.groupby(list(axes), sort=False, dropna=False)
            row_of = groups.ngroup().to_numpy().astype(np.intp)
            firsts = edited[list(axes)].iloc[np.unique(row_of, return_index=True)[1]]
            settings = [{str(k): v for k, v in row.items()} for row in firsts.to_dict("records")]
        else:
            row_of = np.zeros(len(edited), dtype=np.intp)
            settings = [{}] if len(edited) else []
        pair_of = edited.groupby(list(PAIR), sort=False).ngroup().to_numpy()
        firsts_N = np.unique(pair_of, return_index=True)[1]
        prompt_N, seed_N, concepts_N = (edited[name].to_numpy()[firsts_N] for name in PAIR)
        is_done = (edited["status"] == "done").to_numpy()
        shape = (len(settings), len(firsts_N))
        place = row_of * shape[1] + pair_of
        scores = {
            name: _mean_by_place(
                edited[name].to_numpy(dtype=np.float64, na_value=np.nan), is_done, place, shape
            )
            for name in names
        }
        return cls(settings, prompt_N, seed_N, concepts_N, row_of, scores)

    def __len__(self) -> int:
        return len(self.settings)

    def count(self, is_counted: NDArray[np.bool_]) -> NDArray[np.intp]:
        """How many of each setting's rows are flagged; (M,)."""
        return np.bincount(self.row_of[is_counted], minlength=len(self))

    def moments(self, values: Floats, is_done: NDArray[np.bool_]) -> tuple[Floats, Floats, NDArray[np.intp]]:
        """Mean, standard deviation and number of each setting's values that are not NaN; (M,) each."""
        is_known = is_done & ~np.isnan(values)
        place, known = self.row_of[is_known], values[is_known]
        n_M = np.bincount(place, minlength=len(self))
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_M = np.bincount(place, known, minlength=len(self)) / n_M
            squares_M = np.bincount(place, (known - mean_M[place]) ** 2, minlength=len(self))
            sd_M = np.sqrt(squares_M / np.where(n_M > 1, n_M - 1, np.nan))
        return mean_M, sd_M, n_M


def _mean_by_place(
    values: Floats, is_done: NDArray[np.bool_], place: NDArray[np.intp], shape: tuple[int, int]
) -> Floats:
    is_known = is_done & ~np.isnan(values)
    size = shape[0] * shape[1]
    counts = np.bincount(place[is_known], minlength=size)
    sums = np.bincount(place[is_known], values[is_known], minlength=size)
    with np.errstate(invalid="ignore"):
        means: Floats = (sums / counts).reshape(shape)
    return means


def _floats(column: pd.Series[Any]) -> Floats:
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def anchored_means(values_MN: Floats) -> Floats:
    """Each setting's mean score, as it would be on the pairs of the setting that has most of them; (M,).

    A setting that lacks pairs, because cells failed or are still to come, must not profit from their absence.
    It gets the other's mean plus its mean difference to it over the pairs that both have; NaN without any. A
    setting that lacks nothing gets its own mean.
    """
    counts_M = np.isfinite(values_MN).sum(axis=1)
    means_M = _nan_means(values_MN)
    if not len(counts_M) or not counts_M.max():
        return means_M
    anchor_N = values_MN[int(np.argmax(counts_M))]
    lacks_M = (counts_M > 0) & (counts_M < counts_M.max())
    shifted_M = _nan_means(anchor_N[None])[0] + _nan_means(values_MN - anchor_N)
    return np.where(lacks_M, shifted_M, means_M)


def _nan_means(values_MN: Floats) -> Floats:
    is_known = ~np.isnan(values_MN)
    with np.errstate(invalid="ignore"):
        means_M: Floats = np.where(is_known, values_MN, 0.0).sum(axis=1) / is_known.sum(axis=1)
    return means_M

"""Select the rows of a sweep that differ in one setting only, so that differences are due to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sega_bench.cell import READS

_ANY = -1
"""Code of a setting that a row's method does not read; it matches every value."""

_OF_METHODS = frozenset(name for names in READS.values() for name in names)


def comparable(edited: pd.DataFrame, axis: str, axes: Sequence[str]) -> pd.DataFrame:
    """The rows in which differences are due to one axis alone.

    Rows that agree in all other axes form a level. The result keeps the levels at which every value of the
    axis was run or, if none has all, those with the most values, and only these values. If axes are crossed,
    that is every row. If one setting at a time is varied, it is the rows around the base setting. If the
    axis only advances together with others, no level has two values, and every row is kept. Rows whose
    method does not read the axis are left out.

    Args:
        edited: edited rows, as :func:`sega_bench.analysis.frames.load` gives them.
        axis: one of ``axes``.
        axes: the sweep's.
    """
    others = [name for name in axes if name != axis]
    value_N = _places(edited, axis)
    levels_LO, level_N = np.unique(
        np.column_stack([np.zeros(len(edited), dtype=np.intp), *(_places(edited, name) for name in others)]),
        axis=0,
        return_inverse=True,
    )
    level_N = level_N.reshape(-1)
    tried: list[set[int]] = [set() for _ in levels_LO]
    for level, value in set(zip(level_N.tolist(), value_N.tolist(), strict=True)):
        if value != _ANY:
            tried[level].add(value)
    alike = {i: _alike(levels_LO, i) for i in np.flatnonzero((levels_LO == _ANY).any(axis=1)).tolist()}
    for i, places in alike.items():
        for place in places:
            tried[place] |= tried[i]
    most = max(tried, key=len, default=set())
    if len(most) < 2:
        return _kept(edited, value_N != _ANY)
    kept = {i for i, values in enumerate(tried) if values >= most}
    kept |= {i for i, places in alike.items() if kept & set(places)}
    return _kept(edited, np.isin(level_N, list(kept)) & np.isin(value_N, list(most)))


def _kept(edited: pd.DataFrame, which_N: NDArray[np.bool_]) -> pd.DataFrame:
    rows: pd.DataFrame = edited if which_N.all() else edited.loc[which_N]
    return rows


def _places(edited: pd.DataFrame, name: str) -> NDArray[np.intp]:
    """Each row's value as an integer code; null has a code of its own."""
    numbers = pd.factorize(edited[name], use_na_sentinel=False)[0]
    if name in _OF_METHODS:
        unread = [method for method in READS if name not in READS[method]]
        numbers[edited["method"].isin(unread).to_numpy()] = _ANY
    return numbers


def _alike(levels_LO: NDArray[np.intp], i: int) -> list[int]:
    """The other levels that a level with unread settings matches."""
    same = ((levels_LO == levels_LO[i]) | (levels_LO[i] == _ANY)).all(axis=1)
    same[i] = False
    return [int(place) for place in np.flatnonzero(same)]

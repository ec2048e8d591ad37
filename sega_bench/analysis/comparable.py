"""Which rows of a sweep may be compared: those that differ in one thing, and in nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sega_bench.cell import READS

_ANY = -1
"""In place of a setting that a row's method does not read: it is alike to every value."""

_OF_METHODS = frozenset(name for names in READS.values() for name in names)


def comparable(edited: pd.DataFrame, axis: str, axes: Sequence[str]) -> pd.DataFrame:
    """The rows in which one axis alone may be blamed for the differences.

    Rows that are alike in all other axes are a level. Kept are the levels at which every value of the axis
    was run or, where none has all, the most values, and of them those values. Of axes that are crossed that
    is every row; where one setting at a time is moved, the rows at the settings it is moved from. Where the
    axis only advances with others, no level has two values, and every row is kept. Rows whose method does not
    read the axis have no value of it, and are left out.

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
    found: list[set[int]] = [set() for _ in levels_LO]
    for level, value in set(zip(level_N.tolist(), value_N.tolist(), strict=True)):
        if value != _ANY:
            found[level].add(value)
    alike = {i: _alike(levels_LO, i) for i in np.flatnonzero((levels_LO == _ANY).any(axis=1)).tolist()}
    for i, places in alike.items():
        for place in places:
            found[place] |= found[i]
    most = max(found, key=len, default=set())
    if len(most) < 2:
        return _kept(edited, value_N != _ANY)
    kept = {i for i, values in enumerate(found) if values >= most}
    kept |= {i for i, places in alike.items() if kept & set(places)}
    return _kept(edited, np.isin(level_N, list(kept)) & np.isin(value_N, list(most)))


def _kept(edited: pd.DataFrame, which_N: NDArray[np.bool_]) -> pd.DataFrame:
    rows: pd.DataFrame = edited if which_N.all() else edited.loc[which_N]
    return rows


def _places(edited: pd.DataFrame, name: str) -> NDArray[np.intp]:
    """Each row's value as a number, null as one of its own."""
    numbers = pd.factorize(edited[name], use_na_sentinel=False)[0]
    if name in _OF_METHODS:
        unread = [method for method in READS if name not in READS[method]]
        numbers[edited["method"].isin(unread).to_numpy()] = _ANY
    return numbers


def _alike(levels_LO: NDArray[np.intp], i: int) -> list[int]:
    """The other levels that one which leaves settings open is alike to."""
    same = ((levels_LO == levels_LO[i]) | (levels_LO[i] == _ANY)).all(axis=1)
    same[i] = False
    return [int(place) for place in np.flatnonzero(same)]

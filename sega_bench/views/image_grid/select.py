"""Select what a sheet shows: its two axes, the values at which other axes are held, and its cells.

Rows are kept as indices into lists of values and are decoded only for a sheet that is drawn: a few hundred
of 100,000 cells.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sega_bench.analysis.results import Results
from sega_bench.analysis.values import concept_label_column, ordered_values, row_value
from sega_bench.errors import UserError, clean
from sega_bench.store import Store

SUBJECT = ("prompt", "concept", "seed")
"""Each combination of these has a sheet of its own, except one that is itself the columns or rows."""

ImageRow = Mapping[str, Any]
Rows = NDArray[np.intp]

_COLUMNS = ("key", "reference_key", "status", "image", "height", "width")


@dataclass(frozen=True)
class ImageTable:
    """A sweep's rows with comparable values: 5 equals 5.0, lists are tuples, null and NaN are None.

    Args:
        store: the folder.
        name: the sweep's.
        axes: each axis with its values, in their configured order.
        values: for each axis and each of :data:`SUBJECT` the values into which ``places`` are indices.
        places: one row per edited cell, one column per key of ``values``.
        edited: the other columns of those cells.
        references: the unedited rows, by key.
        best: the best setting's values; empty where there is none.
        together: the axes that advance together, so that few combinations of their values exist.
    """

    store: Store
    name: str
    axes: Mapping[str, Sequence[Hashable]]
    values: Mapping[str, Sequence[Hashable]]
    places: pd.DataFrame
    edited: pd.DataFrame
    references: Mapping[str, ImageRow]
    best: Mapping[str, Hashable]
    together: frozenset[str]

    def cells(self, rows: Rows) -> list[ImageRow]:
        """The edited rows at these positions, decoded."""
        places = self.places.iloc[rows]
        columns = {name: [values[place] for place in places[name]] for name, values in self.values.items()}
        columns |= {name: self.edited[name].iloc[rows].tolist() for name in _COLUMNS}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def only(self, keys: Collection[str]) -> ImageTable:
        """The table reduced to these edited cells, as if no others had been run."""
        where = self.edited["key"].isin(keys).to_numpy()
        places = self.places[where]
        there = {name: {self.values[name][place] for place in places[name].unique()} for name in self.axes}
        axes = {name: [v for v in values if v in there[name]] for name, values in self.axes.items()}
        is_best_there = all(value in there[name] for name, value in self.best.items())
        best = self.best if is_best_there else {}
        edited = self.edited[where]
        return replace(self, axes=axes, places=places, edited=edited, best=best)


def image_table(results: Results) -> ImageTable:
    """The rows of a sweep as sheets select them."""
    frame, axes = results.frame, results.plan["axes"]
    is_edited = ~frame["is_reference"]
    values: dict[str, Sequence[Hashable]] = {}
    places: dict[str, Rows] = {}
    for name, configured in axes.items():
        values[name], places[name] = _numbered(name, frame.loc[is_edited, name], configured)
    values["concept"], places["concept"] = _plain(concept_label_column(frame, axes)[is_edited])
    for name in ("prompt", "seed"):
        values[name], places[name] = _plain(frame.loc[is_edited, name])
    best = results.pooled[results.pooled["best"]].to_dict("records")
    references = frame.loc[frame["is_reference"], list(_COLUMNS)].to_dict("records")
    return ImageTable(
        results.store,
        results.name,
        {name: values[name] for name in axes},
        values,
        pd.DataFrame(places),
        frame.loc[is_edited, list(_COLUMNS)],
        {row["key"]: {str(name): value for name, value in row.items()} for row in references},
        {name: row_value(row, name) for row in best for name in axes},
        frozenset(results.zipped_axes),
    )


def _numbered(name: str, column: pd.Series[Any], configured: Sequence[Any]) -> tuple[list[Hashable], Rows]:
    """An axis' values in their configured order, and each row's index among them."""
    codes, uniques = pd.factorize(column, use_na_sentinel=False)
    present = [row_value({name: value}, name) for value in uniques]
    values = ordered_values(configured, present)
    index = {value: i for i, value in enumerate(values)}
    return values, np.array([index[value] for value in present], dtype=np.intp)[codes]


def _plain(column: pd.Series[Any]) -> tuple[list[Hashable], Rows]:
    codes, uniques = pd.factorize(column)
    return list(uniques), codes


@dataclass(frozen=True)
class AxisSelection:
    """The axes that are a sheet's columns and rows (``y`` None: a single row), and the other axes' values."""

    x: str
    y: str | None
    held: Mapping[str, Hashable]


def select_axes(sweep: ImageTable, x: str | None, y: str | None) -> AxisSelection:
    """Columns and rows as requested, otherwise the axes with the most values that vary independently.

    Where three quarters of those combinations were not run, as in a study, seeds and concepts replace them.

    Raises:
        UserError: the sweep has no axis ``x`` or ``y``.
    """
    for key, name in (("x", x), ("y", y)):
        if name is not None and name not in (*sweep.axes, *SUBJECT):
            known = ", ".join((*sweep.axes, *SUBJECT))
            raise UserError(f"{key}: this sweep has no axis {clean(name)!r}; it has {known}")
    is_requested = x is not None or y is not None
    longest = sorted(sweep.axes, key=lambda name: -len(sweep.axes[name]))
    x = x or next((name for name in longest if name != y), _varying(sweep, y) or "concept")
    meets = (
        name for name in longest if not _is_determined(sweep, name, [x]) and not {name, x} <= sweep.together
    )
    y = y or next(meets, _varying(sweep, x))
    if not is_requested and _is_sparse(sweep, x, y):
        names = [name for name in ("seed", "concept", "prompt") if sweep.places[name].nunique() > 1]
        x, y = (*names, "concept")[0], next(iter(names[1:]), None)
    return AxisSelection(x, y, _held(sweep, x, y))


def overview(sweep: ImageTable, main: AxisSelection) -> AxisSelection:
    """The selection with concepts or seeds in place of its second axis."""
    if main.y not in sweep.axes:
        return main
    y = _varying(sweep, main.x) or "concept"
    return AxisSelection(main.x, y, _held(sweep, main.x, y))


def subjects(sweep: ImageTable, main: AxisSelection) -> Iterator[Rows]:
    """The rows of each sheet, in the plan's order."""
    rows = _rows_at(sweep, main.held)
    names = [name for name in SUBJECT if name not in (main.x, main.y)]
    of_rows = sweep.places[names].iloc[rows]
    numbers = of_rows.groupby(names, sort=False).ngroup() if names else np.zeros(len(rows))
    order = np.argsort(numbers, kind="stable")
    yield from np.split(rows[order], np.flatnonzero(np.diff(np.asarray(numbers)[order])) + 1)


def _rows_at(sweep: ImageTable, held: Mapping[str, Hashable]) -> Rows:
    are_there = [sweep.places[name] == sweep.values[name].index(value) for name, value in held.items()]
    return np.flatnonzero(np.all(are_there, axis=0)) if held else np.arange(len(sweep.places))


def _is_sparse(sweep: ImageTable, x: str, y: str | None) -> bool:
    axes = [name for name in (x, y) if name in sweep.axes]
    run = sweep.places.iloc[_rows_at(sweep, _held(sweep, x, y))][axes].drop_duplicates()
    return bool(axes) and 4 * len(run) < math.prod(sweep.places[name].nunique() for name in axes)


def _held(sweep: ImageTable, x: str, y: str | None) -> dict[str, Hashable]:
    """The other axes' values at which most of the sheet was run; the best setting's, if it is among them."""
    fixed = [x, y] if y else [x]
    others = [name for name in sweep.axes if not _is_determined(sweep, name, fixed)]
    if not others:
        return {}
    run = sweep.places.drop_duplicates([*others, *fixed]).groupby(others, sort=False).size()
    full = run[run == run.max()].reset_index()[others].to_numpy()
    levels = [tuple(sweep.values[n][i] for n, i in zip(others, level, strict=True)) for level in full]
    best = tuple(sweep.best.get(name) for name in others)
    return dict(zip(others, best if best in levels else levels[0], strict=True))


def _varying(sweep: ImageTable, x: str | None) -> str | None:
    """Something other than ``x`` that has several values and can be the rows."""
    names = [name for name in ("concept", "seed", "prompt") if name != x]
    return next((name for name in names if sweep.places[name].nunique() > 1), None)


def _is_determined(sweep: ImageTable, name: str, by: Sequence[str]) -> bool:
    """Whether a row's values ``by`` determine its ``name``, as for axes that advance together."""
    each = sweep.places[list(dict.fromkeys([*by, name]))].drop_duplicates()
    return not each.duplicated(list(by)).any()

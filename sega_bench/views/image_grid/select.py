"""Which two axes a sheet of pictures is of, where the others are held, and which cells those are.

Rows are kept as numbers of their values, and read out only for a sheet that is drawn: of 100,000 cells a few
hundred are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sega_bench.analysis.groups import ALL
from sega_bench.analysis.summary import summarise
from sega_bench.analysis.values import concept_names, declared, point_of
from sega_bench.errors import UserError, clean
from sega_bench.store import Store

SUBJECT = ("prompt", "concept", "seed")
"""There is a sheet for each of these, except for one that is asked for as columns or rows."""

Cell = Mapping[str, Any]
Rows = NDArray[np.intp]

_SHOWN = ("key", "reference_key", "status", "image", "height", "width")


@dataclass(frozen=True)
class Sweep:
    """A sweep's rows with comparable values: 5 and 5.0 are equal, lists are tuples, null and NaN are None.

    Args:
        store: the folder.
        name: the sweep's.
        axes: each with its values, in the order in which they were given.
        values: what the numbers of ``places`` are of.
        places: of each edited row the number of its value, for each axis and :data:`SUBJECT`.
        edited: what else is asked of those rows.
        references: the unedited rows, by their keys.
        best: the best trade-off's values; empty where there is none.
        together: the axes that advance together, so that few of their values meet.
    """

    store: Store
    name: str
    axes: Mapping[str, Sequence[Hashable]]
    values: Mapping[str, Sequence[Hashable]]
    places: pd.DataFrame
    edited: pd.DataFrame
    references: Mapping[str, Cell]
    best: Mapping[str, Hashable]
    together: frozenset[str]

    def cells(self, rows: Rows) -> list[Cell]:
        """Some of the edited rows, with their values."""
        places = self.places.iloc[rows]
        columns = {name: [values[place] for place in places[name]] for name, values in self.values.items()}
        columns |= {name: self.edited[name].iloc[rows].tolist() for name in _SHOWN}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def only(self, keys: Collection[str]) -> Sweep:
        """The same with some of its edited cells, as if no others had been run."""
        where = self.edited["key"].isin(keys).to_numpy()
        places = self.places[where]
        there = {name: {self.values[name][place] for place in places[name].unique()} for name in self.axes}
        axes = {name: [v for v in values if v in there[name]] for name, values in self.axes.items()}
        is_best_there = all(value in there[name] for name, value in self.best.items())
        best = self.best if is_best_there else {}
        edited = self.edited[where]
        return Sweep(
            self.store, self.name, axes, self.values, places, edited, self.references, best, self.together
        )


def read(store: Store, frame: pd.DataFrame, plan: Mapping[str, Any]) -> Sweep:
    """The sweep of a folder.

    Args:
        store: the folder.
        frame: as :func:`sega_bench.analysis.summary.load` gives it.
        plan: what plan.json says.
    """
    is_edited = ~frame["is_reference"]
    values: dict[str, Sequence[Hashable]] = {}
    places: dict[str, Rows] = {}
    for name, given in plan["axes"].items():
        values[name], places[name] = _numbered(name, frame.loc[is_edited, name], given)
    values["concept"], places["concept"] = _plain(concept_names(frame, plan["axes"])[is_edited])
    for name in ("prompt", "seed"):
        values[name], places[name] = _plain(frame.loc[is_edited, name])
    summary = summarise(frame, list(plan["axes"]), store.answers())
    marked = summary[summary["best"] & (summary["concepts"] == ALL)].to_dict("records")
    references = frame.loc[frame["is_reference"], list(_SHOWN)].to_dict("records")
    return Sweep(
        store,
        plan["name"],
        {name: values[name] for name in plan["axes"]},
        values,
        pd.DataFrame(places),
        frame.loc[is_edited, list(_SHOWN)],
        {row["key"]: {str(name): value for name, value in row.items()} for row in references},
        {name: point_of(row, name) for row in marked for name in plan["axes"]},
        frozenset(plan.get("settings", {}).get("zip") or ()),
    )


def _numbered(name: str, column: pd.Series[Any], given: Sequence[Any]) -> tuple[list[Hashable], Rows]:
    numbers, found = pd.factorize(column, use_na_sentinel=False)
    points = [point_of({name: value}, name) for value in found]
    values = declared(given, points)
    at = {value: place for place, value in enumerate(values)}
    return values, np.array([at[point] for point in points], dtype=np.intp)[numbers]


def _plain(column: pd.Series[Any]) -> tuple[list[Hashable], Rows]:
    numbers, found = pd.factorize(column)
    return list(found), numbers


@dataclass(frozen=True)
class Plane:
    """What a sheet's columns and rows are of (no ``y``: a single row), and where other axes are held."""

    x: str
    y: str | None
    held: Mapping[str, Hashable]


def plane(sweep: Sweep, x: str | None, y: str | None) -> Plane:
    """Columns and rows as asked for, else the axes with the most values that vary independently.

    Where three quarters of those places were not run, as of a study, seeds and concepts are shown instead.

    Raises:
        UserError: the sweep has no axis ``x`` or ``y``.
    """
    for key, name in (("x", x), ("y", y)):
        if name is not None and name not in (*sweep.axes, *SUBJECT):
            known = ", ".join((*sweep.axes, *SUBJECT))
            raise UserError(f"{key}: this sweep has no axis {clean(name)!r}; it has {known}")
    is_asked = x is not None or y is not None
    longest = sorted(sweep.axes, key=lambda name: -len(sweep.axes[name]))
    x = x or next((name for name in longest if name != y), _varying(sweep, y) or "concept")
    meets = (name for name in longest if not _follows(sweep, name, [x]) and not {name, x} <= sweep.together)
    y = y or next(meets, _varying(sweep, x))
    if not is_asked and _is_sparse(sweep, x, y):
        names = [name for name in ("seed", "concept", "prompt") if sweep.places[name].nunique() > 1]
        x, y = (*names, "concept")[0], next(iter(names[1:]), None)
    return Plane(x, y, _held(sweep, x, y))


def overview(sweep: Sweep, main: Plane) -> Plane:
    """Concepts or seeds in place of a second axis."""
    if main.y not in sweep.axes:
        return main
    y = _varying(sweep, main.x) or "concept"
    return Plane(main.x, y, _held(sweep, main.x, y))


def subjects(sweep: Sweep, main: Plane) -> Iterator[Rows]:
    """The rows of each sheet, in the plan's order."""
    rows = _rows_at(sweep, main.held)
    names = [name for name in SUBJECT if name not in (main.x, main.y)]
    of_rows = sweep.places[names].iloc[rows]
    numbers = of_rows.groupby(names, sort=False).ngroup() if names else np.zeros(len(rows))
    order = np.argsort(numbers, kind="stable")
    yield from np.split(rows[order], np.flatnonzero(np.diff(np.asarray(numbers)[order])) + 1)


def _rows_at(sweep: Sweep, held: Mapping[str, Hashable]) -> Rows:
    are_there = [sweep.places[name] == sweep.values[name].index(value) for name, value in held.items()]
    return np.flatnonzero(np.all(are_there, axis=0)) if held else np.arange(len(sweep.places))


def _is_sparse(sweep: Sweep, x: str, y: str | None) -> bool:
    axes = [name for name in (x, y) if name in sweep.axes]
    run = sweep.places.iloc[_rows_at(sweep, _held(sweep, x, y))][axes].drop_duplicates()
    return bool(axes) and 4 * len(run) < math.prod(sweep.places[name].nunique() for name in axes)


def _held(sweep: Sweep, x: str, y: str | None) -> dict[str, Hashable]:
    """Values of the other axes at which most of the plane was run: the best trade-off's, if those are."""
    shown = [x, y] if y else [x]
    others = [name for name in sweep.axes if not _follows(sweep, name, shown)]
    if not others:
        return {}
    run = sweep.places.drop_duplicates([*others, *shown]).groupby(others, sort=False).size()
    full = run[run == run.max()].reset_index()[others].to_numpy()
    levels = [tuple(sweep.values[n][i] for n, i in zip(others, level, strict=True)) for level in full]
    best = tuple(sweep.best.get(name) for name in others)
    return dict(zip(others, best if best in levels else levels[0], strict=True))


def _varying(sweep: Sweep, x: str | None) -> str | None:
    """What else there are several of, to make rows of."""
    names = [name for name in ("concept", "seed", "prompt") if name != x]
    return next((name for name in names if sweep.places[name].nunique() > 1), None)


def _follows(sweep: Sweep, name: str, given: Sequence[str]) -> bool:
    """Whether the ``given`` values of a row settle its ``name``, as for axes that advance together."""
    each = sweep.places[list(dict.fromkeys([*given, name]))].drop_duplicates()
    return not each.duplicated(list(given)).any()

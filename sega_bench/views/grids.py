"""Sheets of a sweep's images: which image goes where (``python -m sega_bench.views.grids FOLDER``)."""

from __future__ import annotations

import argparse
import io
import logging
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sega_bench.cell import EDIT_SETTINGS
from sega_bench.errors import UserError, check_count, clean, mistakes_in_one_line
from sega_bench.store import Store
from sega_bench.views.points import declared, label_concepts, point_of, said, spaced
from sega_bench.views.sheet import Row, Sheet, Tile, draw
from sega_bench.views.tables import ALL, load, summarise

MOST_VALUES = 16
"""A sheet has no more columns or rows than this, taken evenly from a longer axis."""

_MOST_SHEETS = 10_000

_SUBJECT = ("prompt", "concept", "seed")
"""There is a sheet for each of these, except for one that is asked for as columns or rows."""

_SAID = {"concept": "{}", "seed": "seed {}"}

_CAPTION = "Description"
"""Of PNG's own names for text chunks."""

_log = logging.getLogger(__name__)
_Row = dict[str, Any]


@dataclass(frozen=True)
class _Sweep:
    """A sweep's rows with comparable values: 5 and 5.0 are equal, lists are tuples, null and NaN are None."""

    store: Store
    name: str
    axes: Mapping[str, Sequence[Hashable]]
    edited: Sequence[_Row]
    references: Mapping[str, _Row]
    best: Mapping[str, Hashable]
    together: frozenset[str]
    """The axes that advance together, so that few of their values meet."""


@dataclass(frozen=True)
class _Plane:
    """What a sheet's columns and rows are of (no ``y``: a single row), and where other axes are held."""

    x: str
    y: str | None
    held: Mapping[str, Hashable]


def write_grids(
    store: Store,
    frame: pd.DataFrame,
    plan: Mapping[str, Any],
    *,
    x: str | None = None,
    y: str | None = None,
    limit: int = 24,
) -> list[Path]:
    """Draw the sweep as sheets, grids/*.png, in place of those that were there.

    Columns and rows are the two axes with the most values, unless ``x`` and ``y`` name others; ``concept``,
    ``seed`` and ``prompt`` can be named too, and are the rows where there is no second axis. Every other axis
    is held at the best trade-off's value, and the sheet says so. There is a sheet for each prompt, concept
    set and seed that is neither columns nor rows, or ``limit`` of them taken evenly, and the log says so.

    Returns:
        ``overview.png`` (of two axes the columns' against concepts or seeds; else the first sheet), then
        every sheet that shows more than it; nothing where nothing was edited.

    Raises:
        UserError: the sweep has no axis ``x`` or ``y``, or ``limit`` is no number of sheets.
    """
    check_count("limit", limit, _MOST_SHEETS)
    sweep = _read(store, frame, plan)
    paths = []
    for name, sheet in _sheets(sweep, x, y, limit) if sweep.edited else ():
        buffer, chunks = io.BytesIO(), PngInfo()
        chunks.add_itxt(_CAPTION, _caption_of(sheet))
        draw(sheet).save(buffer, format="PNG", pnginfo=chunks)
        paths.append(store.grids_dir / f"{name}.png")
        store.write_bytes(paths[-1], buffer.getvalue())
    for path in set(store.grids_dir.glob("*.png")) - set(paths):  # of an earlier plan, or of other axes
        path.unlink()
    return paths


def grid(frame: pd.DataFrame, x: str | None = None, y: str | None = None) -> Image.Image:
    """One sheet of a sweep's images, for a cell of a notebook.

    Args:
        frame: as :func:`sega_bench.load` gives it, or some of its rows; unedited ones are found without. Of
            several prompts, concepts or seeds the first is shown, unless they are ``x`` or ``y``.
        x: what the columns are of: an axis, ``concept``, ``seed`` or ``prompt``; None chooses.
        y: what the rows are of, likewise.

    Raises:
        UserError: there is no such axis, nothing edited is left, or the rows do not say of which sweep.
    """
    folder = frame.attrs.get("folder")
    if folder is None:
        raise UserError("frame: it does not say which sweep it is of: give rows of what sega_bench.load gave")
    store, keys = Store(Path(folder)), set(frame["key"])
    whole = _read(store, load(folder), store.read_plan() or {})
    edited = [row for row in whole.edited if row["key"] in keys]
    if not edited:
        raise UserError("frame: no edited cell is left in it, so there is nothing to show")
    there = {name: {row[name] for row in edited} for name in whole.axes}
    axes = {name: [value for value in values if value in there[name]] for name, values in whole.axes.items()}
    is_best_there = all(value in there[name] for name, value in whole.best.items())
    sweep = replace(whole, edited=edited, axes=axes, best=whole.best if is_best_there else {})
    plane = _plane(sweep, x, y)
    return draw(_sheet(sweep, plane, _subjects(sweep, plane)[0]))


def caption(path: Path) -> str:
    """What a sheet shows, its axes first; nothing where the file does not say."""
    with Image.open(path) as image:
        return str(image.info.get(_CAPTION, ""))


def _caption_of(sheet: Sheet) -> str:
    rows = f", {sheet.y_name} down" if sheet.y_name else ""
    lines = [f"{sheet.x_name} across{rows}", sheet.title, *sheet.notes]
    return "; ".join(lines).encode("utf-8", "replace").decode()


def _sheets(sweep: _Sweep, x: str | None, y: str | None, limit: int) -> Iterator[tuple[str, Sheet]]:
    plane = _plane(sweep, x, y)
    subjects = _subjects(sweep, plane)
    shown = spaced(list(enumerate(subjects, 1)), limit)
    if len(shown) < len(subjects):
        _log.warning(
            "grids: %d of %d sheets drawn, taken evenly (limit=%d)", len(shown), len(subjects), limit
        )
    across = _overview(sweep, plane)
    overview = _sheet(sweep, across, _subjects(sweep, across)[0])
    yield "overview", overview
    for number, rows in shown:
        sheet = _sheet(sweep, plane, rows)
        if not _images(sheet) <= _images(overview):
            words = [_SAID[name].format(rows[0][name]) for name in _SAID if name not in (plane.x, plane.y)]
            yield f"{number:03d}-{_slug(' '.join(words))}", sheet


def _images(sheet: Sheet) -> set[Path]:
    return {tile.path for row in sheet.rows for tile in row.tiles if tile and tile.path}


# --- the sweep's values, made comparable ---


def _read(store: Store, frame: pd.DataFrame, plan: Mapping[str, Any]) -> _Sweep:
    rows: list[_Row] = [{str(name): row[name] for name in row} for row in frame.to_dict("records")]
    edited = [row for row in rows if not row["is_reference"]]
    points = [{name: point_of(row, name) for name in plan["axes"]} for row in edited]
    axes = {name: declared(values, points, name) for name, values in plan["axes"].items()}
    labels = label_concepts(edited, [name for name in EDIT_SETTINGS if name not in axes])
    summary = summarise(frame, list(axes))
    marked = summary[summary["best"] & (summary["concepts"] == ALL)].to_dict("records")
    return _Sweep(
        store,
        plan["name"],
        axes,
        [row | point | {"concept": label} for row, point, label in zip(edited, points, labels, strict=True)],
        {row["key"]: row for row in rows if row["is_reference"]},
        {name: point_of(row, name) for row in marked for name in axes},
        frozenset(plan.get("settings", {}).get("zip") or ()),
    )


# --- what is shown ---


def _plane(sweep: _Sweep, x: str | None, y: str | None) -> _Plane:
    """Columns and rows as asked for, else the axes with the most values that vary independently."""
    for key, name in (("x", x), ("y", y)):
        if name is not None and name not in (*sweep.axes, *_SUBJECT):
            known = ", ".join((*sweep.axes, *_SUBJECT))
            raise UserError(f"{key}: this sweep has no axis {clean(name)!r}; it has {known}")
    longest = sorted(sweep.axes, key=lambda name: -len(sweep.axes[name]))
    x = x or next((name for name in longest if name != y), _varying(sweep, y) or "concept")
    meets = (
        name for name in longest if not _follows(sweep.edited, name, [x]) and not {name, x} <= sweep.together
    )
    y = y or next(meets, _varying(sweep, x))
    return _Plane(x, y, _held(sweep, x, y))


def _overview(sweep: _Sweep, plane: _Plane) -> _Plane:
    """Concepts or seeds in place of a second axis."""
    if plane.y not in sweep.axes:
        return plane
    y = _varying(sweep, plane.x) or "concept"
    return _Plane(plane.x, y, _held(sweep, plane.x, y))


def _held(sweep: _Sweep, x: str, y: str | None) -> dict[str, Hashable]:
    """Values of the other axes at which most of the plane was run: the best trade-off's, if those are."""
    shown = [x, y] if y else [x]
    others = [name for name in sweep.axes if not _follows(sweep.edited, name, shown)]
    run: dict[tuple[Hashable, ...], set[tuple[Hashable, ...]]] = {}
    for row in sweep.edited:
        level = tuple(row[name] for name in others)
        run.setdefault(level, set()).add(tuple(row[name] for name in shown))
    most = max(map(len, run.values()))
    full = [level for level, places in run.items() if len(places) == most]
    best = tuple(sweep.best.get(name) for name in others)
    return dict(zip(others, best if best in full else full[0], strict=True))


def _varying(sweep: _Sweep, x: str | None) -> str | None:
    """What else there are several of, to make rows of."""
    names = [name for name in ("concept", "seed", "prompt") if name != x]
    return next((name for name in names if len({row[name] for row in sweep.edited}) > 1), None)


def _follows(rows: Sequence[_Row], name: str, given: Sequence[str]) -> bool:
    """Whether the ``given`` values of a row settle its ``name``, as for axes that advance together."""
    seen: dict[tuple[Hashable, ...], Hashable] = {}
    return all(seen.setdefault(tuple(row[g] for g in given), row[name]) == row[name] for row in rows)


def _subjects(sweep: _Sweep, plane: _Plane) -> list[list[_Row]]:
    """The rows of each sheet, in the plan's order."""
    subjects: dict[tuple[Hashable, ...], list[_Row]] = {}
    for row in sweep.edited:
        if all(row[name] == value for name, value in plane.held.items()):
            subject = tuple(row[name] for name in _SUBJECT if name not in (plane.x, plane.y))
            subjects.setdefault(subject, []).append(row)
    return list(subjects.values())


def _sheet(sweep: _Sweep, plane: _Plane, cells: Sequence[_Row]) -> Sheet:
    at = {(row[plane.x], row[plane.y] if plane.y else None): row for row in reversed(cells)}
    xs, ys = _values(sweep, plane.x, cells), _values(sweep, plane.y, cells)
    columns, lines = spaced(xs, MOST_VALUES), spaced(ys, MOST_VALUES)
    table = [[at.get((x, y)) for x in columns] for y in lines]
    labels = [said(y) if plane.y else "" for y in lines]
    marks = set(plane.held) < set(sweep.axes)  # with every axis held there, the best is all one sees
    rows = [
        Row(label, [_tile(sweep, row, marks) for row in line])
        for label, line in zip(labels, table, strict=True)
    ]
    references, rows = _with_references(sweep, table, rows)
    first = cells[0]
    subject = [_SAID[name].format(first[name]) for name in _SAID if name not in (plane.x, plane.y)]
    notes = [
        " \N{MIDDLE DOT} ".join(subject),
        *_notes(sweep, plane, {plane.x: (columns, xs), plane.y: (lines, ys)}),
    ]
    if any(tile and tile.marked for row in rows for tile in row.tiles):
        notes.append("Outlined: the best trade-off over all prompts, concepts and seeds")
    return Sheet(
        title=clean(sweep.name) if "prompt" in (plane.x, plane.y) else f'"{clean(first["prompt"])}"',
        notes=[note for note in notes if note],
        x_name=plane.x,
        columns=[said(x) for x in columns],
        y_name=plane.y or "",
        rows=rows,
        references=references,
        size=(max(row["width"] for row in cells), max(row["height"] for row in cells)),
    )


def _with_references(
    sweep: _Sweep, table: Sequence[Sequence[_Row | None]], rows: list[Row]
) -> tuple[list[Tile | None], list[Row]]:
    """Unedited images to the left of the rows where a row has one, else above them; none is shown twice."""
    keys = [[row["reference_key"] if row else None for row in line] for line in table]
    own = [sorted({key for key in line if key}) for line in keys]
    if all(len(line) <= 1 for line in own):
        return [
            _unedited(sweep, line[0]) if line and line not in own[:i] else None for i, line in enumerate(own)
        ], rows
    both = []
    for i, (line, row) in enumerate(zip(keys, rows, strict=True)):
        if line not in keys[:i]:
            both.append(
                Row("unedited", [_unedited(sweep, key) if key else None for key in line], unedited=True)
            )
        both.append(row)
    return [], both


def _unedited(sweep: _Sweep, key: str) -> Tile:
    return _tile(sweep, sweep.references.get(key), marks=False)


def _tile(sweep: _Sweep, row: _Row | None, marks: bool) -> Tile:
    if row is None:
        return Tile(None, "missing")
    if row["status"] == "failed":
        return Tile(None, "failed")
    path = sweep.store.image_file(str(row["image"]))
    best = marks and bool(sweep.best) and all(row[name] == value for name, value in sweep.best.items())
    return Tile(path, marked=best) if path.exists() else Tile(None, "missing")


def _values(sweep: _Sweep, name: str | None, cells: Sequence[_Row]) -> Sequence[Hashable]:
    if name is None:
        return [None]
    return sweep.axes[name] if name in sweep.axes else list(dict.fromkeys(row[name] for row in cells))


def _notes(
    sweep: _Sweep, plane: _Plane, cut: Mapping[str | None, tuple[Sequence[Any], Sequence[Any]]]
) -> list[str]:
    """What the sheet leaves out."""
    held = ", ".join(f"{name} {said(value)}" for name, value in plane.held.items())
    is_best = bool(sweep.best) and all(sweep.best[name] == value for name, value in plane.held.items())
    why = "the best trade-off's" if is_best else "what most was tried at" if sweep.best else "the first tried"
    notes = [f"Held at {why}: {held}"] if held else []
    for name, (shown, values) in cut.items():
        if len(shown) < len(values):
            notes.append(f"{len(shown)} of {len(values)} values of {name} shown")
    return notes


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:60].strip("-") or "sheet"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw a sweep's sheets anew from its folder alone."""
    parser = argparse.ArgumentParser(prog="python -m sega_bench.views.grids", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="a sweep's folder, such as outputs/thresholds")
    parser.add_argument("--x", help="what the columns are of: an axis, concept, seed or prompt")
    parser.add_argument("--y", help="what the rows are of")
    parser.add_argument("--limit", type=int, default=24, help="at most so many sheets (default: %(default)s)")
    asked = parser.parse_args(arguments)
    with mistakes_in_one_line():
        store, frame = Store(asked.folder), load(asked.folder)
        for path in write_grids(
            store, frame, store.read_plan() or {}, x=asked.x, y=asked.y, limit=asked.limit
        ):
            print(path)


if __name__ == "__main__":
    main()

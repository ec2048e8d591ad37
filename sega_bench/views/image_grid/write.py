"""Sheets of a sweep's images: which image goes where (``python -m sega_bench grids FOLDER``)."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sega_bench.analysis.results import Results
from sega_bench.analysis.values import evenly_spaced, format_values
from sega_bench.errors import UserError, check_count, clean
from sega_bench.views.image_grid.draw import Row, Sheet, Tile, draw
from sega_bench.views.image_grid.select import (
    AxisSelection,
    ImageRow,
    ImageTable,
    Rows,
    image_table,
    overview,
    select_axes,
    subjects,
)

MOST_VALUES = 16
"""A sheet has no more columns or rows than this, taken evenly from a longer axis."""

_MOST_SHEETS = 10_000

_SAID = {"concept": "{}", "seed": "seed {}"}

_CAPTION = "Description"
"""Of PNG's own names for text chunks."""

_log = logging.getLogger(__name__)


def write_grids(
    results: Results, *, x: str | None = None, y: str | None = None, limit: int = 24
) -> list[Path]:
    """Draw the sweep as sheets, grids/*.png, replacing those that were there.

    Columns and rows are the two axes with the most values, unless ``x`` and ``y`` name others; ``concept``,
    ``seed`` and ``prompt`` can be named too, and are the rows where there is no second axis. Every other axis
    is held at the verdict's value, and the sheet says so. There is a sheet for each prompt, concept
    set and seed that is neither columns nor rows, or ``limit`` of them taken evenly, and the log says so.

    Returns:
        ``overview.png`` (of two axes the columns' against concepts or seeds; else the first sheet), then
        every sheet that shows more than it; nothing where nothing was edited.

    Raises:
        UserError: the sweep has no axis ``x`` or ``y``, or ``limit`` is no number of sheets.
    """
    check_count("limit", limit, _MOST_SHEETS)
    store, sweep = results.store, image_table(results)
    paths = []
    for name, sheet in _sheets(sweep, x, y, limit) if len(sweep.edited) else ():
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
    sweep = image_table(Results.read(folder)).only(set(frame["key"]))
    if sweep.edited.empty:
        raise UserError("frame: no edited cell is left in it, so there is nothing to show")
    axes = select_axes(sweep, x, y)
    return draw(_sheet(sweep, axes, next(subjects(sweep, axes))))


def caption(path: Path) -> str:
    """What a sheet shows, its axes first; nothing where the file does not say."""
    with Image.open(path) as image:
        return str(image.info.get(_CAPTION, ""))


def _caption_of(sheet: Sheet) -> str:
    rows = f", {sheet.y_name} down" if sheet.y_name else ""
    lines = [f"{sheet.x_name} across{rows}", sheet.title, *sheet.notes]
    return "; ".join(lines).encode("utf-8", "replace").decode()


def _sheets(sweep: ImageTable, x: str | None, y: str | None, limit: int) -> Iterator[tuple[str, Sheet]]:
    main = select_axes(sweep, x, y)
    every = list(subjects(sweep, main))
    drawn = evenly_spaced(list(enumerate(every, 1)), limit)
    if len(drawn) < len(every):
        _log.warning("grids: %d of %d sheets drawn, taken evenly (limit=%d)", len(drawn), len(every), limit)
    across = overview(sweep, main)
    first = _sheet(sweep, across, next(subjects(sweep, across)))
    yield "overview", first
    for number, rows in drawn:
        sheet = _sheet(sweep, main, rows)
        if not _images(sheet) <= _images(first):
            (subject,) = sweep.cells(rows[:1])
            words = [_SAID[name].format(subject[name]) for name in _SAID if name not in (main.x, main.y)]
            yield f"{number:03d}-{_slug(' '.join(words))}", sheet


def _images(sheet: Sheet) -> set[Path]:
    return {tile.path for row in sheet.rows for tile in row.tiles if tile and tile.path}


def _sheet(sweep: ImageTable, main: AxisSelection, rows_shown: Rows) -> Sheet:
    cells = sweep.cells(rows_shown)
    at = {(row[main.x], row[main.y] if main.y else None): row for row in reversed(cells)}
    xs, ys = _values(sweep, main.x, cells), _values(sweep, main.y, cells)
    columns, lines = evenly_spaced(xs, MOST_VALUES), evenly_spaced(ys, MOST_VALUES)
    table = [[at.get((x, y)) for x in columns] for y in lines]
    labels = [format_values(y) if main.y else "" for y in lines]
    marks = set(main.held) < set(sweep.axes)  # with every axis held there, the best is all one sees
    rows = [
        Row(label, [_tile(sweep, row, marks) for row in line])
        for label, line in zip(labels, table, strict=True)
    ]
    references, rows = _with_references(sweep, table, rows)
    first = cells[0]
    subject = [_SAID[name].format(first[name]) for name in _SAID if name not in (main.x, main.y)]
    notes = [
        " \N{MIDDLE DOT} ".join(subject),
        *_notes(sweep, main, {main.x: (columns, xs), main.y: (lines, ys)}),
    ]
    if any(tile and tile.marked for row in rows for tile in row.tiles):
        notes.append("Outlined: the verdict over all prompts, concepts and seeds")
    return Sheet(
        title=clean(sweep.name) if "prompt" in (main.x, main.y) else f'"{clean(first["prompt"])}"',
        notes=[note for note in notes if note],
        x_name=main.x,
        columns=[format_values(x) for x in columns],
        y_name=main.y or "",
        rows=rows,
        references=references,
        size=(max(row["width"] for row in cells), max(row["height"] for row in cells)),
    )


def _with_references(
    sweep: ImageTable, table: Sequence[Sequence[ImageRow | None]], rows: list[Row]
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


def _unedited(sweep: ImageTable, key: str) -> Tile:
    return _tile(sweep, sweep.references.get(key), marks=False)


def _tile(sweep: ImageTable, row: ImageRow | None, marks: bool) -> Tile:
    if row is None:
        return Tile(None, "not run")
    if row["status"] == "failed":
        return Tile(None, "failed")
    path = sweep.store.image_file(str(row["image"]))
    best = marks and bool(sweep.best) and all(row[name] == value for name, value in sweep.best.items())
    return Tile(path, marked=best) if path.exists() else Tile(None, "missing")


def _values(sweep: ImageTable, name: str | None, cells: Sequence[ImageRow]) -> Sequence[Hashable]:
    if name is None:
        return [None]
    return sweep.axes[name] if name in sweep.axes else list(dict.fromkeys(row[name] for row in cells))


def _notes(
    sweep: ImageTable, main: AxisSelection, cut: Mapping[str | None, tuple[Sequence[Any], Sequence[Any]]]
) -> list[str]:
    """What the sheet leaves out."""
    held = ", ".join(f"{name} {format_values(value)}" for name, value in main.held.items())
    is_best = bool(sweep.best) and all(sweep.best[name] == value for name, value in main.held.items())
    why = "the verdict's" if is_best else "what most was tried at" if sweep.best else "the first tried"
    notes = [f"Held at {why}: {held}"] if held else []
    for name, (drawn, values) in cut.items():
        if len(drawn) < len(values):
            notes.append(f"{len(drawn)} of {len(values)} values of {name} shown")
    return notes


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:60].strip("-") or "sheet"

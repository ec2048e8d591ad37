"""Drawing one sheet of labelled images: where everything goes and how it looks, nothing of what it means."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sega_bench.errors import clean
from sega_bench.store import UNREADABLE

INK, SOFT, PAPER, MARK = (24, 24, 27), (113, 113, 122), (255, 255, 255), (37, 99, 235)
_HATCH_INK, _HATCH_PAPER = (212, 212, 216), (244, 244, 245)

_TILE = 192
"""Smaller images are enlarged to about this many pixels."""

_WIDEST = 4096
"""Images are reduced to keep a sheet's tiles within this many pixels, but not below :data:`_SMALLEST`."""
_SMALLEST = 96


@dataclass(frozen=True)
class Tile:
    """One place of a sheet: an image file, or ``note`` saying why there is none."""

    path: Path | None
    note: str = "missing"
    marked: bool = False


@dataclass(frozen=True)
class Row:
    """Tiles side by side; ``None`` leaves a place empty, ``unedited`` sets the row apart from the next."""

    label: str
    tiles: Sequence[Tile | None]
    unedited: bool = False


@dataclass(frozen=True)
class Sheet:
    """A labelled grid of images.

    Args:
        title: one line or more, in large type.
        notes: lines beneath it.
        x_name: what the columns are of; empty for none.
        columns: a label for each.
        y_name: what the rows are of; empty for none.
        rows: from top to bottom.
        references: a tile to the left of each row, set apart from it; empty for none at all.
        size: width and height of the largest image in pixels.
    """

    title: str
    notes: Sequence[str]
    x_name: str
    columns: Sequence[str]
    y_name: str
    rows: Sequence[Row]
    references: Sequence[Tile | None]
    size: tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Where the parts of a sheet are, in pixels: the tile of column i, row j begins at xs[i], ys[j]."""

    tile: tuple[int, int]
    size: tuple[int, int]
    margin: int
    xs: Sequence[int]
    ys: Sequence[int]
    label: ImageFont.FreeTypeFont
    heading: ImageFont.FreeTypeFont
    title: Sequence[str]
    notes: Sequence[str]
    columns: Sequence[Sequence[str]]
    rows: Sequence[Sequence[str]]

    @property
    def line(self) -> int:
        """Height of a line of labels."""
        return round(1.35 * self.label.size)

    @property
    def gap(self) -> int:
        """Between neighbouring tiles."""
        return max(4, self.tile[0] // 32)


def lay_out(sheet: Sheet) -> Layout:
    """Find the place of everything; nothing is drawn."""
    scale = _scale(sheet.size, len(sheet.columns))
    width, height = (max(1, round(scale * side)) for side in sheet.size)
    label = _font(min(28, max(14, width // 11)))
    heading = _font(round(1.3 * label.size))
    line, gap, margin = round(1.35 * label.size), max(4, width // 32), round(1.5 * label.size)

    rows = [wrap(row.label, label, 0.75 * width, 4) for row in sheet.rows]
    columns = [wrap(text, label, width, 3) for text in sheet.columns]
    left = margin + (width + 4 * gap if sheet.references else 0) + (line + gap if sheet.y_name else 0)
    left += max(round(label.getlength(text)) for lines in rows for text in (*lines, "")) + 2 * gap
    xs = [left + i * (width + gap) for i in range(len(columns))]
    right = max(xs[-1] + width, margin + 30 * round(label.size))

    title = wrap(sheet.title, heading, right - margin, 4)
    notes = [text for note in sheet.notes for text in wrap(note, label, right - margin, 3)]
    y = margin + round(1.3 * heading.size) * len(title) + line * (len(notes) + 1 + bool(sheet.x_name))
    y += line * max(map(len, columns)) + gap
    ys = []
    for i, row in enumerate(sheet.rows):
        y += 8 * gap if row.unedited and i > 0 else 0
        ys.append(y)
        y += height + (3 * gap if row.unedited else gap)
    size = (right + margin, y - gap + margin)
    return Layout((width, height), size, margin, xs, ys, label, heading, title, notes, columns, rows)


def draw(sheet: Sheet) -> Image.Image:
    """The sheet as an RGB picture. A file that can't be read is drawn as a place without an image."""
    at = lay_out(sheet)
    picture = Image.new("RGB", at.size, PAPER)
    pen = ImageDraw.Draw(picture)
    _write_head(pen, sheet, at)
    _write_columns(pen, sheet, at)
    _write_rows(picture, sheet, at)
    for y, reference in zip(at.ys, sheet.references, strict=False):
        _put(picture, reference, (at.margin, y), at)
    for y, row in zip(at.ys, sheet.rows, strict=True):
        for x, tile in zip(at.xs, row.tiles, strict=True):
            _put(picture, tile, (x, y), at)
    return picture


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float, most: int) -> list[str]:
    """Break a text into at most ``most`` lines of ``width`` pixels; an ellipsis stands for what is left."""
    lines: list[str] = []
    rest = _drawable(text)
    while rest and len(lines) < most:
        fits = (
            next((n for n in range(1, len(rest) + 1) if font.getlength(rest[:n]) > width), len(rest) + 1) - 1
        )
        end = len(rest) if fits == len(rest) else _joint(rest, fits)
        lines.append(rest[:end].strip())
        rest = rest[end:].strip()
    if rest:
        lines[-1] = lines[-1][:-3] + "..."
    return lines


def _joint(text: str, fits: int) -> int:
    """Where to break a text of which ``fits`` characters fit: at a space, before a Capital, or there."""
    space = text.rfind(" ", 1, fits + 1)
    capitals = [match.start() for match in re.finditer(r"(?<=[a-z])(?=[A-Z])", text[: fits + 1])]
    return space if space > 0 else max(1, *capitals[-1:] or [fits])


def _drawable(text: str) -> str:
    """The text with its letters' accents off, which the font lacks; more than a sheet can show is cut off."""
    return "".join(
        char for char in unicodedata.normalize("NFKD", clean(text)[:1000]) if not unicodedata.combining(char)
    )


def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels are built with FreeType
    return font


def _scale(size: tuple[int, int], columns: int) -> float:
    """Small images are enlarged by whole factors; large ones are reduced where they are many."""
    side = max(size)
    if side <= _TILE:
        return float(max(1, round(_TILE / side)))
    return max(min(1.0, _WIDEST / (columns * size[0])), _SMALLEST / side)


def _write_head(pen: ImageDraw.ImageDraw, sheet: Sheet, at: Layout) -> None:
    y = at.margin
    for text in at.title:
        pen.text((at.margin, y), text, INK, at.heading)
        y += round(1.3 * at.heading.size)
    for text in at.notes:
        pen.text((at.margin, y), text, SOFT, at.label)
        y += at.line


def _write_columns(pen: ImageDraw.ImageDraw, sheet: Sheet, at: Layout) -> None:
    base = at.ys[0] - at.gap
    if sheet.references:
        pen.text((at.margin + at.tile[0] / 2, base), "unedited", INK, at.label, anchor="md")
    deepest = max(map(len, at.columns))
    for x, lines in zip(at.xs, at.columns, strict=True):
        for i, text in enumerate(reversed(lines)):
            pen.text((x + at.tile[0] / 2, base - i * at.line), text, INK, at.label, anchor="md")
    middle = (at.xs[0] + at.xs[-1] + at.tile[0]) / 2
    pen.text((middle, base - deepest * at.line), _drawable(sheet.x_name), SOFT, at.label, anchor="md")


def _write_rows(picture: Image.Image, sheet: Sheet, at: Layout) -> None:
    pen = ImageDraw.Draw(picture)
    edge = at.xs[0] - 2 * at.gap
    for y, lines in zip(at.ys, at.rows, strict=True):
        top = y + at.tile[1] / 2 - (len(lines) - 1) * at.line / 2
        for i, text in enumerate(lines):
            pen.text((edge, top + i * at.line), text, INK, at.label, anchor="rm")
    if sheet.y_name:
        name = _drawable(sheet.y_name)
        strip = Image.new("RGB", (round(at.label.getlength(name)) + 2, at.line), PAPER)
        ImageDraw.Draw(strip).text((0, at.line / 2), name, SOFT, at.label, anchor="lm")
        widest = max(round(at.label.getlength(text)) for lines in at.rows for text in (*lines, ""))
        middle = (at.ys[0] + at.ys[-1] + at.tile[1]) // 2
        picture.paste(
            strip.rotate(90, expand=True), (edge - widest - at.gap - at.line, middle - strip.width // 2)
        )


def _put(picture: Image.Image, tile: Tile | None, corner: tuple[int, int], at: Layout) -> None:
    """Draw a tile's image in the middle of its place, or a hatched place that says why there is none."""
    if tile is None:
        return
    image = _load(tile.path, at) if tile.path else None
    if image is None:
        image = _hatched(tile.note if tile.path is None else "unreadable", at)
    x, y = (start + (side - own) // 2 for start, side, own in zip(corner, at.tile, image.size, strict=True))
    picture.paste(image, (x, y))
    if tile.marked:
        reach = max(2, at.gap // 2)
        box = (x - reach, y - reach, x + image.width + reach - 1, y + image.height + reach - 1)
        ImageDraw.Draw(picture).rectangle(box, outline=MARK, width=reach)


def _load(path: Path, at: Layout) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            fitted = image.convert("RGB")
    except UNREADABLE:
        return None
    factor = min(at.tile[0] / fitted.width, at.tile[1] / fitted.height)
    size = (max(1, round(fitted.width * factor)), max(1, round(fitted.height * factor)))
    return fitted if size == fitted.size else fitted.resize(size, Image.Resampling.LANCZOS)


def _hatched(note: str, at: Layout) -> Image.Image:
    image = Image.new("RGB", at.tile, _HATCH_PAPER)
    pen = ImageDraw.Draw(image)
    width, height = at.tile
    for x in range(-height, width, max(8, width // 16)):
        pen.line((x, height, x + height, 0), _HATCH_INK, 1)
    box = pen.textbbox((width / 2, height / 2), note, at.label, anchor="mm")
    pen.rectangle((box[0] - 6, box[1] - 4, box[2] + 6, box[3] + 4), _HATCH_PAPER)
    pen.text((width / 2, height / 2), note, SOFT, at.label, anchor="mm")
    return image

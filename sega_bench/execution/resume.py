"""What a plan still lacks: the difference between its cells and what its folder holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from sega_bench.cell import Cell
from sega_bench.sega.steps import image_owner
from sega_bench.sega.wave import count_timesteps
from sega_bench.store import Record, Store
from sega_bench.system import gc_control

NOT_SCORED = "not scored: "
"""How the ``error`` of a cell begins that has an image but lacks scores."""

NOT_APPLICABLE = "not applicable: "
"""How the note begins on scores that a cell cannot have."""

REFERENCE_FAILED = f"{NOT_SCORED}its reference failed"

_Row = Mapping[str, Any]


@dataclass(frozen=True)
class Remaining:
    """What is left to do of a plan.

    Args:
        cells: to be made, in the plan's order.
        unscored: records, still without scores, of cells whose image is on disk already.
        done: how many cells of the plan need nothing.
    """

    cells: tuple[Cell, ...]
    unscored: tuple[Record, ...]
    done: int


@gc_control.kept()
def compare(cells: Sequence[Cell], store: Store, *, retry_failed: bool) -> Remaining:
    """Set a plan's cells against its folder, whose records are read once.

    Made is what has no image; what failed, only if failures are tried again. Only scored is a cell whose
    image is its reference's, which is there, and one whose scores had to wait for its reference or, if
    failures are tried again, could not be taken. What is to be read for that is compared with its record's
    hash before, and made again if it was damaged.

    Args:
        cells: each reference before the cells that are scored against it.
        store: the folder.
        retry_failed: whether failures are tried again.
    """
    rows = {row["key"]: row for row in store.rows()[0]}
    there = store.done_keys(rows.values())
    remaining = _difference(cells, rows, there, retry_failed)
    damaged = {key for key in _read_for(remaining) if key in there and not store.is_intact(rows[key])}
    return _difference(cells, rows, there - damaged, retry_failed) if damaged else remaining


def _difference(
    cells: Sequence[Cell], rows: Mapping[str, _Row], there: AbstractSet[str], retry_failed: bool
) -> Remaining:
    made: dict[str, Cell] = {}
    unscored: list[Record] = []
    done = 0
    for cell in cells:
        reference = cell.reference().key
        if cell.key in there:
            note = str(rows[cell.key]["error"] or "")
            waited = note.startswith(REFERENCE_FAILED) and (reference in there or reference in made)
            if waited or (retry_failed and note.startswith(NOT_SCORED)):
                unscored.append(_stored(cell, rows[cell.key]))
            else:
                done += 1
        elif not retry_failed and rows.get(cell.key, {}).get("status") == "failed":
            continue
        elif reference in there and image_owner(cell, count_timesteps(cell)).is_reference:
            unscored.append(_stored(cell, {**rows[reference], "unet_evals": 0, "seconds": 0.0}))
        else:
            made[cell.key] = cell
    return Remaining(tuple(made.values()), tuple(unscored), done)


def _stored(cell: Cell, row: _Row) -> Record:
    """The record, without scores, of a cell that has the image of this row."""
    made = ("image", "image_sha256", "unet_evals", "seconds", "worker", "device", "versions")
    return Record(cell, "done", **{name: row[name] for name in made})


def _read_for(remaining: Remaining) -> Iterator[str]:
    """Keys of the stored images that what remains is scored from and against."""
    yield from {cell.reference().key for cell in remaining.cells}
    for record in remaining.unscored:
        yield from {record.cell.key, record.cell.reference().key}

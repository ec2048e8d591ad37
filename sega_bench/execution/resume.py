"""Resume as a set difference: the cells of a plan minus those that its folder already holds."""

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
"""Prefix of the ``error`` of a cell that has an image and lacks scores."""

NOT_APPLICABLE = "not applicable: "
"""Prefix of a note on scores that a cell cannot have."""

REFERENCE_FAILED = f"{NOT_SCORED}its reference failed"

_Row = Mapping[str, Any]


@dataclass(frozen=True)
class Remaining:
    """The part of a plan that is left to do.

    Args:
        cells: to be generated, in the plan's order.
        unscored: records, without scores, of cells whose image is stored.
        done: number of cells that need nothing.
    """

    cells: tuple[Cell, ...]
    unscored: tuple[Record, ...]
    done: int


@gc_control.disabled()
def compare(cells: Sequence[Cell], store: Store, *, retry_failed: bool) -> Remaining:
    """Compare a plan's cells with its folder, whose records are read once.

    A cell without an image is generated; a failed one only with ``retry_failed``. Only scored are a cell that
    shares the stored image of its reference, a cell whose scores had to wait for its reference, and, with
    ``retry_failed``, a cell that could not be scored. Stored images that scoring will read are first checked
    against the hash in their record, and generated again if they are damaged.

    Args:
        cells: each reference before the cells that are scored against it.
        store: the folder.
        retry_failed: whether failed cells are tried again.
    """
    rows = {row["key"]: row for row in store.rows()[0]}
    stored = store.done_keys(rows.values())
    remaining = _difference(cells, rows, stored, retry_failed)
    # Hashing every image would read the whole folder; only those that scoring will read are hashed.
    damaged = {key for key in _keys_read(remaining) if key in stored and not store.is_intact(rows[key])}
    return _difference(cells, rows, stored - damaged, retry_failed) if damaged else remaining


def _difference(
    cells: Sequence[Cell], rows: Mapping[str, _Row], stored: AbstractSet[str], retry_failed: bool
) -> Remaining:
    """Sort cells into those to generate, those to score, and those that are done.

    Args:
        cells: of the plan.
        rows: the latest row of each key.
        stored: keys whose image is stored.
        retry_failed: whether failed cells are tried again.
    """
    to_generate: dict[str, Cell] = {}
    unscored: list[Record] = []
    done = 0
    for cell in cells:
        reference = cell.reference().key
        if cell.key in stored:
            note = str(rows[cell.key]["error"] or "")
            # A reference that this job generates again comes before its edits are scored.
            has_waited = note.startswith(REFERENCE_FAILED) and (
                reference in stored or reference in to_generate
            )
            if has_waited or (retry_failed and note.startswith(NOT_SCORED)):
                unscored.append(_unscored(cell, rows[cell.key]))
            else:
                done += 1
        elif not retry_failed and rows.get(cell.key, {}).get("status") == "failed":
            continue
        elif reference in stored and image_owner(cell, count_timesteps(cell)).is_reference:
            # Its image is its reference's, whose row already counts the evaluations and the time.
            unscored.append(_unscored(cell, {**rows[reference], "unet_evals": 0, "seconds": 0.0}))
        else:
            to_generate[cell.key] = cell
    return Remaining(tuple(to_generate.values()), tuple(unscored), done)


def _unscored(cell: Cell, row: _Row) -> Record:
    """A record, without scores, of a cell whose image is that of ``row``."""
    columns = ("image", "image_sha256", "unet_evals", "seconds", "worker", "device", "versions")
    return Record(cell, "done", **{name: row[name] for name in columns})


def _keys_read(remaining: Remaining) -> Iterator[str]:
    """Keys of the images that scoring the remaining cells would read from the store."""
    yield from {cell.reference().key for cell in remaining.cells}
    for record in remaining.unscored:
        yield from {record.cell.key, record.cell.reference().key}

"""The limits of a large sweep, in the order in which they are reached, and their remedies."""

from __future__ import annotations

from dataclasses import dataclass

from tools.scaling.sizes import Sizes

FOLDERS = 256
"""Folders over which images are spread, by the first two hexadecimal digits of their keys."""

MOST_FILES = 5_000
"""Files in a folder beyond which listing it is slow on shared file systems."""

PATIENCE_SECONDS = 600
"""Acceptable time for a restarted command to resume its work."""

MOST_PAGE_BYTES = 50e6
"""Bytes that a browser loads from disk in a few seconds."""

OPEN_SECONDS = 1e-3
"""Time to open a file on a shared file system and read its end: assumed, not measured."""


@dataclass(frozen=True)
class Limit:
    """A quantity that grows with the number of cells.

    Args:
        what: its name, with the unit.
        value: its value for the requested number of cells.
        most: the largest acceptable value.
        cells: the number of cells at which that value is reached.
        remedy: what to do beyond it.
    """

    what: str
    value: float
    most: float
    cells: int
    remedy: str


def limits(sizes: Sizes, cells: int, memory_bytes: float) -> list[Limit]:
    """All limits, the first to be reached first.

    Args:
        sizes: the costs of a cell.
        cells: the number of cells.
        memory_bytes: of the machine that launches the sweep and writes the views.
    """
    gb, costs = 1e9, sizes.costs
    memory = memory_bytes / gb
    several = "several sweeps, by prompts or seeds, each with a name= of its own"
    growing = [
        (
            "table in memory, GB",
            costs["table"].bytes / gb,
            memory,
            f"{several}; read results.parquet by columns",
        ),
        ("plan and rows in memory, GB", (costs["plan"].bytes + costs["resume"].bytes) / gb, memory, several),
        ("files in a folder of images/", 1 / FOLDERS, MOST_FILES, several),
        ("report's page, MB", sizes.page_bytes / 1e6, MOST_PAGE_BYTES / 1e6, several),
        ("planning, s", costs["plan"].seconds, PATIENCE_SECONDS, several),
        ("sharding, s", costs["shards"].seconds, PATIENCE_SECONDS, several),
        ("resume: reading rows, s", costs["resume"].seconds, PATIENCE_SECONDS, several),
        (
            "resume: opening images on a shared disk, s",
            OPEN_SECONDS,
            PATIENCE_SECONDS,
            "several sweeps: finished ones need no check",
        ),
    ]
    reached = [
        Limit(what, per_cell * cells, most, int(most / per_cell), remedy)
        for what, per_cell, most, remedy in growing
        if per_cell > 0
    ]
    return sorted(reached, key=lambda limit: limit.cells)

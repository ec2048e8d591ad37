"""What of a large sweep breaks first, and what helps."""

from __future__ import annotations

from dataclasses import dataclass

from tools.scaling.sizes import Sizes

FOLDERS = 256
"""That images are spread over, by the first two digits of their keys."""

MOST_FILES = 5_000
"""In a folder: more make listing it slow on shared file systems."""

PATIENCE_SECONDS = 600
"""Until a command that was started again begins with its work."""

MOST_OF_A_PAGE = 50e6
"""Bytes that a browser loads from disk in some seconds."""

OPEN_SECONDS = 1e-3
"""To open a file on a shared file system and read its end: assumed, not measured."""


@dataclass(frozen=True)
class Limit:
    """Something that grows with the number of cells.

    Args:
        what: it is, with its unit.
        value: at the number of cells asked for.
        most: that is fine.
        cells: at which that is reached.
        remedy: what to do then.
    """

    what: str
    value: float
    most: float
    cells: int
    remedy: str


def limits(sizes: Sizes, cells: int, memory_bytes: float) -> list[Limit]:
    """Everything that grows, what breaks first before the rest.

    Args:
        sizes: what a cell costs.
        cells: how many there are.
        memory_bytes: of the machine that launches and makes the views.
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
        ("report's page, MB", sizes.page_bytes / 1e6, MOST_OF_A_PAGE / 1e6, several),
        ("planning, s", costs["plan"].seconds, PATIENCE_SECONDS, several),
        ("dealing out, s", costs["shards"].seconds, PATIENCE_SECONDS, several),
        ("resume: reading rows, s", costs["resume"].seconds, PATIENCE_SECONDS, several),
        (
            "resume: opening images on a shared disk, s",
            OPEN_SECONDS,
            PATIENCE_SECONDS,
            "several sweeps: those that are finished need not be looked at again",
        ),
    ]
    found = [
        Limit(what, each * cells, most, int(most / each), remedy)
        for what, each, most, remedy in growing
        if each > 0
    ]
    return sorted(found, key=lambda limit: limit.cells)

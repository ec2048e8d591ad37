"""The record files of a sweep: append-only, a line a row, the latest line of a cell counts."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sega_bench.store.records import from_line, to_line

Row = dict[str, Any]


class Place(NamedTuple):
    """Where a row stands: the file's name without its folder and ending, and the line's first byte."""

    worker: str
    offset: int


class Journal:
    """All record files of one folder, which need not exist.

    Args:
        folder: ``records/``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def append(self, worker: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to a worker's file: one write, and on disk when this returns.

        A line that a killed writer left torn is ended first, so that it spoils no other.
        """
        if not rows:
            return
        lines = b"".join(map(to_line, rows))
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._path(worker), "a+b") as file:
            file.write(b"\n" * _is_torn(file) + lines)
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> Iterator[tuple[Place, Row | None]]:
        """Every line of every file, None for one that holds no row."""
        for path in sorted(self._folder.glob("*.jsonl")):
            offset = 0
            with open(path, "rb") as file:
                for line in file:
                    yield Place(path.stem, offset), from_line(line)
                    offset += len(line)

    def read(self, place: Place) -> Row:
        """The row at a place that :meth:`lines` gave."""
        with open(self._path(place.worker), "rb") as file:
            file.seek(place.offset)
            row = from_line(file.readline())
        assert row is not None, "record files are only ever appended to"
        return row

    def _path(self, worker: str) -> Path:
        return self._folder / f"{worker}.jsonl"


def _is_torn(file: io.BufferedRandom) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"

"""The records files of a sweep: append-only JSON lines, one row a line, one file a worker.

A logical clock (Lamport 1978) orders lines of different files: a line's turn is one more than the latest turn
that its writer had read. Wall clocks of different hosts would not do.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from sega_bench.store.records import from_line, to_line

Row = dict[str, Any]


class Place(NamedTuple):
    """Location of a row: its file's stem, the byte offset of its line, and its turn."""

    worker: str
    offset: int
    turn: int


class Journal:
    """All records files of one folder, which need not exist.

    Args:
        folder: ``records/``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._latest_turn = 0  # of all lines read so far

    def append(self, worker: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to a worker's file in one write, flushed to disk on return.

        If a killed writer left a torn last line, it is ended first, so that it damages no new row.
        """
        if not rows:
            return
        lines = b"".join(to_line({**row, _TURN: self._latest_turn + 1}) for row in rows)
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self.path(worker), "a+b") as file:
            file.write(b"\n" * _is_torn(file) + lines)
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> Iterator[tuple[Place, Row | None]]:
        """Yield the place and row of every line; the row is None if the line is malformed."""
        for path in sorted(self._folder.glob("*.jsonl")):
            offset = 0
            with open(path, "rb") as file:
                for line in file:
                    turn, row = parse(line)
                    self._latest_turn = max(self._latest_turn, turn)
                    yield Place(path.stem, offset, turn), row
                    offset += len(line)

    def read(self, place: Place) -> Row:
        """Read the row at a place."""
        return next(self.rows([place]))

    def rows(self, places: Iterable[Place]) -> Iterator[Row]:
        """Yield the rows at these places in order, keeping up to 200 files open."""
        with ExitStack() as files:
            opened: dict[str, io.BufferedReader] = {}
            for place in places:
                if place.worker not in opened:
                    if len(opened) == _MOST_OPEN:
                        files.close()
                        opened.clear()
                    opened[place.worker] = files.enter_context(open(self.path(place.worker), "rb"))
                file = opened[place.worker]
                file.seek(place.offset)
                _, row = parse(file.readline())
                assert row is not None, "records files are append-only"
                yield row

    def path(self, worker: str) -> Path:
        """The path of a worker's file, which need not exist."""
        return self._folder / f"{worker}.jsonl"

    def size(self, worker: str) -> int:
        """The size of a worker's file in bytes; 0 if it does not exist."""
        path = self.path(worker)
        return path.stat().st_size if path.exists() else 0


def parse(line: bytes) -> tuple[int, Row | None]:
    """Parse a line into its turn, 0 if it predates turns, and its row, None if malformed."""
    row = from_line(line)
    turn = None if row is None else row.pop(_TURN, None)
    return turn if type(turn) is int else 0, row


_TURN = "turn"
_MOST_OPEN = 200
"""Limit of open files, well below the usual limit of 1,024 a process."""


def _is_torn(file: io.BufferedRandom) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"

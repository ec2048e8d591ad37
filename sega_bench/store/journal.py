"""The record files of a sweep: append-only, a line a row, the latest line of a cell counts.

Which of two files' lines is the later one is told by their turns, a logical clock (Lamport 1978): whoever
appends has first read what there is, and its turn is one more than the latest that it has read.
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
    """Where a row stands: the file's name without its folder and ending, the line's first byte, its turn."""

    worker: str
    offset: int
    turn: int


class Journal:
    """All record files of one folder, which need not exist.

    Args:
        folder: ``records/``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._latest = 0  # turn that was read

    def append(self, worker: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to a worker's file: one write, and on disk when this returns.

        A line that a killed writer left torn is ended first, so that it spoils no other.
        """
        if not rows:
            return
        lines = b"".join(to_line({**row, _TURN: self._latest + 1}) for row in rows)
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self.path(worker), "a+b") as file:
            file.write(b"\n" * _is_torn(file) + lines)
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> Iterator[tuple[Place, Row | None]]:
        """Every line of every file, None for one that holds no row."""
        for path in sorted(self._folder.glob("*.jsonl")):
            offset = 0
            with open(path, "rb") as file:
                for line in file:
                    turn, row = parse(line)
                    self._latest = max(self._latest, turn)
                    yield Place(path.stem, offset, turn), row
                    offset += len(line)

    def read(self, place: Place) -> Row:
        """The row at a place that :meth:`lines` gave."""
        return next(self.rows([place]))

    def rows(self, places: Iterable[Place]) -> Iterator[Row]:
        """The rows at these places, one at a time; each file is opened once."""
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
                assert row is not None, "record files are only ever appended to"
                yield row

    def path(self, worker: str) -> Path:
        """A worker's file, which need not be there."""
        return self._folder / f"{worker}.jsonl"

    def size(self, worker: str) -> int:
        """Bytes of a worker's file."""
        path = self.path(worker)
        return path.stat().st_size if path.exists() else 0


def parse(line: bytes) -> tuple[int, Row | None]:
    """A line's turn, 0 if it is older than turns, and its row, None if it holds none."""
    row = from_line(line)
    turn = None if row is None else row.pop(_TURN, None)
    return turn if type(turn) is int else 0, row


_TURN = "turn"
_MOST_OPEN = 200
"""Files of as many workers are open at once; a process may have some thousand in all."""


def _is_torn(file: io.BufferedRandom) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"

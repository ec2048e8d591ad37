"""What other processes add to a sweep's records, read as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sega_bench.store.folder import Store
from sega_bench.store.journal import parse


class Following:
    """The rows that are added to a folder, by whomever.

    Args:
        store: the folder.
        since: from which byte of each worker's file on; of others those that are added from now on.
    """

    def __init__(self, store: Store, since: Mapping[str, int]) -> None:
        self._store = store
        self._read = {path: since.get(path.stem, path.stat().st_size) for path in self._files()}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Those added since the last call, of each file in order; what is there only in part comes later."""
        for path in self._files():
            added, self._read[path] = _whole_lines(path, self._read.get(path, 0))
            yield from _rows(added)

    def _files(self) -> list[Path]:
        return sorted(self._store.records_dir.glob("*.jsonl"))


def rows_since(store: Store, worker: str, since: int) -> Iterator[dict[str, Any]]:
    """The rows of a worker's file from this byte on."""
    path = store.journal.path(worker)
    if path.exists():
        yield from _rows(_whole_lines(path, since)[0])


def _whole_lines(path: Path, start: int) -> tuple[bytes, int]:
    """What a file holds from a byte on as far as its last line's end, and where that is."""
    with open(path, "rb") as file:
        file.seek(start)
        added = file.read()
    whole = added[: added.rfind(b"\n") + 1]
    return whole, start + len(whole)


def _rows(lines: bytes) -> Iterator[dict[str, Any]]:
    return (row for _, row in map(parse, lines.splitlines()) if row)

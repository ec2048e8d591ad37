"""Reads rows as other processes append them to a sweep's records files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sega_bench.store.folder import Store
from sega_bench.store.journal import parse


class RecordTail:
    """Follows all records files of a folder.

    Args:
        store: the folder.
        since: byte offset at which to start, by worker; other files start at their present end.
    """

    def __init__(self, store: Store, since: Mapping[str, int]) -> None:
        self._store = store
        self._offsets = {path: since.get(path.stem, path.stat().st_size) for path in self._files()}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows added since the last call, file by file; incomplete lines stay for the next call."""
        for path in self._files():
            lines, self._offsets[path] = _whole_lines(path, self._offsets.get(path, 0))
            yield from _rows(lines)

    def _files(self) -> list[Path]:
        return sorted(self._store.records_dir.glob("*.jsonl"))


def rows_since(store: Store, worker: str, since: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a worker's file from a byte offset on."""
    path = store.journal.path(worker)
    if path.exists():
        yield from _rows(_whole_lines(path, since)[0])


def _whole_lines(path: Path, start: int) -> tuple[bytes, int]:
    """Read the complete lines from a byte offset on; returns them and the offset of their end."""
    with open(path, "rb") as file:
        file.seek(start)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    return whole, start + len(whole)


def _rows(lines: bytes) -> Iterator[dict[str, Any]]:
    return (row for _, row in map(parse, lines.splitlines()) if row)

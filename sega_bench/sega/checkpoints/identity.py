"""Identify files by their content: sha256 digests, cached between runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sega_bench.errors import UserError


def file_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """The sha256 of every file, in hexadecimal.

    Raises:
        UserError: a file cannot be read.
    """
    cache = _HashCache.read()
    try:
        digests = {path: cache.digest(path) for path in paths}
    except OSError as error:
        raise UserError(f"model: {error.filename} cannot be read ({error.strerror})") from error
    cache.write()
    return digests


def digest_lines(lines: Iterable[str]) -> str:
    """The first 16 hex digits of the sha256 of all lines, in order."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()[:16]


@dataclass
class _HashCache:
    """Caches digests by path and file status, because hashing gigabytes takes seconds.

    Size and modification time alone do not identify a file: networks of one layout have equal sizes, and
    copying can keep the time. The inode's number or its change time then differs.
    """

    path: Path
    entries: dict[str, list[Any]]

    @classmethod
    def read(cls) -> _HashCache:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(base) / "sega_bench" / "weights.json"
        try:
            return cls(path, dict(json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            return cls(path, {})

    def digest(self, path: Path) -> str:
        stat = path.stat()
        status = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        entry = self.entries.get(str(path.resolve()))
        if isinstance(entry, list) and entry[:-1] == status:
            return str(entry[-1])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.entries[str(path.resolve())] = [*status, digest]
        return digest

    def write(self) -> None:
        """Store the cache if possible; without it the next run only takes longer."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Replace atomically: several processes may share the cache.
            temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(self.entries))
            temporary.replace(self.path)
        except OSError:
            pass

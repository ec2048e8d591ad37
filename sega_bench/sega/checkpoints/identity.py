"""What a file is, by its content: sha256, remembered between runs."""

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
    """sha256 of every file, in hexadecimal.

    Raises:
        UserError: a file cannot be read.
    """
    known = _HashCache.read()
    try:
        digests = {path: known.digest(path) for path in paths}
    except OSError as error:
        raise UserError(f"model: {error.filename} cannot be read ({error.strerror})") from error
    known.write()
    return digests


def digest_lines(lines: Iterable[str]) -> str:
    """16 hex digits of all lines, in their order."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()[:16]


@dataclass
class _HashCache:
    """Digests by path and what the file system says of a file: gigabytes take seconds to read.

    Another file's size and time of modification may well be the same, since networks of one layout are
    equally long and copying can keep the time; its inode's number or time of change is not.
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
        seen = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        entry = self.entries.get(str(path.resolve()))
        if isinstance(entry, list) and entry[:-1] == seen:
            return str(entry[-1])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.entries[str(path.resolve())] = [*seen, digest]
        return digest

    def write(self) -> None:
        """Best effort: a cache that cannot be kept costs time, nothing else."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(self.entries))
            temporary.replace(self.path)
        except OSError:
            pass

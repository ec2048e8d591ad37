"""Atomic file replacement: a file is whole or absent, even if its writer is killed."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_STALE_SECONDS = 3600.0


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file atomically: a reader sees the old content or the new, never a part of it."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces ``path`` when the block ends without an error.

    The content is flushed to disk before the rename, so that a crash cannot leave an empty file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def clear_abandoned(folder: Path) -> None:
    """Remove the temporary files of dead writers in a folder and its subfolders."""
    for path in folder.rglob("*-*-*.tmp"):
        if _is_abandoned(path):
            path.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """A name beside ``path`` that is unique to this host, process and thread, and names all three."""
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}.tmp")


def _is_abandoned(path: Path) -> bool:
    """Whether a temporary file's writer has ended.

    Processes of another host cannot be looked up: their files count as abandoned after an hour.
    """
    ours = re.search(rf"\.{re.escape(socket.gethostname())}-(\d+)-\d+\.tmp$", path.name)
    if ours:
        return not is_running(int(ours[1]))
    try:
        return time.time() - path.stat().st_mtime > _STALE_SECONDS
    except FileNotFoundError:  # its writer is alive and has just renamed it
        return False


def is_running(pid: int) -> bool:
    """Whether a process of this host exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, under another user
        pass
    return True

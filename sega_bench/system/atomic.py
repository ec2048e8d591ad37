"""Files that are whole or absent, whatever kills their writer."""

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
    """Put a whole file in place of what was there: a reader sees the old one or the new, never a part."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file, in place of what was there once the block has ended without an error."""
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
    """Remove what killed writers left anywhere in a folder."""
    for path in folder.rglob("*-*-*.tmp"):
        if _is_abandoned(path):
            path.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """A name beside ``path`` that no other thread, process or machine uses, and that tells who does."""
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}.tmp")


def _is_abandoned(path: Path) -> bool:
    """Whether a temporary file's writer is gone; on another machine, where one can't ask, an hour must do."""
    ours = re.search(rf"\.{re.escape(socket.gethostname())}-(\d+)-\d+\.tmp$", path.name)
    if ours:
        return not is_running(int(ours[1]))
    try:
        return time.time() - path.stat().st_mtime > _STALE_SECONDS
    except FileNotFoundError:  # renamed meanwhile: its writer lives
        return False


def is_running(pid: int) -> bool:
    """Whether a process of this machine has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

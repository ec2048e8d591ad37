"""One command at a time works on a sweep's folder: a lock file, and the heartbeat of who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any

from sega_bench.errors import UserError
from sega_bench.store.folder import Store
from sega_bench.system.atomic import is_running

BEAT_SECONDS = 20.0
"""How often a holder touches its lock."""

STALE_SECONDS = 120.0
"""A lock that was not touched for so long is nobody's."""

_held: dict[str, Path] = {}
"""Locks of this process, by their launch."""


@dataclass(frozen=True)
class Holder:
    """Who works on a folder.

    Args:
        host, pid: the process.
        launch: names one command, since a pid comes again.
        since: when it began, UTC.
    """

    host: str
    pid: int
    launch: str
    since: str

    def is_gone(self) -> bool:
        """Whether it is known to have ended; of another host one can't know."""
        if self.host != socket.gethostname():
            return False
        if self.pid == os.getpid():  # or one before us had our pid
            return self.launch not in _held
        return not is_running(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (launch {self.launch}, since {self.since})"


@contextmanager
def held(store: Store, *, attaches: bool = False) -> Iterator[Callable[[], None]]:
    """The folder's lock, given back on whatever way out; a lock of the dead is taken over.

    Args:
        store: the folder.
        attaches: whether workers on a cluster, which need no command to hold the lock, are this one's.

    Yields:
        What raises a UserError once another command has taken the lock over, as it may from a process that
        stood still for :data:`STALE_SECONDS`.

    Raises:
        UserError: another command works on the folder, or nothing can be written there.
    """
    mine = Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        launch=uuid.uuid4().hex[:8],
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    path, stop, lost = store.lock_path, Event(), Event()
    _held[mine.launch] = path
    try:
        with store.space():
            _take(path, mine)
        if store.launch_path.exists() and not attaches:
            raise UserError(
                f"output_dir: {store.root} has workers on a cluster: the command that started them attaches, "
                f"and Ctrl-C cancels them; if they are gone for good, remove {store.launch_path}"
            )
        beat = Thread(target=_beat, args=(path, mine, stop, lost), name="lock", daemon=True)
        beat.start()
        try:
            yield lambda: _confirm(path, lost)
        finally:
            stop.set()
            beat.join()
    finally:
        _give_back(path, mine.launch)
        del _held[mine.launch]


def release_all() -> None:
    """Give back every lock of this process, which is about to end without running its cleanups."""
    for launch, path in _held.items():
        _give_back(path, launch)


def _take(path: Path, mine: Holder) -> None:
    while True:
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            with _alone(path.parent):
                _remove_abandoned(path)
            continue
        try:
            os.write(file, json.dumps(asdict(mine)).encode())
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(file)
        return


def _remove_abandoned(path: Path) -> None:
    """Clear the way of a lock that is nobody's any more.

    Raises:
        UserError: it is somebody's.
    """
    holder, age = _holder(path), _age(path)
    if age is None:
        return
    if age <= STALE_SECONDS and not (holder and holder.is_gone()):
        raise UserError(
            f"output_dir: {path.parent} is in use by {holder or 'a command that has just begun'}: wait until "
            "it ends, or choose another name="
        )
    path.unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One at a time, or else a second might remove what the first took over and has made its own.

    Where a file system has no such locks, the heartbeat of who lost finds out.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _holder(path: Path) -> Holder | None:
    """Whose lock it is; None if it says nothing, or is not there."""
    try:
        said: Any = json.loads(path.read_bytes())
        holder = Holder(**said)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return holder if type(holder.pid) is int and holder.pid > 0 else None


def _age(path: Path) -> float | None:
    """Seconds since a lock was touched, by the clock of its file system; None if it is not there."""
    os.utime(path.parent)
    try:
        return path.parent.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return None


def _beat(path: Path, mine: Holder, stop: Event, lost: Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        if _holder(path) not in (mine, None):
            lost.set()
            return
        with suppress(OSError):  # a file system that does not answer may come back
            os.utime(path)


def _confirm(path: Path, lost: Event) -> None:
    if lost.is_set():
        raise UserError(
            f"output_dir: {path.parent} was taken over by {_holder(path) or 'another command'} while this "
            "one stood still: what was done is kept"
        )


def _give_back(path: Path, launch: str) -> None:
    holder = _holder(path)
    if holder is not None and holder.launch == launch:
        with suppress(OSError):  # of a disk that can't be written any more: it goes stale
            path.unlink()

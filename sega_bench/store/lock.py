"""Exclusive lock on a sweep's folder: a lock file that its holder refreshes with a heartbeat."""

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

HEARTBEAT_SECONDS = 20.0
"""Interval at which a holder touches its lock."""

STALE_SECONDS = 120.0
"""Age after which a lock counts as abandoned."""

_held: dict[str, Path] = {}
"""Paths of the locks that this process holds, by launch."""


@dataclass(frozen=True)
class Holder:
    """The command that holds a lock.

    Args:
        host, pid: its process.
        launch: a random id of the command, because pids are reused.
        since: its start, UTC in ISO 8601.
    """

    host: str
    pid: int
    launch: str
    since: str

    def is_gone(self) -> bool:
        """Whether the process has certainly ended; on another host that is unknown."""
        if self.host != socket.gethostname():
            return False
        if self.pid == os.getpid():  # an earlier process may have had this pid
            return self.launch not in _held
        return not is_running(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (launch {self.launch}, since {self.since})"


@contextmanager
def held(store: Store, *, attach_workers: bool = False) -> Iterator[Callable[[], None]]:
    """Hold the folder's lock during the block, taking over the lock of a command that has ended.

    Args:
        store: the folder.
        attach_workers: whether this command may attach to cluster workers that outlived their launcher.

    Yields:
        A function that raises a UserError if another command has taken over the lock, which happens after
        this process was suspended for :data:`STALE_SECONDS`.

    Raises:
        UserError: another command holds the lock, or the folder cannot be written.
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
        with store.reporting_disk_errors():
            _acquire(path, mine)
        if store.launch_path.exists() and not attach_workers:
            raise UserError(
                f"output_dir: {store.root} has workers on a cluster: the command that started them attaches, "
                f"and Ctrl-C cancels them; if they are gone for good, remove {store.launch_path}"
            )
        beat = Thread(target=_send_heartbeats, args=(path, mine, stop, lost), name="lock", daemon=True)
        beat.start()
        try:
            yield lambda: _check_not_lost(path, lost)
        finally:
            stop.set()
            beat.join()
    finally:
        _release(path, mine.launch)
        del _held[mine.launch]


def release_all() -> None:
    """Release every lock of this process, for an exit that runs no ``finally`` block."""
    for launch, path in _held.items():
        _release(path, launch)


def _acquire(path: Path, mine: Holder) -> None:
    while True:
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            with _exclusive(path.parent):
                _remove_abandoned(path)
            continue
        try:
            # Until this write, others see an empty lock: it counts as held until it is stale.
            os.write(file, json.dumps(asdict(mine)).encode())
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(file)
        return


def _remove_abandoned(path: Path) -> None:
    """Remove a lock whose holder has ended.

    Raises:
        UserError: its holder may still be alive.
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
def _exclusive(folder: Path) -> Iterator[None]:
    """Serialise takeovers: otherwise a second command could remove the lock that the first has just taken.

    Some file systems have no ``flock``. There, the heartbeat of the command that lost its lock notices.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _holder(path: Path) -> Holder | None:
    """The holder that a lock file names; None if the file is missing or malformed."""
    try:
        fields: Any = json.loads(path.read_bytes())
        holder = Holder(**fields)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return holder if type(holder.pid) is int and holder.pid > 0 else None


def _age(path: Path) -> float | None:
    """Seconds since a lock was touched; None if it does not exist.

    Both times come from the file system's clock: on a shared one, the hosts' clocks may differ.
    """
    os.utime(path.parent)
    try:
        return path.parent.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return None


def _send_heartbeats(path: Path, mine: Holder, stop: Event, lost: Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        if _holder(path) not in (mine, None):
            lost.set()
            return
        with suppress(OSError):  # a shared file system may be unreachable for a while
            os.utime(path)


def _check_not_lost(path: Path, lost: Event) -> None:
    if lost.is_set():
        raise UserError(
            f"output_dir: {path.parent} was taken over by {_holder(path) or 'another command'} while this "
            "one was suspended: its finished cells are kept"
        )


def _release(path: Path, launch: str) -> None:
    holder = _holder(path)
    if holder is not None and holder.launch == launch:
        with suppress(OSError):  # if the disk has failed, the lock becomes stale
            path.unlink()

"""SIGTERM and Ctrl-C end the program once and in good order, however often they come."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType

INTERRUPTED = 130
"""The exit code."""

_arrived = Event()
_before_leaving: list[Callable[[], None]] = []


def listen() -> None:
    """From now on the first signal raises KeyboardInterrupt in the main thread.

    Schedulers repeat SIGTERM: later ones are ignored. Who repeats Ctrl-C does not want to wait: the program
    ends at once.
    """
    _arrived.clear()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as a shell starts what runs in the background
        signal.signal(signal.SIGINT, _interrupt)


def before_leaving(work: Callable[[], None]) -> None:
    """What to do before the program ends at once, when no ``finally`` is reached."""
    _before_leaving.append(work)


@contextmanager
def held(*numbers: signal.Signals) -> Iterator[None]:
    """Signals that come meanwhile arrive afterwards; to processes that are started in here they never do."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check() -> None:
    """Raise the KeyboardInterrupt again that was lost: Python ignores one that is raised in a destructor."""
    if _arrived.is_set():
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, _leave)
    _arrived.set()
    raise KeyboardInterrupt


def _leave(number: int, frame: FrameType | None) -> None:
    for work in _before_leaving:
        work()
    os._exit(INTERRUPTED)

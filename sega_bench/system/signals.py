"""SIGTERM and Ctrl-C end the program once and in good order, however often they come."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType
from typing import Any

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
    """Signals that come meanwhile arrive afterwards; to processes that are started in here they never do.

    These inherit the mask of the main thread, from which this is to be called. Here that is not enough:
    another thread takes the signal then, and Python calls its handler in the main thread all the same.
    """
    came: list[int] = []
    handlers: dict[int, Any] = {}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                handlers[number] = signal.signal(number, lambda number, frame: came.append(number))
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for held_back, handler in handlers.items():
            signal.signal(held_back, handler)
        for arrived in came:
            signal.raise_signal(arrived)


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

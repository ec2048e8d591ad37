"""Signal handlers: the first SIGTERM or Ctrl-C ends the program in good order."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""Exit code of an interrupted program."""

_arrived = Event()
_before_immediate_exit: list[Callable[[], None]] = []


def listen() -> None:
    """Install handlers: the first SIGTERM or SIGINT raises KeyboardInterrupt in the main thread.

    Later SIGTERMs are ignored, because schedulers repeat them. A second Ctrl-C ends the program at once.
    """
    _arrived.clear()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # a shell ignores SIGINT for background jobs
        signal.signal(signal.SIGINT, _interrupt)


def before_immediate_exit(work: Callable[[], None]) -> None:
    """Register work for an immediate exit, which runs no ``finally`` block."""
    _before_immediate_exit.append(work)


@contextmanager
def deferred(*numbers: signal.Signals) -> Iterator[None]:
    """Defer signals until the block ends; processes started in the block never receive them.

    Call this in the main thread: child processes inherit its signal mask. The mask alone does not protect
    this process, because another thread can receive the signal and Python then runs the handler in the
    main thread. So the handlers are replaced as well.
    """
    received: list[int] = []
    handlers: dict[int, Any] = {}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                handlers[number] = signal.signal(number, lambda number, frame: received.append(number))
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for replaced, handler in handlers.items():
            signal.signal(replaced, handler)
        for deferred_number in received:
            signal.raise_signal(deferred_number)


def check() -> None:
    """Raise KeyboardInterrupt if a signal has arrived; Python drops one that is raised in a destructor."""
    if _arrived.is_set():
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, _exit_immediately)
    _arrived.set()
    raise KeyboardInterrupt


def _exit_immediately(number: int, frame: FrameType | None) -> None:
    for work in _before_immediate_exit:
        work()
    os._exit(INTERRUPTED)

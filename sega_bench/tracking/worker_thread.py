"""Work for one thread that nobody has to wait for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

_Result = TypeVar("_Result")


class Background:
    """Does what it is given, one thing after the other; what it is stuck in does not keep the program alive.

    Args:
        name: of its thread.
    """

    def __init__(self, name: str) -> None:
        self._waiting: SimpleQueue[Callable[[], None]] = SimpleQueue()
        Thread(target=self._work, name=name, daemon=True).start()

    @property
    def behind(self) -> int:
        """How much is waiting."""
        return self._waiting.qsize()

    def submit(self, work: Callable[[], _Result]) -> Future[_Result]:
        """Do this after all else that was given; returns at once."""
        future: Future[_Result] = Future()

        def do() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._waiting.put(do)
        return future

    def _work(self) -> None:
        while True:
            self._waiting.get()()

"""A worker thread that nobody has to wait for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

_Result = TypeVar("_Result")


class WorkerThread:
    """Runs submitted work in order on a daemon thread, which does not keep the program alive if it is stuck.

    Args:
        name: the thread's.
    """

    def __init__(self, name: str) -> None:
        self._waiting: SimpleQueue[Callable[[], None]] = SimpleQueue()
        Thread(target=self._work, name=name, daemon=True).start()

    @property
    def behind(self) -> int:
        """How many pieces of work wait."""
        return self._waiting.qsize()

    def submit(self, work: Callable[[], _Result]) -> Future[_Result]:
        """Queue a piece of work; returns at once."""
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

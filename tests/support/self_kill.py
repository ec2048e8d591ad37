"""Kills the current process at a random moment."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any


class SelfKill(threading.Thread):
    """Sends SIGKILL to its own process some time after a number of file events.

    Counting events makes the place of the kill independent of the machine's speed.

    Args:
        events: files opened, renamed or removed before the kill.
        delay: seconds from the last of them to the kill.
    """

    def __init__(self, events: int, delay: float) -> None:
        super().__init__(daemon=True)
        self.events, self.delay, self.reached = events, delay, threading.Event()

    def count_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook (:func:`sys.addaudithook`) that counts file events."""
        if event in ("open", "os.rename", "os.remove"):
            self.events -= 1
            if self.events <= 0:
                self.reached.set()

    def run(self) -> None:
        self.reached.wait()
        time.sleep(self.delay)
        os.kill(os.getpid(), signal.SIGKILL)

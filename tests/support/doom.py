"""A process that kills itself at a moment nobody chose."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any


class Doom(threading.Thread):
    """Kills its own process a moment after it has done so much: at any place, however fast the machine."""

    def __init__(self, events: int, moment: float) -> None:
        super().__init__(daemon=True)
        self.events, self.moment, self.reached = events, moment, threading.Event()

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """One more file opened, renamed or removed."""
        if event in ("open", "os.rename", "os.remove"):
            self.events -= 1
            if self.events <= 0:
                self.reached.set()

    def run(self) -> None:
        self.reached.wait()
        time.sleep(self.moment)
        os.kill(os.getpid(), signal.SIGKILL)

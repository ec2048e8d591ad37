"""Progress of a sweep: a bar on a terminal, a line every 15 seconds in a log file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_LINE_EVERY_SECONDS = 15.0


class Meter(Protocol):
    """Counts finished work; the remaining time follows from the totals given to :func:`progress`."""

    def evaluations(self, count: int) -> None:
        """Add UNet evaluations. They measure progress because cells differ in cost."""
        ...

    def cell(self, *, failed: bool) -> None:
        """Add one finished cell, whether it was recorded as done or failed."""
        ...

    def workers(self, count: int) -> None:
        """Set the number of live worker processes; a sweep in one process never calls it."""
        ...


@contextmanager
def progress(console: Console, unet_evals: int, cells: int) -> Iterator[Meter]:
    """Show a sweep's progress while the block runs.

    Args:
        console: where to show it; without a terminal, lines are printed instead of a bar.
        unet_evals: total UNet evaluations.
        cells: total cells.
    """
    if not console.is_terminal:
        yield _Lines(console, unet_evals, cells)
        return
    bar = Progress(
        TextColumn("generating"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.fields[cells]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        yield _Bar(bar, unet_evals, cells)


class _Counter:
    """Counts evaluations, cells, failures and workers, and describes them in one line."""

    def __init__(self, unet_evals: int, cells: int) -> None:
        self.total, self.cells = unet_evals, cells
        self.evaluated = self.done = self.failed = 0
        self.live_workers: int | None = None
        self.rate_start: tuple[float, int] | None = None

    def evaluations(self, count: int) -> None:
        self.evaluated += count
        if self.rate_start is None:
            self.rate_start = time.perf_counter(), count
        self.show()

    def cell(self, *, failed: bool) -> None:
        self.done += 1
        self.failed += failed
        self.show()

    def workers(self, count: int) -> None:
        self.live_workers = count
        self.show()

    def show(self) -> None:
        """Update the display."""

    @property
    def rate(self) -> float:
        """UNet evaluations a second.

        The clock starts at the end of the first evaluations, so that loading the model does not count.
        """
        if self.rate_start is None:
            return 0.0
        since, count = self.rate_start
        seconds = time.perf_counter() - since
        return (self.evaluated - count) / seconds if seconds > 1 else 0.0  # records arrive in bursts

    def status(self) -> str:
        failures = f", {self.failed} failed" if self.failed else ""
        count = self.live_workers
        workers = "" if count is None else f", {count} worker{'s' * (count != 1)}"
        return f"{self.done}/{self.cells} cells{failures}{workers}"


class _Bar(_Counter):
    def __init__(self, bar: Progress, unet_evals: int, cells: int) -> None:
        super().__init__(unet_evals, cells)
        self.bar = bar
        self.task = bar.add_task("generating", total=unet_evals, cells="", rate="")

    def show(self) -> None:
        self.bar.update(
            self.task, completed=self.evaluated, cells=self.status(), rate=f"{self.rate:.0f} evaluations/s"
        )


class _Lines(_Counter):
    def __init__(self, console: Console, unet_evals: int, cells: int) -> None:
        super().__init__(unet_evals, cells)
        self.console = console
        self.last_printed = time.perf_counter()

    def show(self) -> None:
        now, rate = time.perf_counter(), self.rate
        if now - self.last_printed < _LINE_EVERY_SECONDS or not rate:
            return
        self.last_printed = now
        left = max(0, self.total - self.evaluated) / rate
        self.console.print(
            f"{self.evaluated / self.total:.0%}, {self.status()}, "
            f"{rate:.0f} UNet evaluations/s, {left:.0f} s left",
            highlight=False,
        )

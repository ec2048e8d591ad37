"""How far a sweep is: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_LINE_EVERY_SECONDS = 15.0


class Meter(Protocol):
    """Told what was done; what is left follows from the totals it was made with."""

    def evaluations(self, count: int) -> None:
        """So many UNet evaluations more: the measure of time, since cells differ in cost."""
        ...

    def cell(self, *, failed: bool) -> None:
        """One cell more on disk, or failed."""
        ...

    def workers(self, count: int) -> None:
        """So many processes are at work, if there are others than this one."""
        ...


@contextmanager
def progress(console: Console, unet_evals: int, cells: int) -> Iterator[Meter]:
    """A meter for a sweep of so many UNet evaluations and cells."""
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
    """Evaluations, cells and failures so far, as words."""

    def __init__(self, unet_evals: int, cells: int) -> None:
        self.total, self.cells = unet_evals, cells
        self.evaluated = self.done = self.failed = 0
        self.alive: int | None = None
        self.first: tuple[float, int] | None = None

    def evaluations(self, count: int) -> None:
        self.evaluated += count
        if self.first is None:
            self.first = time.perf_counter(), count
        self.show()

    def cell(self, *, failed: bool) -> None:
        self.done += 1
        self.failed += failed
        self.show()

    def workers(self, count: int) -> None:
        self.alive = count
        self.show()

    def show(self) -> None:
        """Bring the display up to date."""

    @property
    def rate(self) -> float:
        """UNet evaluations a second, from the end of the first ones: before them there is a model to load."""
        if self.first is None:
            return 0.0
        since, count = self.first
        seconds = time.perf_counter() - since
        return (self.evaluated - count) / seconds if seconds > 1 else 0.0  # records come in bursts

    def words(self) -> str:
        failures = f", {self.failed} failed" if self.failed else ""
        workers = "" if self.alive is None else f", {self.alive} worker{'s' * (self.alive != 1)}"
        return f"{self.done}/{self.cells} cells{failures}{workers}"


class _Bar(_Counter):
    def __init__(self, bar: Progress, unet_evals: int, cells: int) -> None:
        super().__init__(unet_evals, cells)
        self.bar = bar
        self.task = bar.add_task("generating", total=unet_evals, cells="", rate="")

    def show(self) -> None:
        self.bar.update(
            self.task, completed=self.evaluated, cells=self.words(), rate=f"{self.rate:.0f} evaluations/s"
        )


class _Lines(_Counter):
    def __init__(self, console: Console, unet_evals: int, cells: int) -> None:
        super().__init__(unet_evals, cells)
        self.console = console
        self.shown = time.perf_counter()

    def show(self) -> None:
        now, rate = time.perf_counter(), self.rate
        if now - self.shown < _LINE_EVERY_SECONDS or not rate:
            return
        self.shown = now
        left = max(0, self.total - self.evaluated) / rate
        self.console.print(
            f"{self.evaluated / self.total:.0%}, {self.words()}, "
            f"{rate:.0f} UNet evaluations/s, {left:.0f} s left",
            highlight=False,
        )

"""What a sweep of 100,000 cells costs beside its networks, which are stand-ins: time and memory, as figures.

    python tests/measure_long.py [--cells 100000] [--keep FOLDER]

Through the real planner, runner, store and views; says of each bound whether it is met. Wants a disk for as
many small files, and some five minutes. Other work on the machine makes every processor second worth less,
so the time of a cell is told in that of a cell of a short sweep, made a hundred times during the long one.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from support.stub_sweep import fake_networks, small_plan, store

from sega_bench.analysis import frames, summary
from sega_bench.execution import jobs, runner
from sega_bench.planning.planner import plan
from sega_bench.store import Record

SETTINGS = 100
"""Edited cells of one seed; its reference comes to them."""

TENTHS = 10

MOST_SECONDS, MOST_MEGABYTES = 5.0, 500.0
"""Of the plan; the resume's scan may take as many seconds."""

FLAT_MEGABYTES = 25.0
"""Memory is flat if it grows by no more from the first tenth to the last: a quarter of a kilobyte a cell."""

CONSTANT = 0.1

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Cost:
    """Of a piece of work: seconds by the clock and of the processor, and by how much memory grew, in MB."""

    wall: float
    cpu: float
    memory: float


@dataclass(frozen=True)
class Tenth:
    """Of the run: seconds a cell by the clock and of the processor, those of Python's collector among them,
    those of a cell of a short sweep meanwhile, and the memory in use at its end.
    """

    wall: float
    cpu: float
    collector: float
    short: float
    memory: float


def megabytes() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def told(what: str, work: Callable[[], _Result]) -> tuple[_Result, Cost]:
    """Do it, and print what it cost."""
    wall, cpu, memory = time.perf_counter(), time.process_time(), megabytes()
    result = work()
    cost = Cost(time.perf_counter() - wall, time.process_time() - cpu, megabytes() - memory)
    print(f"{what:44} {cost.wall:7.1f} s {cost.cpu:7.1f} s CPU {cost.memory:+8.0f} MB", flush=True)
    return result, cost


def of_a_short_sweep(folder: Path, words: Sequence[str]) -> float:
    """Processor seconds of a cell of one that is made again and again in the same folder."""
    shutil.rmtree(store(folder).records_dir, ignore_errors=True)
    with jobs.locked(small_plan(folder, *words)) as job:
        records = runner.execute(job)
        taken(records, job.missing // 4)
        begun = time.process_time()
        count = taken(records, job.missing // 2)
        spent = time.process_time() - begun
        taken(records, job.missing)
    return spent / count


def taken(records: Iterator[Record], most: int) -> int:
    """Have so many cells made; returns how many were, where fewer are left."""
    return sum(1 for _ in islice(records, most))


@contextmanager
def collector() -> Iterator[Callable[[], float]]:
    """Seconds that Python's collector has taken so far."""
    seconds, begun = 0.0, 0.0

    def note(phase: str, info: dict[str, Any]) -> None:
        nonlocal seconds, begun
        if phase == "start":
            begun = time.perf_counter()
        else:
            seconds += time.perf_counter() - begun

    gc.callbacks.append(note)
    try:
        yield lambda: seconds
    finally:
        gc.callbacks.remove(note)


def make_all(folder: Path, words: Sequence[str], short: Sequence[str]) -> list[Tenth]:
    """Run the sweep; prints each tenth of it."""
    tenths: list[Tenth] = []
    with fake_networks(), jobs.locked(small_plan(folder, *words)) as job, collector() as collected:
        records, size = runner.execute(job), job.missing // TENTHS**2
        of_a_short_sweep(folder / "short", short)  # its folders are made
        for _ in range(TENTHS):
            parts, yardsticks = [], []
            for _ in range(TENTHS):
                begun = time.perf_counter(), time.process_time(), collected()
                taken(records, size)
                ended = time.perf_counter(), time.process_time(), collected()
                parts.append(np.subtract(ended, begun) / size)
                yardsticks.append(of_a_short_sweep(folder / "short", short))
            wall, cpu, garbage = np.mean(parts, axis=0)
            tenths.append(Tenth(wall, cpu, garbage, float(np.mean(yardsticks)), megabytes()))
            print(f"  {len(tenths) * TENTHS * size:7,} cells: {_line(tenths[-1])}", flush=True)
        taken(records, job.missing)
    return tenths


def _line(tenth: Tenth) -> str:
    wall, cpu, garbage, short = (
        1e3 * seconds for seconds in (tenth.wall, tenth.cpu, tenth.collector, tenth.short)
    )
    times = f"{wall:5.2f} ms a cell, {cpu:5.2f} ms CPU (collector {garbage:.3f})"
    return f"{times}, of a short sweep {short:5.2f} ms CPU, {tenth.memory:6.0f} MB"


def constancy(values: Sequence[float]) -> tuple[str, bool]:
    """How far each tenth is off the mean, and by how much a line through all of them rises, as words."""
    relative = np.asarray(values) / np.mean(values)
    (slope, _), covariance = np.polyfit(np.linspace(0, 1, len(values)), relative, 1, cov=True)
    said = (
        f"tenths {relative.min() - 1:+.1%} to {relative.max() - 1:+.1%} off their mean, "
        f"{slope:+.1%} ± {np.sqrt(covariance[0, 0]):.1%} over the run"
    )
    return said, bool(abs(relative - 1).max() <= CONSTANT and abs(slope) <= CONSTANT)


def verdict(what: str, said: str, is_met: bool) -> None:
    print(f"{'met    ' if is_met else 'NOT met'}  {what}: {said}")


def measure(folder: Path, cells: int) -> None:
    """Print all of it."""
    settings = (
        "axes.edit_threshold=[0.5,0.6,0.7,0.8,0.9,0.91,0.92,0.93,0.94,0.95]",
        "+axes.edit_guidance_scale=[1,2,3,4,5,6,7,8,9,10]",
        "engine.threads=1",
    )
    words, short = ((f"seeds={seeds}", *settings) for seeds in (cells // SETTINGS, 4))
    config = small_plan(folder, *words).config
    print(f"libraries and stand-ins loaded: {megabytes():.0f} MB")
    made, planning = told("plan: every cell, checked", lambda: plan(config))
    told("counts: waves, UNet evaluations, keys", made.counts)
    tenths = make_all(folder, words, short)
    job, scan = told("resume: what is there, what is left", lambda: jobs.prepare(made))
    assert (job.missing, job.done) == (0, len(made.cells))
    frame, _ = told("sega_bench.load", lambda: frames.load(store(folder).root))
    told("summary", lambda: summary.summarise(frame, list(made.axes)))
    told("digest of what the views show", lambda: frames.digest(store(folder)))
    print(f"{len(made.cells):,} cells; seconds are the processor's")
    is_small = planning.cpu < MOST_SECONDS and planning.memory < MOST_MEGABYTES
    verdict("plan under 5 s and 500 MB", f"{planning.cpu:.1f} s, {planning.memory:.0f} MB", is_small)
    verdict("resume scan under 5 s", f"{scan.cpu:.1f} s", scan.cpu < MOST_SECONDS)
    growth = tenths[-1].memory - tenths[0].memory
    verdict("flat memory", f"{growth:+.0f} MB of {tenths[0].memory:.0f}", growth < FLAT_MEGABYTES)
    verdict("time a cell constant to 10 %", *constancy([tenth.cpu / tenth.short for tenth in tenths]))
    print(f"         in CPU seconds: {constancy([tenth.cpu for tenth in tenths])[0]}")
    print(f"         by the clock: {constancy([tenth.wall for tenth in tenths])[0]}")


def main() -> None:
    """Measure in a folder that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--keep", type=Path, help="a folder that stays")
    asked = parser.parse_args()
    if asked.keep:
        measure(asked.keep, asked.cells)
        return
    with TemporaryDirectory() as folder:
        measure(Path(folder), asked.cells)


if __name__ == "__main__":
    main()

"""What a sweep of 100,000 cells costs beside its networks, which are stand-ins: time and memory, as figures.

    python tests/measure_long.py [--cells 100000] [--keep FOLDER]

Through the real planner, runner, store and views. Wants a quiet machine, a disk for as many small files, and
some ten minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from stub_sweep import planned, stand_ins, store

from sega_bench import jobs, runner
from sega_bench.planner import plan
from sega_bench.views import tables

SETTINGS = 100
"""Edited cells of one seed; its reference comes to them."""

TENTHS = 10

_Result = TypeVar("_Result")


def megabytes() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def told(what: str, work: Callable[[], _Result]) -> _Result:
    """Do it, and print its wall time, CPU time and growth of memory."""
    begun, used, before = time.perf_counter(), time.process_time(), megabytes()
    result = work()
    wall, cpu = time.perf_counter() - begun, time.process_time() - used
    print(f"{what:44} {wall:7.1f} s {cpu:7.1f} s CPU {megabytes() - before:+8.0f} MB", flush=True)
    return result


def make_all(folder: Path, words: tuple[str, ...]) -> None:
    """Run the sweep; prints for every tenth of it the time a cell and the memory in use."""
    with stand_ins(), jobs.locked(planned(folder, *words)) as job:
        of_tenth = job.missing // TENTHS
        begun, used = time.perf_counter(), time.process_time()
        for done, _ in enumerate(runner.execute(job), start=1):
            if done % of_tenth == 0:
                wall, cpu = time.perf_counter() - begun, time.process_time() - used
                times = f"{1e3 * wall / of_tenth:6.2f} ms a cell, {1e3 * cpu / of_tenth:6.2f} ms of CPU"
                print(f"  {done:7,} cells: {times}, {megabytes():6.0f} MB", flush=True)
                begun, used = time.perf_counter(), time.process_time()


def measure(folder: Path, cells: int) -> None:
    """Print all of it."""
    words = (
        f"seeds={cells // SETTINGS}",
        "axes.edit_threshold=[0.5,0.6,0.7,0.8,0.9,0.91,0.92,0.93,0.94,0.95]",
        "+axes.edit_guidance_scale=[1,2,3,4,5,6,7,8,9,10]",
        "engine.threads=1",
    )
    config = planned(folder, *words).config
    print(f"libraries and stand-ins loaded: {megabytes():.0f} MB")
    made = told("plan: every cell, checked", lambda: plan(config))
    told("counts: waves, UNet evaluations, keys", made.counts)
    make_all(folder, words)
    job = told("resume: what is there, what is left", lambda: jobs.prepare(made))
    assert (job.missing, job.done) == (0, len(made.cells))
    frame = told("sega_bench.load", lambda: tables.load(store(folder).root))
    told("summary", lambda: tables.summarise(frame, list(made.axes)))
    told("digest of what the views show", lambda: tables.digest(store(folder)))


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

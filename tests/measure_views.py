"""What the views of a long sweep cost: memory and time to build, the report's size, and its first paint.

    python tests/measure_views.py [--cells 100 10000 100000]

Memory is the most that one process has had resident, less what it had once it was imported; the folder's rows
and pictures are made up. The paint wants Chromium, and is left out where there is none.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from support import sweeps
from support.browser import CHROMIUM, chromium, open_report

STAGES = ("report", "all")
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def resident(field: str) -> float:
    """``VmRSS``, or ``VmHWM``, the most there was; MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def build(folder: Path, stage: str) -> None:
    """In a process of its own: build, then print how far memory rose and the seconds that it took."""
    from sega_bench.analysis.results import Results
    from sega_bench.views.report.building import write_report
    from sega_bench.views.write_all import write_views

    before, begun = resident("VmRSS"), time.process_time()
    results = Results.read(folder)
    if stage == "report":
        write_report(results)
    else:  # as at a sweep's end
        write_views(results)
    print(resident("VmHWM") - before, time.process_time() - begun)


def painted(folder: Path) -> tuple[float, float]:
    """Seconds to the first paint, and until all cells are there."""
    with chromium() as browser:
        begun = time.perf_counter()
        opened = open_report(browser, folder)
        return opened.page.evaluate(PAINT) / 1000, time.perf_counter() - begun


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def measure(cells: int) -> Mapping[str, str]:
    """One line of the table."""
    with TemporaryDirectory() as root:
        store = sweeps.large(Path(root), cells)
        told = {"cells": f"{len((store.read_plan() or {})['keys']):,}"}
        for stage in STAGES:
            command = [sys.executable, __file__, "--build", root, stage]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            peak, seconds = map(float, said.split())
            told |= {f"{stage}, peak MB": f"{peak:.0f}", f"{stage}, s CPU": f"{seconds:.1f}"}
        told["page MB"] = f"{megabytes(store.report_dir):.1f}"
        if CHROMIUM:
            first, whole = painted(store.root)
            told |= {"painted s": f"{first:.2f}", "all cells s": f"{whole:.2f}"}
        return told


def printed(lines: Callable[[int], Mapping[str, str]], sizes: list[int]) -> None:
    for number, size in enumerate(sizes):
        told = lines(size)
        if number == 0:
            print(" | ".join(told))
        print(" | ".join(value.rjust(len(name)) for name, value in told.items()), flush=True)


def main() -> None:
    """Measure each size in a folder that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[100, 10_000, 100_000])
    parser.add_argument("--build", nargs=2, metavar=("FOLDER", "STAGE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.build:
        build(Path(asked.build[0]), asked.build[1])
    else:
        printed(measure, asked.cells)


if __name__ == "__main__":
    main()

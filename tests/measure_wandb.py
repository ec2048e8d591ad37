"""By how much a dead W&B lengthens a sweep, in every way it can die.

    python tests/measure_wandb.py [--sweep thresholds] [--repeats 3]

Real commands, one after the other, in turn; wants a quiet machine. Each time is the median of its repeats.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from support.wandb_server import FAULTS, faulty

BASE = "disabled"


def seconds(case: str, sweep: str, folder: Path) -> float:
    """Wall time of the whole command."""
    mode = case if case in (BASE, "offline") else "online"
    words = [f"+sweep={sweep}", f"output_dir={folder}", f"wandb.mode={mode}"]
    theirs = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    with faulty(case if case in FAULTS else "none") as ours:
        begun = time.perf_counter()
        command = [sys.executable, "-m", "sega_bench", *words]
        subprocess.run(command, env=theirs | ours, check=True, capture_output=True)
        return time.perf_counter() - begun


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sweep", default="thresholds")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    cases = (BASE, "offline", "none", *FAULTS)
    times: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(asked.repeats):
        for case in cases:
            with TemporaryDirectory() as folder:
                times[case].append(seconds(case, asked.sweep, Path(folder)))
            print(f"{case}: {times[case][-1]:.1f} s", file=sys.stderr, flush=True)
    base, offline = median(times[BASE]), median(times["offline"])
    for case in cases:
        took = median(times[case])
        name = "online, a server that answers" if case == "none" else case
        growth = f"{took / base - 1:+7.1%} of disabled {took / offline - 1:+7.1%} of offline"
        print(f"{name:30} {took:6.1f} s {growth}")


if __name__ == "__main__":
    main()

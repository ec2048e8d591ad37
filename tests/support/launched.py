"""Commands that start workers: started, watched and compared."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from support.small_sweep import rows, store

LOCAL = ("launch=local", "launch.workers=2")


OF_THE_PROCESS = ("worker", "seconds")


def command(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sega_bench", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every worker's rows, in order."""
    files = sorted(store(folder).records_dir.glob("*.jsonl"))
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in files}


def work_pids(folder: Path, worker: str = "") -> list[int]:
    """The workers' processes, which submitit starts with their folder as an argument."""
    mark = f"{store(folder).launch_dir}/{worker}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"submitit.core._submit" in words and any(word.startswith(mark) for word in words):
            found.append(int(path.name))
    return found


def wait_for(folder: Path, worker: str, count: int, process: subprocess.Popen[str]) -> None:
    """Until a worker has recorded so many cells, or the command has ended."""
    records = store(folder).records_dir / f"{worker}.jsonl"
    while not (records.exists() and records.read_bytes().count(b"\n") >= count):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def scores(folder: Path) -> dict[str, dict[str, Any]]:
    """Every row without what names the process that made it, and what a cut trunk books elsewhere."""
    left_out = (*OF_THE_PROCESS, "unet_evals", "checksum")
    return {
        key: {name: value for name, value in row.items() if name not in left_out}
        for key, row in rows(folder).items()
    }

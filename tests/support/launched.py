"""Starts commands that launch workers, watches their records, and compares what they recorded."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from support.small_sweep import rows, store

LOCAL = ("launch=local", "launch.workers=2")


PROCESS_COLUMNS = ("worker", "seconds")
"""Columns that name or time the process that recorded a row."""


def start_command(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sega_bench", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows_by_worker(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Each worker's rows in the order of its records file."""
    files = sorted(store(folder).records_dir.glob("*.jsonl"))
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in files}


def worker_pids(folder: Path, worker: str = "") -> list[int]:
    """Process ids of the local workers: submitit starts them with the launch folder as an argument."""
    prefix = f"{store(folder).launch_dir}/{worker}".encode()
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if b"submitit.core._submit" in arguments and any(
            argument.startswith(prefix) for argument in arguments
        ):
            pids.append(int(path.name))
    return pids


def wait_for_rows(folder: Path, worker: str, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until a worker has recorded ``count`` rows; fails if the command ends before."""
    records = store(folder).records_dir / f"{worker}.jsonl"
    while not (records.exists() and records.read_bytes().count(b"\n") >= count):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def comparable_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows by key, without the columns that depend on the processes or on where trunks were cut."""
    ignored = (*PROCESS_COLUMNS, "unet_evals", "checksum")
    return {
        key: {name: value for name, value in row.items() if name not in ignored}
        for key, row in rows(folder).items()
    }

"""Measure wall times: warmed up, interleaved so that a slow minute affects all functions, as medians."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from sega_bench.planning import manifest


@dataclass(frozen=True)
class Timing:
    """Wall times of one function, in seconds.

    Args:
        median: the median over the repeats.
        all: the time of each repeat, in order.
    """

    median: float
    all: tuple[float, ...]


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, including the kernels that it queues on the device."""
    _wait(device)
    start = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - start


def interleave(
    functions: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, Timing]:
    """Time all functions in turn, ``repeats`` times, after one warm-up call of each."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(seconds(function, device))
    return {name: Timing(median(values), tuple(values)) for name, values in times.items()}


def ratio(timings: Mapping[str, Timing], slow: str, fast: str) -> float:
    """Median over the repeats of one function's time divided by the other's in the same turn."""
    return median(a / b for a, b in zip(timings[slow].all, timings[fast].all, strict=True))


def machine(device: torch.device) -> dict[str, object]:
    """The machine, its load and the versions of the libraries, for JSON."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": manifest.versions(),
    }


def plain(timings: Mapping[str, Timing]) -> dict[str, object]:
    """Convert timings for JSON."""
    return {name: asdict(timing) for name, timing in timings.items()}


def _wait(device: torch.device) -> None:
    # CUDA kernels run asynchronously: without this the clock would stop before they have ended.
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

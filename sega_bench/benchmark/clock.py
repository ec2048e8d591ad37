"""Wall time, fairly: warmed up, interleaved so that a slow minute hurts all alike, medians."""

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
    """Wall times of one thing, in seconds.

    Args:
        median: of the repeats.
        all: every one, in order.
    """

    median: float
    all: tuple[float, ...]


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's queue included."""
    _wait(device)
    start = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - start


def interleave(
    functions: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, Timing]:
    """Time all functions in turn, ``repeats`` times, after one call of each that is not counted."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(seconds(function, device))
    return {name: Timing(median(values), tuple(values)) for name, values in times.items()}


def ratio(timings: Mapping[str, Timing], slow: str, fast: str) -> float:
    """Median over the repeats of how many times as long one took as the other, just before or after it."""
    return median(a / b for a, b in zip(timings[slow].all, timings[fast].all, strict=True))


def machine(device: torch.device) -> dict[str, object]:
    """What the figures were measured on, and how busy it was with other things."""
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
    """Timings for JSON."""
    return {name: asdict(timing) for name, timing in timings.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

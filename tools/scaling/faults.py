"""Simulate a worker that fails and is pre-empted while it works on its shard.

Recorded waves are kept and the wave in flight is lost; the successor continues after the last recorded wave.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Faults:
    """Rates of a worker's faults, which are two independent Poisson processes, and their durations.

    Args:
        failures: per second of work; each kills the process, and the wave in flight is lost.
        preemptions: per second of work; the wave in flight is finished if the grace suffices, else lost.
        grace_seconds: from the pre-emption signal to the kill.
        restart_seconds: from the end of a process to its successor's first wave: queueing and loading.
        start_seconds: from the launch to the first process's first wave.
    """

    failures: float = 0.0
    preemptions: float = 0.0
    grace_seconds: float = 0.0
    restart_seconds: float = 0.0
    start_seconds: float = 0.0


@dataclass(frozen=True)
class Work:
    """One simulated course of a worker's shard.

    Args:
        seconds: from the launch until the last wave is recorded.
        stints: the numbers of the waves that each process recorded.
        lost_seconds: work on waves that were in flight at a kill and were repeated.
        failures, preemptions: their numbers; a failure within the grace counts as one of each.
    """

    seconds: float
    stints: tuple[range, ...]
    lost_seconds: float
    failures: int
    preemptions: int


def draw(waves: Sequence[float], faults: Faults, random: Random) -> Work:
    """Simulate one worker.

    Args:
        waves: duration of each wave of the shard, in seconds.
        faults: rates and durations.
        random: the source of randomness.
    """
    ends = [0.0, *itertools.accumulate(waves)]
    clock, lost = faults.start_seconds, 0.0
    failures = preemptions = recorded = 0
    stints: list[range] = []
    while recorded < len(waves):
        clock += faults.restart_seconds if stints else 0.0
        begun, first = ends[recorded], recorded
        # Times of this process from its first wave on. Exponential waiting times have no memory, so that each
        # process may draw its own.
        failed, signalled = _waiting_time(faults.failures, random), _waiting_time(faults.preemptions, random)
        killed = min(failed, signalled + faults.grace_seconds)
        in_flight = min(len(waves), bisect_right(ends, begun + min(signalled, killed)))
        if ends[in_flight] - begun <= killed:  # the shard's last wave, or the last one before pre-emption
            recorded, worked = in_flight, ends[in_flight] - begun
        else:
            recorded, worked = in_flight - 1, killed
        stints.append(range(first, recorded))
        clock += worked
        lost += worked - (ends[recorded] - begun)
        failures += failed <= worked
        preemptions += signalled <= worked
    return Work(clock, tuple(stints), lost, failures, preemptions)


def _waiting_time(rate: float, random: Random) -> float:
    return random.expovariate(rate) if rate else math.inf

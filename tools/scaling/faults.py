"""A worker that fails and is pre-empted while it makes its shard, drawn at random: nothing is run.

What is recorded stays, what is in flight is lost; whoever takes over goes on behind the last recorded wave.
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
    """What befalls a worker, at moments that do not depend on each other.

    Args:
        failures: a second of its work, after each of which the wave in flight is lost.
        preemptions: a second of its work. The wave in flight is finished where the grace suffices, else lost.
        grace_seconds: from being told until being killed.
        restart_seconds: from the end of a process until its successor is at work: the queue, loading.
        start_seconds: the same for the first one.
    """

    failures: float = 0.0
    preemptions: float = 0.0
    grace_seconds: float = 0.0
    restart_seconds: float = 0.0
    start_seconds: float = 0.0


@dataclass(frozen=True)
class Work:
    """How a worker's shard came about.

    Args:
        seconds: from its start until its last wave is recorded.
        stints: the waves that each process recorded, by number.
        lost_seconds: of work on waves that were in flight and were made again.
        failures, preemptions: how many there were; a failure within the grace is one of each.
    """

    seconds: float
    stints: tuple[range, ...]
    lost_seconds: float
    failures: int
    preemptions: int


def draw(waves: Sequence[float], faults: Faults, random: Random) -> Work:
    """One course of events.

    Args:
        waves: what each wave of the shard takes, in seconds.
        faults: their rates.
        random: where moments are drawn from.
    """
    ends = [0.0, *itertools.accumulate(waves)]
    clock, lost = faults.start_seconds, 0.0
    failures = preemptions = recorded = 0
    stints: list[range] = []
    while recorded < len(waves):
        clock += faults.restart_seconds if stints else 0.0
        begun, first = ends[recorded], recorded
        fails, told = _moment(faults.failures, random), _moment(faults.preemptions, random)
        killed = min(fails, told + faults.grace_seconds)
        in_flight = min(len(waves), bisect_right(ends, begun + min(told, killed)))
        if ends[in_flight] - begun <= killed:  # the last wave, or the one after which it goes
            recorded, worked = in_flight, ends[in_flight] - begun
        else:
            recorded, worked = in_flight - 1, killed
        stints.append(range(first, recorded))
        clock += worked
        lost += worked - (ends[recorded] - begun)
        failures += fails <= worked
        preemptions += told <= worked
    return Work(clock, tuple(stints), lost, failures, preemptions)


def _moment(rate: float, random: Random) -> float:
    return random.expovariate(rate) if rate else math.inf

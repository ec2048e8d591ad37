"""Strong scaling: one sweep on a growing number of workers, with its real shards and simulated faults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean

from sega_bench.cell import Cell
from sega_bench.sega.schedule import Wave, form_waves, group_by_trunk
from sega_bench.sega.shards import Shard, assign_waves
from sega_bench.sega.wave import count_timesteps
from tools.scaling.faults import Faults, draw


@dataclass(frozen=True)
class Sweep:
    """A sweep of any size, as waves to shard.

    Args:
        waves: each holds one trunk or a part of one. A repeated plan holds the same waves many times: they
            differ only in their seeds, on which no count depends.
        limit: largest number of latent rows in a wave.
    """

    waves: tuple[Wave, ...]
    limit: int

    @classmethod
    def repeated(cls, cells: Sequence[Cell], times: int, limit: int) -> Sweep:
        """The plan of one seed, ``times`` times."""
        waves = [wave for part in group_by_trunk(cells) for wave in form_waves(part, limit, count_timesteps)]
        return cls(tuple(waves) * times, limit)

    @property
    def unet_evals(self) -> int:
        """UNet evaluations of one worker, which repeats no shared step."""
        return sum(wave.unet_evals for wave in self.waves)

    def shards(self, workers: int) -> list[list[int]]:
        """UNet evaluations of every wave of every worker; small trunks share a wave."""
        dealt = assign_waves(self.waves, workers, self.limit, count_timesteps)
        return [list(self._packed([*parts.values()])) for parts in dealt]

    def _packed(self, parts: Sequence[Shard]) -> Iterator[int]:
        rows = evals = 0
        for part in parts:
            if rows and rows + len(part.cells) > self.limit:
                yield evals
                rows = evals = 0
            rows += len(part.cells)
            evals += part.unet_evals
        if rows:
            yield evals


@dataclass(frozen=True)
class Scaling:
    """A sweep on a number of workers; simulated values are means over the simulations.

    Args:
        workers: their number.
        hours: until the last worker ends.
        efficiency: one worker's time without faults, divided by the time of all workers until the last ends.
        efficiency_without_faults: the same without faults.
        tail: the longest worker's time divided by the mean worker's.
        repeated: extra share of UNet evaluations, because cut trunks repeat their shared steps.
        lost: share of the work that was in flight when a worker was killed, and is repeated.
        failures, preemptions: their numbers.
        thrice: workers with three failures or more.
    """

    workers: int
    hours: float
    efficiency: float
    efficiency_without_faults: float
    tail: float
    repeated: float
    lost: float
    failures: float
    preemptions: float
    thrice: float


def scale(sweep: Sweep, workers: int, seconds: float, faults: Faults, draws: int, seed: int) -> Scaling:
    """Simulate a sweep on a number of workers.

    Args:
        sweep: the waves.
        workers: their number.
        seconds: per UNet evaluation, with everything that grows with their number.
        faults: rates and durations.
        draws: the number of simulations.
        seed: of the simulations.
    """
    shard_evals = sweep.shards(workers)
    total_evals = sum(map(sum, shard_evals))
    alone = seconds * sweep.unet_evals
    shards = [[seconds * evals for evals in waves] for waves in shard_evals if waves]
    random = Random(f"{seed} {workers}")
    courses = [[draw(waves, faults, random) for waves in shards] for _ in range(draws)]
    longest = [max(worker.seconds for worker in course) for course in courses]
    no_faults = Faults(start_seconds=faults.start_seconds)
    undisturbed = max(draw(waves, no_faults, random).seconds for waves in shards)
    return Scaling(
        workers=workers,
        hours=fmean(longest) / 3600,
        efficiency=alone / (workers * fmean(longest)),
        efficiency_without_faults=alone / (workers * undisturbed),
        tail=fmean(
            last / fmean(worker.seconds for worker in course)
            for last, course in zip(longest, courses, strict=True)
        ),
        repeated=total_evals / sweep.unet_evals - 1,
        lost=fmean(sum(worker.lost_seconds for worker in course) for course in courses)
        / (seconds * total_evals),
        failures=fmean(sum(worker.failures for worker in course) for course in courses),
        preemptions=fmean(sum(worker.preemptions for worker in course) for course in courses),
        thrice=fmean(sum(worker.failures >= 3 for worker in course) for course in courses),
    )

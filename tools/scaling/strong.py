"""One sweep on more and more workers: its own plan and shards, its faults drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean

from sega_bench.cell import Cell
from sega_bench.sega.schedule import Wave, form_waves, sharing
from sega_bench.sega.shards import Shard, deal
from sega_bench.sega.wave import count_timesteps
from tools.scaling.faults import Faults, draw


@dataclass(frozen=True)
class Sweep:
    """A sweep as it is dealt out, of whatever size.

    Args:
        waves: each of one trunk or a piece of one. Of a repeated plan they are the same ones many times: they
            differ in their seed, on which nothing depends that is counted here.
        limit: rows of latents in a wave.
    """

    waves: tuple[Wave, ...]
    limit: int

    @classmethod
    def repeated(cls, cells: Sequence[Cell], times: int, limit: int) -> Sweep:
        """The plan of one seed, so many times."""
        waves = [wave for part in sharing(cells) for wave in form_waves(part, limit, count_timesteps)]
        return cls(tuple(waves) * times, limit)

    @property
    def unet_evals(self) -> int:
        """What one worker makes, each step once."""
        return sum(wave.unet_evals for wave in self.waves)

    def shards(self, workers: int) -> list[list[int]]:
        """UNet evaluations of every wave of every worker; small trunks ride together in one wave."""
        dealt = deal(self.waves, workers, self.limit, count_timesteps)
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
    """A sweep on so many workers; of what is drawn, the mean over draws.

    Args:
        workers: each with its share.
        hours: until the last worker is done.
        efficiency: what one worker alone would work, without faults, by what all are there for.
        efficiency_without_faults: the same where nothing happens.
        tail: the longest worker's time by the mean worker's.
        repeated: share of the evaluations that are made once more because trunks are cut.
        lost: share of the work that was in flight when a worker was killed, and is made again.
        failures, preemptions: how many.
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
    """A sweep on so many workers.

    Args:
        sweep: what there is to do.
        workers: how many.
        seconds: that an evaluation takes, everything included that grows with their number.
        faults: their rates.
        draws: of the whole course of events.
        seed: of those.
    """
    dealt = sweep.shards(workers)
    made = sum(map(sum, dealt))
    alone = seconds * sweep.unet_evals
    shards = [[seconds * evals for evals in waves] for waves in dealt if waves]
    random = Random(f"{seed} {workers}")
    courses = [[draw(waves, faults, random) for waves in shards] for _ in range(draws)]
    longest = [max(worker.seconds for worker in course) for course in courses]
    calm = Faults(start_seconds=faults.start_seconds)
    undisturbed = max(draw(waves, calm, random).seconds for waves in shards)
    return Scaling(
        workers=workers,
        hours=fmean(longest) / 3600,
        efficiency=alone / (workers * fmean(longest)),
        efficiency_without_faults=alone / (workers * undisturbed),
        tail=fmean(
            most / fmean(worker.seconds for worker in course)
            for most, course in zip(longest, courses, strict=True)
        ),
        repeated=made / sweep.unet_evals - 1,
        lost=fmean(sum(worker.lost_seconds for worker in course) for course in courses) / (seconds * made),
        failures=fmean(sum(worker.failures for worker in course) for course in courses),
        preemptions=fmean(sum(worker.preemptions for worker in course) for course in courses),
        thrice=fmean(sum(worker.failures >= 3 for worker in course) for course in courses),
    )

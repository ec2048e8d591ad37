"""Divides a sweep's cells into one shard per worker, and describes how even the shards are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sega_bench.cell import Cell
from sega_bench.sega.shards import Shard, split_into_shards
from sega_bench.sega.wave import count_timesteps


@dataclass(frozen=True)
class Sharding:
    """A sweep's cells in shards.

    Args:
        shards: at most one per worker, none of them empty.
        workers: number of workers requested.
        trunks: the largest number of shards that repeat none of each other's steps.
        unet_evals: UNet evaluations that a single worker would need.
    """

    shards: tuple[Shard, ...]
    workers: int
    trunks: int
    unet_evals: int

    def __str__(self) -> str:
        """How even the shards are, and how many evaluations cutting trunks repeats."""
        lengths = [shard.unet_evals for shard in self.shards]
        text = f"{self.workers} worker{'s' * (self.workers != 1)}"
        if not lengths:
            return text
        if self.workers > self.trunks:
            text += f", more than the {self.trunks} trunk{'s' * (self.trunks != 1)}"
        if len(lengths) < self.workers:
            text += f"; {self.workers - len(lengths)} have nothing to make"
        mean = sum(lengths) / len(lengths)
        text += f"; at most {max(lengths):,} UNet evaluations each, {max(lengths) / mean:.2f} times the mean"
        repeated = sum(lengths) - self.unet_evals
        return f"{text}; {repeated:,} of all are made again where trunks are cut" if repeated > 0 else text


def shard_cells(cells: Sequence[Cell], workers: int, wave_rows: int) -> Sharding:
    """Divide the cells to be generated among workers.

    Args:
        cells: distinct cells.
        workers: number of workers.
        wave_rows: rows of latents in a wave; larger trunks are cut.
    """
    result = split_into_shards(cells, workers, wave_rows, count_timesteps)
    return Sharding(result.shards, workers, result.trunks, result.unet_evals)

"""What each worker is given: a sweep's cells in shards, and how even they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sega_bench.cell import Cell
from sega_bench.sega.shards import Shard, shards
from sega_bench.sega.wave import count_timesteps


@dataclass(frozen=True)
class Deal:
    """Cells to be made, in shards.

    Args:
        shards: not more than there are workers.
        workers: how many were asked for.
        trunks: how many shards none of which repeats another's steps there could be.
        unet_evals: UNet evaluations that one worker alone would make.
    """

    shards: tuple[Shard, ...]
    workers: int
    trunks: int
    unet_evals: int

    def __str__(self) -> str:
        """How even it is, and what it costs that trunks are cut."""
        lengths = [shard.unet_evals for shard in self.shards]
        said = f"{self.workers} worker{'s' * (self.workers != 1)}"
        if not lengths:
            return said
        if self.workers > self.trunks:
            said += f", more than the {self.trunks} trunk{'s' * (self.trunks != 1)}"
        if len(lengths) < self.workers:
            said += f"; {self.workers - len(lengths)} have nothing to make"
        mean = sum(lengths) / len(lengths)
        said += f"; at most {max(lengths):,} UNet evaluations each, {max(lengths) / mean:.2f} times the mean"
        more = sum(lengths) - self.unet_evals
        return f"{said}; {more:,} of all are made again where trunks are cut" if more > 0 else said


def deal(cells: Sequence[Cell], count: int, limit: int) -> Deal:
    """Cells that are to be made, dealt out.

    Args:
        cells: distinct.
        count: of workers.
        limit: rows of latents in a wave.
    """
    made = shards(cells, count, limit, count_timesteps)
    return Deal(made.parts, count, made.trunks, made.unet_evals)

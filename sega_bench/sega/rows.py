"""The latents of a wave and what must be rearranged with them: scheduler state, generators.

Shapes: R rows, C H W of latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sega_bench.cell import Cell
from sega_bench.sega import schedulers
from sega_bench.sega.denoiser import Denoiser
from sega_bench.sega.schedule import Wave, departing, pays_for_trunk, runs_to_the_end


@dataclass(frozen=True, slots=True)
class Row:
    """One latent of a wave: a trunk, or the branch of one cell.

    Args:
        cell: whose image this row becomes, the reference for a trunk.
        riders: positions among the edited cells whose guidance is computed on this row.
        pays: key of the cell that the row's evaluations are booked on.
        is_kept: whether the row is needed after its riders have departed.
    """

    cell: Cell
    riders: tuple[int, ...]
    pays: str
    is_kept: bool


@dataclass
class Rows:
    """The latents of a wave, and all that must be rearranged with them."""

    rows: list[Row]
    latents_RCHW: Tensor
    generators: list[torch.Generator]
    scheduler: Any
    eta: float

    @classmethod
    def start(cls, denoiser: Denoiser, wave: Wave) -> Rows:
        """One row for each trunk, its noise drawn on the CPU from its own seed."""
        first = wave.trunks[0].reference
        scheduler = schedulers.make(first.scheduler, first.scheduler_config, first.num_inference_steps)
        generators = [torch.Generator().manual_seed(trunk.reference.seed) for trunk in wave.trunks]
        shape = (1, *denoiser.latent_shape(first.height, first.width))
        noise = [torch.randn(shape, generator=g, dtype=denoiser.latent_dtype) for g in generators]
        return cls(
            rows=_trunks(wave),
            latents_RCHW=torch.cat(noise).to(denoiser.device) * scheduler.init_noise_sigma,
            generators=generators,
            scheduler=scheduler,
            eta=first.eta,
        )

    def fork(self, leaving: Mapping[int, Cell]) -> None:
        """Give the cells that depart now, by their positions, their own rows; drop trunks that none needs."""
        if not leaving:
            return
        kept: list[tuple[int, Row]] = []
        branches: list[tuple[int, Row]] = []
        for position, row in enumerate(self.rows):
            branches += [(position, _branch(m, leaving[m])) for m in row.riders if m in leaving]
            staying = tuple(m for m in row.riders if m not in leaving)
            if row.is_kept or staying:
                kept.append((position, replace(row, riders=staying)))
        sources = [position for position, _ in kept + branches]
        index = torch.tensor(sources, device=self.latents_RCHW.device)
        schedulers.gather(self.scheduler, index, self.latents_RCHW)
        self.latents_RCHW = self.latents_RCHW[index]
        self.generators = [self.generators[position].clone_state() for position in sources]
        self.rows = [row for _, row in kept + branches]

    def advance(self, timestep: Tensor, eps_RCHW: Tensor) -> None:
        """One scheduler step of all rows, every row with its own noise."""
        arguments = schedulers.step_arguments(self.scheduler, self.eta, self.generators)
        self.latents_RCHW = self.scheduler.step(
            eps_RCHW, timestep, self.latents_RCHW, return_dict=False, **arguments
        )[0]


def _trunks(wave: Wave) -> list[Row]:
    """Trunk rows with their riders: positions among the cells that depart, in the order of the trunks."""
    rows, position = [], 0
    for trunk in wave.trunks:
        count = len(departing(trunk, wave.n))
        riders = tuple(range(position, position + count))
        keep = runs_to_the_end(trunk, wave.n)
        rows.append(Row(trunk.reference, riders, pays_for_trunk(trunk, wave.n), keep))
        position += count
    return rows


def _branch(position: int, cell: Cell) -> Row:
    return Row(cell, (position,), cell.key, is_kept=True)

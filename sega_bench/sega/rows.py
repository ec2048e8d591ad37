"""The latents of a wave, stepped together: trunks, the branches that fork from them, and their noise.

Shapes: R rows of latents C H W. The M edits of a wave are its cells whose semantic guidance is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sega_bench.cell import Cell
from sega_bench.sega import schedulers
from sega_bench.sega.schedule import Wave, branches, ends, pays_for_trunk
from sega_bench.sega.steps import computes_guidance

Generators = list[torch.Generator] | torch.Generator | None
"""A list has one for each row; anything else draws for all rows at once (None: torch's default generator)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One latent of a wave: a trunk, or the branch of one cell.

    Args:
        cell: whose image this row becomes; the reference for a trunk.
        pays: key of the cell that the row's evaluations are booked on.
        ends: the step at which the row is no longer needed.
        leaves: the step at which it forks from its trunk; 0 for a trunk.
        edit: position of the edit whose guidance is added to this row; None for a trunk, and for a branch
            that differs from its trunk in what the model reads.
        branches: the rows that have still to fork from this one.
    """

    cell: Cell
    pays: str
    ends: int
    leaves: int = 0
    edit: int | None = None
    branches: tuple[Row, ...] = ()

    @property
    def computes(self) -> tuple[int, ...]:
        """Positions of the edits whose guidance is computed from this row's estimates."""
        own = () if self.edit is None or self.cell.replay is not None else (self.edit,)
        return (*own, *(m for branch in self.branches for m in branch.computes))


def trunk_rows(wave: Wave) -> tuple[list[Row], tuple[Cell, ...]]:
    """A wave's rows before its first step, and its edits."""
    forks = [branches(trunk, wave.n) for trunk in wave.trunks]
    edits = tuple(fork.cell for trunk in forks for fork in trunk if computes_guidance(fork.cell))
    position = {cell: m for m, cell in enumerate(edits)}
    rows = []
    for trunk, leaving in zip(wave.trunks, forks, strict=True):
        own = [Row(b.cell, b.pays, b.ends, b.leaves, position.get(b.cell.source())) for b in leaving]
        pays, last = pays_for_trunk(trunk, wave.n), ends(trunk, wave.n)
        rows.append(Row(trunk.reference, pays, last, branches=tuple(own)))
    return rows, edits


@dataclass(frozen=True)
class Noise:
    """What the rows of a wave start from, and where their step noise comes from.

    Args:
        latents_RCHW: of standard deviation 1, one for each trunk.
        generators: one for each trunk, so that each draws its own noise as if it ran alone. One that draws
            for all rows at once allows no forks but those that leave every row in its place.
    """

    latents_RCHW: Tensor
    generators: Generators

    @classmethod
    def of_seeds(cls, cells: Sequence[Cell], shape_CHW: Sequence[int], dtype: torch.dtype) -> Noise:
        """Each cell's latents, then its step noise, from its own seed, drawn on the CPU."""
        generators = [torch.Generator().manual_seed(cell.seed) for cell in cells]
        latents = [torch.randn((1, *shape_CHW), generator=g, dtype=dtype) for g in generators]
        return cls(torch.cat(latents), generators)


def _continued(generators: Generators, sources: Sequence[int]) -> Generators:
    """Generators of rows that continue those at ``sources``: the first heir takes it over, others a copy."""
    if not isinstance(generators, list):
        assert list(sources) == list(range(len(sources))), "noise drawn for all rows at once cannot be forked"
        return generators
    heirs: set[int] = set()
    taken = []
    for source in sources:
        taken.append(generators[source].clone_state() if source in heirs else generators[source])
        heirs.add(source)
    return taken


@dataclass
class Rows:
    """The latents of a wave, and all that must be rearranged with them.

    ``is_guided_RHW`` are the positions that a row's edit has acted on so far.
    """

    rows: list[Row]
    latents_RCHW: Tensor
    is_guided_RHW: Tensor
    generators: Generators
    scheduler: Any
    eta: float

    @classmethod
    def start(cls, rows: list[Row], noise: Noise, device: torch.device) -> Rows:
        """Trunks at the noise they begin with."""
        first = rows[0].cell
        scheduler = schedulers.make(first.scheduler, first.scheduler_config, first.num_inference_steps)
        latents_RCHW = noise.latents_RCHW.to(device) * scheduler.init_noise_sigma
        is_guided_RHW = torch.zeros_like(latents_RCHW[:, 0], dtype=torch.bool)
        return cls(rows, latents_RCHW, is_guided_RHW, noise.generators, scheduler, first.eta)

    def fork(self, step: int) -> bool:
        """Give the cells that depart at this step their own rows; drop rows that none needs any more.

        Returns:
            Whether there are other rows now.
        """
        kept: list[tuple[int, Row]] = []
        forked: list[tuple[int, Row]] = []
        for position, row in enumerate(self.rows):
            leaving = [branch for branch in row.branches if branch.leaves == step]
            forked += [(position, branch) for branch in leaving]
            if step < row.ends:
                staying = tuple(branch for branch in row.branches if branch.leaves > step)
                kept.append((position, replace(row, branches=staying) if leaving else row))
        if not forked and len(kept) == len(self.rows):
            return False
        sources = [position for position, _ in kept + forked]
        index = torch.tensor(sources, device=self.latents_RCHW.device)
        schedulers.gather(self.scheduler, index, self.latents_RCHW)
        self.latents_RCHW = self.latents_RCHW[index]
        self.is_guided_RHW = self.is_guided_RHW[index]
        self.generators = _continued(self.generators, sources)
        self.rows = [row for _, row in kept + forked]
        return True

    def advance(self, timestep: Tensor, eps_RCHW: Tensor) -> None:
        """One scheduler step of all rows, every row with its own noise."""
        arguments = schedulers.step_arguments(self.scheduler, self.eta, self.generators)
        self.latents_RCHW = self.scheduler.step(
            eps_RCHW, timestep, self.latents_RCHW, return_dict=False, **arguments
        )[0]

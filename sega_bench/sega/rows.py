"""Step the latents of a wave together: trunks, the branches that fork from them, and their noise.

Shapes: R rows of latents C H W. The M edits of a wave are the cells whose semantic guidance it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sega_bench.cell import Cell
from sega_bench.sega import schedulers
from sega_bench.sega.schedule import Branch, Wave, branches, trunk_billed_to, trunk_end
from sega_bench.sega.steps import computes_guidance

Generators = list[torch.Generator] | torch.Generator | None
"""A list has one per row; a single one draws for all rows at once (None: torch's default generator)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One latent of a wave: a trunk, or the branch of one cell.

    Args:
        cell: whose image this row becomes; the reference for a trunk.
        billed_to: key of the cell that the row's evaluations are billed to.
        end_step: the step from which the row is no longer needed.
        fork_step: the step at which it forks from its trunk; 0 for a trunk.
        edit: position of the edit whose guidance is added to this row; None for a trunk, and for a branch
            whose method changes the texts instead.
        branches: the rows that will fork from this one.
    """

    cell: Cell
    billed_to: str
    end_step: int
    fork_step: int = 0
    edit: int | None = None
    branches: tuple[Row, ...] = ()

    @property
    def computed_edits(self) -> tuple[int, ...]:
        """Positions of the edits whose guidance is computed from this row's estimates."""
        own = () if self.edit is None or self.cell.replay is not None else (self.edit,)
        return (*own, *(m for branch in self.branches for m in branch.computed_edits))


def trunk_rows(wave: Wave) -> tuple[list[Row], tuple[Cell, ...]]:
    """The rows of a wave before its first step, and its edits."""
    forks = [branches(trunk, wave.n) for trunk in wave.trunks]
    edits = tuple(branch.cell for of_trunk in forks for branch in of_trunk if computes_guidance(branch.cell))
    position = {cell: m for m, cell in enumerate(edits)}

    def row(branch: Branch) -> Row:
        edit = position.get(branch.cell.source())
        return Row(branch.cell, branch.billed_to, branch.end_step, branch.fork_step, edit)

    rows = [
        Row(
            trunk.reference,
            trunk_billed_to(trunk, wave.n),
            trunk_end(trunk, wave.n),
            branches=tuple(map(row, of_trunk)),
        )
        for trunk, of_trunk in zip(wave.trunks, forks, strict=True)
    ]
    return rows, edits


@dataclass(frozen=True)
class Noise:
    """The initial noise of a wave's trunks, and the generators of their step noise.

    Args:
        latents_RCHW: of standard deviation 1, one for each trunk.
        generators: one for each trunk, so that each draws the noise that it would draw alone. With a single
            one for all rows, forks must leave every row in its place.
    """

    latents_RCHW: Tensor
    generators: Generators

    @classmethod
    def of_seeds(cls, cells: Sequence[Cell], shape_CHW: Sequence[int], dtype: torch.dtype) -> Noise:
        """Draw each cell's latents from its seed on the CPU; its step noise continues that generator."""
        generators = [torch.Generator().manual_seed(cell.seed) for cell in cells]
        latents = [torch.randn((1, *shape_CHW), generator=g, dtype=dtype) for g in generators]
        return cls(torch.cat(latents), generators)


def _fork_generators(generators: Generators, sources: Sequence[int]) -> Generators:
    """The generators of rows that continue those at ``sources``."""
    if not isinstance(generators, list):
        assert list(sources) == list(range(len(sources))), "noise drawn for all rows at once cannot be forked"
        return generators
    # One object in two rows would draw different noise for each, so all but the first row take a copy.
    continued: set[int] = set()
    forked = []
    for source in sources:
        forked.append(generators[source].clone_state() if source in continued else generators[source])
        continued.add(source)
    return forked


@dataclass
class Rows:
    """The latents of a wave, and all state that is gathered with them at a fork.

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
        """The trunks at their initial noise."""
        first = rows[0].cell
        scheduler = schedulers.make(first.scheduler, first.scheduler_config, first.num_inference_steps)
        latents_RCHW = noise.latents_RCHW.to(device) * scheduler.init_noise_sigma
        is_guided_RHW = torch.zeros_like(latents_RCHW[:, 0], dtype=torch.bool)
        return cls(rows, latents_RCHW, is_guided_RHW, noise.generators, scheduler, first.eta)

    def fork(self, step: int) -> bool:
        """Fork the rows of the cells that leave their trunk at this step, and drop rows no longer needed.

        Returns:
            Whether the rows changed.
        """
        kept: list[tuple[int, Row]] = []
        forked: list[tuple[int, Row]] = []
        for position, row in enumerate(self.rows):
            forking = [branch for branch in row.branches if branch.fork_step == step]
            forked += [(position, branch) for branch in forking]
            if step < row.end_step:
                staying = tuple(branch for branch in row.branches if branch.fork_step > step)
                kept.append((position, replace(row, branches=staying) if forking else row))
        if not forked and len(kept) == len(self.rows):
            return False
        sources = [position for position, _ in kept + forked]
        # One index for all state: any left in the old order would silently continue another row's past.
        index = torch.tensor(sources, device=self.latents_RCHW.device)
        schedulers.gather(self.scheduler, index, self.latents_RCHW)
        self.latents_RCHW = self.latents_RCHW[index]
        self.is_guided_RHW = self.is_guided_RHW[index]
        self.generators = _fork_generators(self.generators, sources)
        self.rows = [row for _, row in kept + forked]
        return True

    def advance(self, timestep: Tensor, eps_RCHW: Tensor) -> None:
        """Take one scheduler step of all rows, each with its own noise."""
        arguments = schedulers.step_arguments(self.scheduler, self.eta, self.generators)
        self.latents_RCHW = self.scheduler.step(
            eps_RCHW, timestep, self.latents_RCHW, return_dict=False, **arguments
        )[0]

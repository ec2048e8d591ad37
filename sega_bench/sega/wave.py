"""Trunks and branches of many images, advanced in lock-step through one UNet.

At every step the estimates that the rows need are listed, each once, cut into micro-batches of one fixed
size, evaluated, scattered back and combined with each cell's own settings. A cell rides on its trunk, where
only its momentum is its own, until it departs; then its row is forked: latents, scheduler state, generator.

Shapes: R rows of latents, M edited cells, K concept slots, E estimates of a step, T texts, B a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sega_bench.cell import Cell
from sega_bench.sega import schedulers
from sega_bench.sega.guidance import Settings, semantic_guidance
from sega_bench.sega.schedule import (
    Wave,
    base_texts,
    concept_texts,
    departing,
    departs,
    form_waves,
    image_owner,
    pays_for_trunk,
    runs_to_the_end,
    uses_momentum,
)

Conditioning = Mapping[str, Tensor]
"""What the UNet reads of one text (no batch dimension) or of a batch, by diffusers' keyword names."""


class Denoiser(Protocol):
    """The networks of a text-to-image diffusion model, as the engine sees them."""

    device: torch.device
    latent_dtype: torch.dtype
    """Of latents, guidance and scheduler; the networks may run in less."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """C H W of the latents of an image of that size in pixels."""
        ...

    def encode(self, text: str) -> Conditioning:
        """What the UNet reads of a text. Called often with the same text: remember it."""
        ...

    def truncation(self, text: str) -> str | None:
        """One line that says what of a text the model does not read; None if it reads all of it."""
        ...

    def predict(self, latents_BCHW: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output (noise or velocity) at one timestep, BCHW in ``latent_dtype``."""
        ...

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Images as uint8 BHW3."""
        ...


@dataclass
class Batching:
    """Sizes that every batch is padded to, so that an image does not depend on its batch mates.

    Args:
        micro: estimates in one pass through the UNet; halved for good when memory runs out.
        decode: latents in one pass through the VAE decoder; halved likewise.
        wave_rows: rows of latents in one wave.
    """

    micro: int = 16
    decode: int = 8
    wave_rows: int = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """One cell made, or failed: then ``image_HWC`` is None and ``error`` says why."""

    cell: Cell
    image_HWC: npt.NDArray[np.uint8] | None
    unet_evals: int
    error: str | None = None


def generate(
    denoiser: Denoiser,
    cells: Iterable[Cell],
    batching: Batching | None = None,
    on_evaluations: Callable[[int], None] = lambda count: None,
) -> Iterator[Outcome]:
    """Make the images of ``cells`` with SEGA, sharing whatever is the same; wave by wave, in no set order.

    Args:
        denoiser: the model, for example :func:`sega_bench.sega.models.load`.
        cells: distinct cells; references are made only if they are among them.
        batching: sizes of the batches.
        on_evaluations: called with the number of UNet evaluations just made.
    """
    batching = batching or Batching()
    for wave in form_waves(cells, batching.wave_rows, count_timesteps):
        yield from run_wave(denoiser, wave, batching, on_evaluations)


def count_timesteps(cell: Cell) -> int:
    """``len(scheduler.timesteps)`` for a cell."""
    return schedulers.count_timesteps(cell.scheduler, cell.scheduler_config, cell.num_inference_steps)


@torch.inference_mode()
def run_wave(
    denoiser: Denoiser,
    wave: Wave,
    batching: Batching,
    on_evaluations: Callable[[int], None] = lambda count: None,
) -> list[Outcome]:
    """Make the images of one wave, in the order of ``wave.cells``."""
    rows = _Rows.start(denoiser, wave)
    edits = _Edits.start(denoiser, wave, rows)
    texts = _Texts.encode(denoiser, wave)
    evaluations = dict.fromkeys((cell.key for cell in wave.cells), 0)
    for step, timestep in enumerate(rows.scheduler.timesteps):
        rows.fork(step, edits)
        wanted = _list_estimates(rows.rows, edits, step, wave.n)
        inputs_RCHW = rows.scheduler.scale_model_input(rows.latents_RCHW, timestep)
        eps_ECHW = _evaluate(denoiser, inputs_RCHW, timestep, wanted, texts, batching, on_evaluations)
        rows.advance(timestep, _combine(eps_ECHW, wanted, rows.rows, edits, step))
        for row, _ in wanted:
            evaluations[rows.rows[row].pays] += 1
    images = _decode(denoiser, rows, batching)
    return [_outcome(cell, images, evaluations, wave.n) for cell in wave.cells]


@dataclass(frozen=True, slots=True)
class _Row:
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
class _Rows:
    """The latents of a wave, and all that must be rearranged with them."""

    rows: list[_Row]
    latents_RCHW: Tensor
    generators: list[torch.Generator]
    scheduler: Any
    eta: float

    @classmethod
    def start(cls, denoiser: Denoiser, wave: Wave) -> _Rows:
        """One row for each trunk, its noise drawn on the CPU from its own seed."""
        first = wave.trunks[0].reference
        scheduler = schedulers.make(first.scheduler, first.scheduler_config, first.num_inference_steps)
        generators = [torch.Generator().manual_seed(trunk.reference.seed) for trunk in wave.trunks]
        shape = (1, *denoiser.latent_shape(first.height, first.width))
        noise = [torch.randn(shape, generator=g, dtype=denoiser.latent_dtype) for g in generators]
        return cls(
            rows=_trunk_rows(wave),
            latents_RCHW=torch.cat(noise).to(denoiser.device) * scheduler.init_noise_sigma,
            generators=generators,
            scheduler=scheduler,
            eta=first.eta,
        )

    def fork(self, step: int, edits: _Edits) -> None:
        """Give the cells that depart at this step their own rows; drop trunks that none needs any more."""
        kept: list[tuple[int, _Row]] = []
        branches: list[tuple[int, _Row]] = []
        for position, row in enumerate(self.rows):
            leaving = [m for m in row.riders if edits.departures[m] == step]
            branches += [(position, _branch(m, edits.cells[m])) for m in leaving]
            staying = tuple(m for m in row.riders if m not in leaving)
            if row.is_kept or staying:
                kept.append((position, replace(row, riders=staying) if leaving else row))
        if not branches:
            return
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


def _trunk_rows(wave: Wave) -> list[_Row]:
    """Trunk rows with their riders: positions in the order of :attr:`_Edits.cells`."""
    rows, position = [], 0
    for trunk in wave.trunks:
        count = len(departing(trunk, wave.n))
        riders = tuple(range(position, position + count))
        keep = runs_to_the_end(trunk, wave.n)
        rows.append(_Row(trunk.reference, riders, pays_for_trunk(trunk, wave.n), keep))
        position += count
    return rows


def _branch(position: int, cell: Cell) -> _Row:
    return _Row(cell, (position,), cell.key, is_kept=True)


@dataclass
class _Edits:
    """The M cells of a wave that SEGA changes: their settings and momentum."""

    cells: tuple[Cell, ...]
    departures: tuple[int, ...]
    has_momentum: tuple[bool, ...]
    settings: Settings
    nu_MCHW: Tensor

    @property
    def slots(self) -> int:
        """K, the most concepts of a cell."""
        return self.settings.scale_MK.shape[1]

    @classmethod
    def start(cls, denoiser: Denoiser, wave: Wave, rows: _Rows) -> _Edits:
        cells = tuple(cell for trunk in wave.trunks for cell in departing(trunk, wave.n))
        return cls(
            cells=cells,
            departures=tuple(departs(cell, wave.n) for cell in cells),
            has_momentum=tuple(uses_momentum(cell, wave.n) for cell in cells),
            settings=Settings.of(cells, wave.n, denoiser.latent_dtype, denoiser.device),
            nu_MCHW=torch.zeros_like(rows.latents_RCHW[:1]).repeat(len(cells), 1, 1, 1),
        )


@dataclass(frozen=True)
class _Texts:
    """Every distinct text of a wave, encoded once."""

    position: dict[str, int]
    conditioning_T: Conditioning

    @classmethod
    def encode(cls, denoiser: Denoiser, wave: Wave) -> _Texts:
        texts = list(dict.fromkeys(text for cell in wave.cells for text in cell.texts))
        encoded = [denoiser.encode(text) for text in texts]
        stacked = {name: torch.stack([one[name] for one in encoded]) for name in encoded[0]}
        return cls({text: i for i, text in enumerate(texts)}, stacked)


Estimates = dict[tuple[int, str], int]
"""The estimates of one step: (row, text) -> position among them."""


def _list_estimates(rows: Sequence[_Row], edits: _Edits, step: int, n: int) -> Estimates:
    """What the rows need at this step, each once: cells that ride on one trunk share a concept's estimate."""
    wanted: Estimates = {}
    for position, row in enumerate(rows):
        texts = [*base_texts(row.cell)]
        for m in row.riders:
            texts += concept_texts(edits.cells[m], step, n)
        for text in texts:
            wanted.setdefault((position, text), len(wanted))
    return wanted


def _evaluate(
    denoiser: Denoiser,
    inputs_RCHW: Tensor,
    timestep: Tensor,
    wanted: Estimates,
    texts: _Texts,
    batching: Batching,
    on_evaluations: Callable[[int], None],
) -> Tensor:
    """The wanted estimates, ECHW, through micro-batches of one size: the last is filled with repeats.

    When the device is out of memory the size is halved, for this step's rest and for all that comes.
    """
    device = inputs_RCHW.device
    row_E = torch.tensor([row for row, _ in wanted], device=device)
    text_E = torch.tensor([texts.position[text] for _, text in wanted], device=device)
    estimates: list[Tensor] = []
    done = 0
    while done < len(wanted):
        batch = torch.arange(done, done + batching.micro, device=device).clamp_(max=len(wanted) - 1)
        conditioning = {name: value[text_E[batch]] for name, value in texts.conditioning_T.items()}
        try:
            eps_BCHW = denoiser.predict(inputs_RCHW[row_E[batch]], timestep, conditioning)
        except torch.OutOfMemoryError as error:
            batching.micro = _half(batching.micro, error)
            continue
        count = min(batching.micro, len(wanted) - done)
        estimates.append(eps_BCHW[:count])
        done += count
        on_evaluations(count)
    return torch.cat(estimates)


def _half(size: int, error: torch.OutOfMemoryError) -> int:
    """The batch size to go on with where this one ran out of memory, if there is a smaller one."""
    if size == 1:
        raise error
    torch.cuda.empty_cache()
    return size // 2


def _combine(eps_ECHW: Tensor, wanted: Estimates, rows: Sequence[_Row], edits: _Edits, step: int) -> Tensor:
    """Classifier-free and semantic guidance of all rows, RCHW; the momenta of ``edits`` move on."""
    device, dtype = eps_ECHW.device, eps_ECHW.dtype
    base = [base_texts(row.cell) for row in rows]
    eps_u_RCHW = eps_ECHW[torch.tensor([wanted[r, texts[0]] for r, texts in enumerate(base)], device=device)]
    eps_t_RCHW = eps_ECHW[torch.tensor([wanted[r, texts[-1]] for r, texts in enumerate(base)], device=device)]
    scale_R = torch.tensor([row.cell.guidance_scale for row in rows], dtype=dtype, device=device)
    guidance_RCHW = scale_R[:, None, None, None] * (eps_t_RCHW - eps_u_RCHW)

    active = [
        (m, r)
        for r, row in enumerate(rows)
        for m in row.riders
        if edits.has_momentum[m] or edits.departures[m] <= step
    ]
    if active:
        index_A = torch.tensor([m for m, _ in active], device=device)
        row_A = torch.tensor([r for _, r in active], device=device)
        # A concept that is not needed at this step has no estimate: any other stands in, and is ignored.
        slots = [_slots(edits.cells[m], r, wanted, edits.slots) for m, r in active]
        edit_ACHW, nu_ACHW = semantic_guidance(
            eps_u_RCHW[row_A],
            eps_ECHW[torch.tensor(slots, device=device)],
            edits.nu_MCHW[index_A],
            edits.settings.take(index_A),
            step,
        )
        edits.nu_MCHW[index_A] = nu_ACHW
        if departed := [a for a, (m, _) in enumerate(active) if edits.departures[m] <= step]:
            departed_A = torch.tensor(departed, device=device)
            guidance_RCHW[row_A[departed_A]] += edit_ACHW[departed_A]
    return eps_u_RCHW + guidance_RCHW


def _slots(cell: Cell, row: int, wanted: Estimates, slots: int) -> list[int]:
    positions = [wanted.get((row, edit.concept), 0) for edit in cell.edits]
    return positions + [0] * (slots - len(positions))


def _decode(
    denoiser: Denoiser, rows: _Rows, batching: Batching
) -> dict[Cell, tuple[npt.NDArray[np.uint8] | None, str | None]]:
    """The image of every row, or why it has none, by its cell; the last batch is filled with repeats.

    When the device is out of memory the size is halved, for the rest and for all that comes.
    """
    finite_R = rows.latents_RCHW.isfinite().flatten(1).all(dim=1).tolist()
    images: list[npt.NDArray[np.uint8]] = []
    while len(images) < len(rows.rows):
        chunk = torch.arange(len(images), len(images) + batching.decode, device=rows.latents_RCHW.device)
        latents_BCHW = rows.latents_RCHW[chunk.clamp_(max=len(rows.rows) - 1)]
        try:
            images += list(denoiser.decode(latents_BCHW).cpu().numpy())
        except torch.OutOfMemoryError as error:
            batching.decode = _half(batching.decode, error)
    return {
        row.cell: (image, None) if is_finite else (None, "the latents became NaN or infinite")
        for row, image, is_finite in zip(rows.rows, images, finite_R, strict=False)
    }


def _outcome(
    cell: Cell,
    images: Mapping[Cell, tuple[npt.NDArray[np.uint8] | None, str | None]],
    evaluations: Mapping[str, int],
    n: int,
) -> Outcome:
    image_HWC, error = images[image_owner(cell, n)]
    return Outcome(cell, image_HWC, evaluations[cell.key], error)

"""Trunks and branches of many images, advanced in lock-step through one UNet.

At every step the estimates that the rows need are listed, each once, cut into micro-batches of one fixed
size, evaluated, scattered back and combined with each cell's own settings. A cell rides on its trunk, where
only its momentum is its own, until it departs; then its row is forked: latents, scheduler state, generator.
A row that replays another prompt's edit takes the guidance that is computed on its source's row.

Shapes: R rows of latents, M edits, K concept slots, E estimates of a step, T texts, B a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sega_bench.cell import Cell
from sega_bench.sega import schedulers
from sega_bench.sega.guidance import Settings, semantic_guidance
from sega_bench.sega.rows import Noise, Row, Rows, trunk_rows
from sega_bench.sega.schedule import Wave, base_texts, concept_texts, form_waves, image_owner, uses_momentum

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
    latents, evaluations = denoise(denoiser, wave, batching, on_evaluations)
    images = _decode(denoiser, latents, batching)
    return [_outcome(cell, images, evaluations, wave.n) for cell in wave.cells]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a wave, done.

    Args:
        index: into ``scheduler.timesteps``.
        timestep: its entry there.
        latents_RCHW: after the step.
        sem_guidance_RCHW: what SEGA added to each row's classifier-free guidance.
    """

    index: int
    timestep: Tensor
    latents_RCHW: Tensor
    sem_guidance_RCHW: Tensor


@torch.inference_mode()
def denoise(
    denoiser: Denoiser,
    wave: Wave,
    batching: Batching,
    on_evaluations: Callable[[int], None] = lambda count: None,
    *,
    noise: Noise | None = None,
    sem_guidance: Sequence[Tensor] | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> tuple[dict[Cell, Tensor], dict[str, int]]:
    """Take all steps of one wave.

    Args:
        denoiser: the model.
        wave: what to make.
        batching: sizes of the batches.
        on_evaluations: called with the number of UNet evaluations just made.
        noise: what the trunks start from; None is each cell's own seed.
        sem_guidance: for each step, RCHW, guidance to add to every row; for waves whose rows do not fork.
        on_step: called after every step.

    Returns:
        The final latents, CHW, of each cell that has an image of its own; and the number of UNet evaluations
        by the key of the cell they are booked on.
    """
    rows, edited = trunk_rows(wave)
    first = rows[0].cell
    shape_CHW = denoiser.latent_shape(first.height, first.width)
    noise = noise or Noise.of_seeds([row.cell for row in rows], shape_CHW, denoiser.latent_dtype)
    state = Rows.start(rows, noise, denoiser.device)
    edits = _Edits.start(edited, wave.n, state.latents_RCHW)
    texts = _Texts.encode(denoiser, wave)
    evaluations = dict.fromkeys((cell.key for cell in wave.cells), 0)
    for step, timestep in enumerate(state.scheduler.timesteps):
        state.fork(step)
        wanted = _list_estimates(state.rows, edits, step, wave.n)
        inputs_RCHW = state.scheduler.scale_model_input(state.latents_RCHW, timestep)
        eps_ECHW = _evaluate(denoiser, inputs_RCHW, timestep, wanted, texts, batching, on_evaluations)
        eps_RCHW, added_RCHW = _combine(eps_ECHW, wanted, state.rows, edits, step)
        if sem_guidance is not None:
            eps_RCHW = eps_RCHW + sem_guidance[step].to(eps_RCHW)
        state.advance(timestep, eps_RCHW)
        for row, _ in wanted:
            evaluations[state.rows[row].pays] += 1
        on_step(Step(step, timestep, state.latents_RCHW, added_RCHW))
    owners = {image_owner(cell, wave.n) for cell in wave.cells}
    final = zip(state.rows, state.latents_RCHW, strict=True)
    return {row.cell: latents for row, latents in final if row.cell in owners}, evaluations


@dataclass
class _Edits:
    """The M cells of a wave whose semantic guidance is computed: their settings and momentum."""

    cells: tuple[Cell, ...]
    has_momentum: tuple[bool, ...]
    settings: Settings
    nu_MCHW: Tensor

    @property
    def slots(self) -> int:
        """K, the most concepts of a cell."""
        return self.settings.scale_MK.shape[1]

    @classmethod
    def start(cls, cells: tuple[Cell, ...], n: int, latents_RCHW: Tensor) -> _Edits:
        return cls(
            cells=cells,
            has_momentum=tuple(uses_momentum(cell, n) for cell in cells),
            settings=Settings.of(cells, n, latents_RCHW.dtype, latents_RCHW.device),
            nu_MCHW=torch.zeros_like(latents_RCHW[:1]).repeat(len(cells), 1, 1, 1),
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


def _list_estimates(rows: Sequence[Row], edits: _Edits, step: int, n: int) -> Estimates:
    """What the rows need at this step, each once: cells that ride on one trunk share a concept's estimate."""
    wanted: Estimates = {}
    for position, row in enumerate(rows):
        texts = [*base_texts(row.cell)]
        for m in row.computes:
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


def _combine(
    eps_ECHW: Tensor, wanted: Estimates, rows: Sequence[Row], edits: _Edits, step: int
) -> tuple[Tensor, Tensor]:
    """Each row's guided estimate and what SEGA added to it, RCHW; the momenta of ``edits`` move on."""
    device, dtype = eps_ECHW.device, eps_ECHW.dtype
    base = [base_texts(row.cell) for row in rows]
    eps_u_RCHW = eps_ECHW[torch.tensor([wanted[r, texts[0]] for r, texts in enumerate(base)], device=device)]
    eps_t_RCHW = eps_ECHW[torch.tensor([wanted[r, texts[-1]] for r, texts in enumerate(base)], device=device)]
    scale_R = torch.tensor([row.cell.guidance_scale for row in rows], dtype=dtype, device=device)
    guidance_RCHW = scale_R[:, None, None, None] * (eps_t_RCHW - eps_u_RCHW)
    added_RCHW = _semantic_guidance(eps_ECHW, eps_u_RCHW, wanted, rows, edits, step)
    return eps_u_RCHW + (guidance_RCHW + added_RCHW), added_RCHW


def _semantic_guidance(
    eps_ECHW: Tensor, eps_u_RCHW: Tensor, wanted: Estimates, rows: Sequence[Row], edits: _Edits, step: int
) -> Tensor:
    """Each edit's guidance, computed on one row, added to the rows that follow it; zero for all others."""
    device = eps_ECHW.device
    added_RCHW = torch.zeros_like(eps_u_RCHW)
    followed = {row.edit for row in rows}
    active = [
        (m, r) for r, row in enumerate(rows) for m in row.computes if edits.has_momentum[m] or m in followed
    ]
    if not active:
        return added_RCHW
    index_A = torch.tensor([m for m, _ in active], device=device)
    # A concept that is not needed at this step has no estimate: any other stands in, and is ignored.
    slots = [_slots(edits.cells[m], r, wanted, edits.slots) for m, r in active]
    edit_ACHW, nu_ACHW = semantic_guidance(
        eps_u_RCHW[torch.tensor([r for _, r in active], device=device)],
        eps_ECHW[torch.tensor(slots, device=device)],
        edits.nu_MCHW[index_A],
        edits.settings.take(index_A),
        step,
    )
    edits.nu_MCHW[index_A] = nu_ACHW
    place = {m: a for a, (m, _) in enumerate(active)}
    if following := [(r, place[row.edit]) for r, row in enumerate(rows) if row.edit in place]:
        row_F, edit_F = torch.tensor(following, device=device).unbind(1)
        added_RCHW[row_F] = edit_ACHW[edit_F]
    return added_RCHW


def _slots(cell: Cell, row: int, wanted: Estimates, slots: int) -> list[int]:
    positions = [wanted.get((row, edit.concept), 0) for edit in cell.edits]
    return positions + [0] * (slots - len(positions))


def _decode(
    denoiser: Denoiser, latents: Mapping[Cell, Tensor], batching: Batching
) -> dict[Cell, tuple[npt.NDArray[np.uint8] | None, str | None]]:
    """The image of every cell's latents, or why it has none; the last batch is filled with repeats.

    When the device is out of memory the size is halved, for the rest and for all that comes.
    """
    latents_NCHW = torch.stack(list(latents.values()))
    finite_N = latents_NCHW.isfinite().flatten(1).all(dim=1).tolist()
    images: list[npt.NDArray[np.uint8]] = []
    while len(images) < len(latents):
        chunk = torch.arange(len(images), len(images) + batching.decode, device=latents_NCHW.device)
        latents_BCHW = latents_NCHW[chunk.clamp_(max=len(latents) - 1)]
        try:
            images += list(denoiser.decode(latents_BCHW).cpu().numpy())
        except torch.OutOfMemoryError as error:
            batching.decode = _half(batching.decode, error)
    return {
        cell: (image, None) if is_finite else (None, "the latents became NaN or infinite")
        for cell, image, is_finite in zip(latents, images, finite_N, strict=False)
    }


def _outcome(
    cell: Cell,
    images: Mapping[Cell, tuple[npt.NDArray[np.uint8] | None, str | None]],
    evaluations: Mapping[str, int],
    n: int,
) -> Outcome:
    image_HWC, error = images[image_owner(cell, n)]
    return Outcome(cell, image_HWC, evaluations[cell.key], error)

"""Trunks and branches of many images, advanced in lock-step through one UNet.

At every step the estimates that the rows need are evaluated once each, in micro-batches of one fixed size,
and combined with each cell's own settings. Nothing is read back from the device before the last step.

A cell rides on its trunk, where only its momentum is its own, until it departs; then its row is forked:
latents, scheduler state, generator. A row that replays another prompt's edit takes the guidance that is
computed on its source's row.

Shapes: R rows of latents, M edits, A of them computed now, E estimates of a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sega_bench.cell import Cell
from sega_bench.sega import schedulers
from sega_bench.sega.batching import Batching, decode
from sega_bench.sega.denoiser import Denoiser
from sega_bench.sega.guidance import semantic_guidance
from sega_bench.sega.pooling import Request, Task, run_pooled
from sega_bench.sega.routes import Edits, Routes, Texts
from sega_bench.sega.rows import Noise, Rows, trunk_rows
from sega_bench.sega.schedule import AT_ONCE, Wave, form_waves
from sega_bench.sega.steps import breakpoints, image_owner
from sega_bench.system.threads import threads


@dataclass(frozen=True, slots=True)
class Outcome:
    """One cell made, or failed: then ``image_HWC`` is None and ``error`` says why.

    ``is_guided_HW`` are the positions of its latents that its edit acted on at any step; None without one.
    """

    cell: Cell
    image_HWC: npt.NDArray[np.uint8] | None
    unet_evals: int
    error: str | None = None
    is_guided_HW: npt.NDArray[np.bool_] | None = None


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
    waves = form_waves(cells, batching.wave_rows, count_timesteps)
    for made in run_waves(denoiser, waves, batching, on_evaluations):
        if isinstance(made, Exception):
            raise made
        yield from made


def count_timesteps(cell: Cell) -> int:
    """``len(scheduler.timesteps)`` for a cell."""
    return schedulers.count_timesteps(cell.scheduler, cell.scheduler_config, cell.num_inference_steps)


@torch.inference_mode()
def run_waves(
    denoiser: Denoiser,
    waves: Iterable[Wave],
    batching: Batching,
    on_evaluations: Callable[[int], None] = lambda count: None,
) -> Iterator[list[Outcome] | Exception]:
    """Make the images of waves, a few at once, and yield those of each in the order of its ``cells``.

    In the order of ``waves``; an exception where one raised it.
    """

    def outcomes(wave: Wave) -> Task[list[Outcome]]:
        denoised = yield from _denoising(denoiser, wave)
        return _outcomes(wave, denoised, _decode(denoiser, denoised.latents, batching))

    yield from run_pooled(denoiser, map(outcomes, waves), batching, on_evaluations, AT_ONCE)


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


class Denoised(NamedTuple):
    """What :func:`denoise` made of a wave.

    Args:
        latents: final ones, CHW, of each cell that has an image of its own.
        evaluations: of the UNet, by the key of the cell they are booked on.
        guided: of those that follow an edit, the positions, bool HW, that it acted on at any step.
    """

    latents: dict[Cell, Tensor]
    evaluations: Counter[str]
    guided: dict[Cell, Tensor]


_Image = tuple[npt.NDArray[np.uint8] | None, str | None]
"""HWC, or why there is none."""


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
) -> Denoised:
    """Take all steps of one wave.

    Args:
        denoiser: the model.
        wave: what to make.
        batching: sizes of the batches.
        on_evaluations: called with the number of UNet evaluations just made.
        noise: what the trunks start from; None is each cell's own seed.
        sem_guidance: for each step, RCHW, guidance to add to every row; for waves whose rows do not fork.
        on_step: called after every step.
    """
    task = _denoising(denoiser, wave, noise, sem_guidance, on_step)
    (denoised,) = run_pooled(denoiser, [task], batching, on_evaluations)
    if isinstance(denoised, Exception):
        raise denoised
    return denoised


def _denoising(
    denoiser: Denoiser,
    wave: Wave,
    noise: Noise | None = None,
    sem_guidance: Sequence[Tensor] | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Task[Denoised]:
    """:func:`denoise` as a task, which asks for every step's estimates."""
    rows, edited = trunk_rows(wave)
    first = rows[0].cell
    shape_CHW = denoiser.latent_shape(first.height, first.width)
    noise = noise or Noise.of_seeds([row.cell for row in rows], shape_CHW, denoiser.latent_dtype)
    state = Rows.start(rows, noise, denoiser.device)
    edits = Edits.start(edited, wave.n, state.latents_RCHW)
    texts = Texts.encode(denoiser, wave)
    evaluations = Counter(dict.fromkeys((cell.key for cell in wave.cells), 0))
    # The scheduler reads its timesteps one by one on the CPU; the UNet reads them on its device.
    timesteps_on_device = state.scheduler.timesteps.to(denoiser.device)
    changes = breakpoints((branch.cell for row in rows for branch in row.branches), wave.n)
    for step, timestep in enumerate(state.scheduler.timesteps):
        if state.fork(step) or step in changes:
            routes = Routes.at(step, state.rows, edits, texts, wave.n)
        inputs_RCHW = state.scheduler.scale_model_input(state.latents_RCHW, timestep)
        eps_ECHW = yield Request(
            inputs_RCHW[routes.row_E], timesteps_on_device[step], routes.conditioning_E, wave.n - step
        )
        with threads(1):  # the others are at other waves' batches, and to wait for them costs more
            eps_RCHW, added_RCHW = _combine(eps_ECHW, routes, edits, step, state.is_guided_RHW)
            if sem_guidance is not None:
                eps_RCHW = eps_RCHW + sem_guidance[step].to(eps_RCHW)
            state.advance(timestep, eps_RCHW)
        evaluations.update(routes.bookings)
        on_step(Step(step, timestep, state.latents_RCHW, added_RCHW))
    owners = {image_owner(cell, wave.n) for cell in wave.cells}
    final = [(row, place) for place, row in enumerate(state.rows) if row.cell in owners]
    return Denoised(
        latents={row.cell: state.latents_RCHW[place] for row, place in final},
        evaluations=evaluations,
        guided={row.cell: state.is_guided_RHW[place] for row, place in final if row.edit is not None},
    )


def _outcomes(wave: Wave, denoised: Denoised, images: Mapping[Cell, _Image]) -> list[Outcome]:
    guided = {cell: is_guided_HW.cpu().numpy() for cell, is_guided_HW in denoised.guided.items()}
    outcomes = []
    for cell in wave.cells:
        owner = image_owner(cell, wave.n)
        image_HWC, error = images[owner]
        outcomes.append(Outcome(cell, image_HWC, denoised.evaluations[cell.key], error, guided.get(owner)))
    return outcomes


def _combine(
    eps_ECHW: Tensor, routes: Routes, edits: Edits, step: int, is_guided_RHW: Tensor
) -> tuple[Tensor, Tensor]:
    """Each row's guided estimate and what SEGA added to it, RCHW.

    The momenta of ``edits`` move on, and ``is_guided_RHW`` takes in what they act on.
    """
    eps_u_RCHW = eps_ECHW[routes.u_R]
    guidance_RCHW = routes.guidance_scale_R111 * (eps_ECHW[routes.t_R] - eps_u_RCHW)
    added_RCHW = torch.zeros_like(eps_u_RCHW)
    if acting := routes.acting:
        edit_ACHW, nu_ACHW, acts_on_AHW = semantic_guidance(
            eps_u_RCHW[acting.row_A],
            eps_ECHW[acting.slot_AK],
            edits.nu_MCHW[acting.edit_A],
            acting.settings,
            step,
        )
        edits.nu_MCHW[acting.edit_A] = nu_ACHW
        added_RCHW[acting.row_F] = edit_ACHW[acting.followed_F]
        is_guided_RHW[acting.row_F] |= acts_on_AHW[acting.followed_F]
    return eps_u_RCHW + (guidance_RCHW + added_RCHW), added_RCHW


def _decode(denoiser: Denoiser, latents: Mapping[Cell, Tensor], batching: Batching) -> dict[Cell, _Image]:
    """The image of every cell's latents, or why it has none."""
    latents_NCHW = torch.stack(list(latents.values()))
    is_finite_N = latents_NCHW.isfinite().flatten(1).all(dim=1).tolist()
    return {
        cell: (image_HW3, None) if is_finite else (None, "the latents became NaN or infinite")
        for cell, image_HW3, is_finite in zip(
            latents, decode(denoiser, latents_NCHW, batching), is_finite_N, strict=True
        )
    }

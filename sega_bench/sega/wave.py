"""Denoise many images in lock-step through one UNet, sharing trunks and forking branches.

Every step evaluates each estimate that the rows need once, in micro-batches of one fixed size, and combines
the estimates with each cell's own settings. Nothing is read back from the device before the last step.

A cell shares its trunk's row, where only its momentum is its own, until it forks: latents, scheduler state
and generator. A row that replays another prompt's edit takes the guidance computed on its source's row.

Shapes: R rows of latents, M edits, A of them active, E estimates of a step.
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
from sega_bench.sega.schedule import WAVES_IN_FLIGHT, Wave, form_waves
from sega_bench.sega.steps import breakpoints, image_owner
from sega_bench.system.threads import threads


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one cell: its image, or None and the ``error``.

    ``is_guided_HW`` are the positions of its latents that its edit acted on at any step; None without an
    edit.
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
    """Generate the images of ``cells``, sharing all common steps; wave by wave, in no particular order.

    Args:
        denoiser: the model, for example :func:`sega_bench.sega.models.load`.
        cells: distinct cells; references are generated only if they are among them.
        batching: batch sizes.
        on_evaluations: called with the number of UNet evaluations just made.
    """
    batching = batching or Batching()
    waves = form_waves(cells, batching.wave_rows, count_timesteps)
    for result in run_waves(denoiser, waves, batching, on_evaluations):
        if isinstance(result, Exception):
            raise result
        yield from result


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
    """Generate the images of waves, a few concurrently.

    Yields:
        In the order of ``waves``, the outcomes of a wave in the order of its ``cells``, or the exception that
        it raised.
    """

    def outcomes(wave: Wave) -> Task[list[Outcome]]:
        denoised = yield from _denoising(denoiser, wave)
        return _outcomes(wave, denoised, _decode(denoiser, denoised.latents, batching))

    yield from run_pooled(denoiser, map(outcomes, waves), batching, on_evaluations, WAVES_IN_FLIGHT)


@dataclass(frozen=True, slots=True)
class Step:
    """One finished step of a wave.

    Args:
        index: into ``scheduler.timesteps``.
        timestep: its entry there.
        latents_RCHW: after the step.
        sem_guidance_RCHW: the semantic guidance added to each row's classifier-free guidance.
    """

    index: int
    timestep: Tensor
    latents_RCHW: Tensor
    sem_guidance_RCHW: Tensor


class Denoised(NamedTuple):
    """The result of :func:`denoise`.

    Args:
        latents: final latents, CHW, of each cell that has an image of its own.
        evaluations: of the UNet, by the key of the cell they are billed to.
        guided: for each of these cells with an edit, the positions, bool HW, that it acted on at any step.
    """

    latents: dict[Cell, Tensor]
    evaluations: Counter[str]
    guided: dict[Cell, Tensor]


_Image = tuple[npt.NDArray[np.uint8] | None, str | None]
"""HWC, or None and the error."""


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
        wave: the cells.
        batching: batch sizes.
        on_evaluations: called with the number of UNet evaluations just made.
        noise: initial noise of the trunks; None draws it from each cell's own seed.
        sem_guidance: guidance of each step, RCHW, to add to every row of a wave without forks.
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
    """:func:`denoise` as a task that yields a request for the estimates of every step."""
    rows, edited = trunk_rows(wave)
    first = rows[0].cell
    shape_CHW = denoiser.latent_shape(first.height, first.width)
    noise = noise or Noise.of_seeds([row.cell for row in rows], shape_CHW, denoiser.latent_dtype)
    state = Rows.start(rows, noise, denoiser.device)
    edits = Edits.start(edited, wave.n, state.latents_RCHW)
    texts = Texts.encode(denoiser, wave)
    evaluations = Counter(dict.fromkeys((cell.key for cell in wave.cells), 0))
    # The scheduler needs its timesteps on the CPU, the UNet on its device: copying each would wait for a GPU.
    timesteps_on_device = state.scheduler.timesteps.to(denoiser.device)
    changes = breakpoints((branch.cell for row in rows for branch in row.branches), wave.n)
    for step, timestep in enumerate(state.scheduler.timesteps):
        if state.fork(step) or step in changes:
            routes = Routes.at(step, state.rows, edits, texts, wave.n)
        inputs_RCHW = state.scheduler.scale_model_input(state.latents_RCHW, timestep)
        eps_ECHW = yield Request(
            inputs_RCHW[routes.row_E], timesteps_on_device[step], routes.conditioning_E, wave.n - step
        )
        with threads(
            1
        ):  # torch's other threads evaluate other waves' batches, and waiting for them costs more
            eps_RCHW, added_RCHW = _combine(eps_ECHW, routes, edits, step, state.is_guided_RHW)
            if sem_guidance is not None:
                eps_RCHW = eps_RCHW + sem_guidance[step].to(eps_RCHW)
            state.advance(timestep, eps_RCHW)
        evaluations.update(routes.billing)
        on_step(Step(step, timestep, state.latents_RCHW, added_RCHW))
    owners = {image_owner(cell, wave.n) for cell in wave.cells}
    final = [(row, position) for position, row in enumerate(state.rows) if row.cell in owners]
    return Denoised(
        latents={row.cell: state.latents_RCHW[position] for row, position in final},
        evaluations=evaluations,
        guided={row.cell: state.is_guided_RHW[position] for row, position in final if row.edit is not None},
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
    """Each row's guided estimate and its semantic guidance, RCHW.

    Updates the momenta of ``edits`` and adds the positions that they act on to ``is_guided_RHW``.
    """
    eps_u_RCHW = eps_ECHW[routes.u_R]
    guidance_RCHW = routes.guidance_scale_R111 * (eps_ECHW[routes.t_R] - eps_u_RCHW)
    added_RCHW = torch.zeros_like(eps_u_RCHW)
    if active := routes.active:
        edit_ACHW, nu_ACHW, acts_on_AHW = semantic_guidance(
            eps_u_RCHW[active.row_A],
            eps_ECHW[active.slot_AK],
            edits.nu_MCHW[active.edit_A],
            active.settings,
            step,
        )
        edits.nu_MCHW[active.edit_A] = nu_ACHW
        added_RCHW[active.row_F] = edit_ACHW[active.followed_F]
        is_guided_RHW[active.row_F] |= acts_on_AHW[active.followed_F]
    return eps_u_RCHW + (guidance_RCHW + added_RCHW), added_RCHW


def _decode(denoiser: Denoiser, latents: Mapping[Cell, Tensor], batching: Batching) -> dict[Cell, _Image]:
    """Decode every cell's latents; an error for those that are not finite."""
    latents_NCHW = torch.stack(list(latents.values()))
    is_finite_N = latents_NCHW.isfinite().flatten(1).all(dim=1).tolist()
    return {
        cell: (image_HW3, None) if is_finite else (None, "the latents became NaN or infinite")
        for cell, image_HW3, is_finite in zip(
            latents, decode(denoiser, latents_NCHW, batching), is_finite_N, strict=True
        )
    }

"""Trunks and branches of many images, advanced in lock-step through one UNet.

At every step the estimates that the rows need are evaluated once each, in micro-batches of one fixed size,
and combined with each cell's own settings. A cell rides on its trunk, where only its momentum is its own,
until it departs; then its row is forked: latents, scheduler state, generator. Nothing is read back from the
device before the last step, so that a GPU is never waited for.

Shapes: R rows of latents, M edited cells, A of them that act, K concept slots, E estimates of a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sega_bench.cell import Cell
from sega_bench.sega import schedulers
from sega_bench.sega.batching import Batching, decode, encode, evaluate
from sega_bench.sega.denoiser import Conditioning, Denoiser
from sega_bench.sega.guidance import Settings, semantic_guidance
from sega_bench.sega.rows import Row, Rows
from sega_bench.sega.schedule import (
    Wave,
    base_texts,
    breakpoints,
    concept_texts,
    departing,
    departs,
    form_waves,
    image_owner,
    uses_momentum,
)


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
    rows, evaluations = _denoise(denoiser, wave, batching, on_evaluations)
    images = _images(denoiser, rows, batching)
    return [_outcome(cell, images, evaluations[cell.key], wave.n) for cell in wave.cells]


def _denoise(
    denoiser: Denoiser, wave: Wave, batching: Batching, on_evaluations: Callable[[int], None]
) -> tuple[Rows, Counter[str]]:
    """All steps of a wave: its rows at the end, and the evaluations booked on each cell's key."""
    rows = Rows.start(denoiser, wave)
    edits = _Edits.start(denoiser, wave, rows)
    texts = _Texts.encode(denoiser, wave)
    evaluations: Counter[str] = Counter()
    # The scheduler reads its timesteps one by one on the CPU; the UNet reads them on its device.
    timesteps = rows.scheduler.timesteps
    timesteps_on_device = timesteps.to(denoiser.device)
    changes = breakpoints(edits.cells, wave.n)
    for step in range(wave.n):
        if step in changes:
            rows.fork(edits.leaving(step))
            routes = _Routes.at(step, rows.rows, edits, texts, wave.n)
        inputs_RCHW = rows.scheduler.scale_model_input(rows.latents_RCHW, timesteps[step])
        eps_ECHW = evaluate(
            denoiser,
            inputs_RCHW[routes.row_E],
            timesteps_on_device[step],
            routes.conditioning_E,
            batching,
            on_evaluations,
        )
        rows.advance(timesteps[step], _combine(eps_ECHW, routes, edits, step))
        evaluations.update(routes.bookings)
    return rows, evaluations


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

    def leaving(self, step: int) -> dict[int, Cell]:
        """The cells that depart at this step, by their positions."""
        return {m: cell for m, cell in enumerate(self.cells) if self.departures[m] == step}

    @classmethod
    def start(cls, denoiser: Denoiser, wave: Wave, rows: Rows) -> _Edits:
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
        return cls({text: i for i, text in enumerate(texts)}, encode(denoiser, texts))


@dataclass(frozen=True, slots=True)
class _Acting:
    """The A cells whose guidance is computed: on which row, from which estimates.

    Args:
        cell_A, row_A: positions among the edited cells and among the rows.
        slot_AK: positions of their concepts' estimates. A concept that is not needed now has none: any other
            stands in, and is ignored.
        settings: of these cells.
        departed_D: which of the A have rows of their own; the rest only gather momentum.
    """

    cell_A: Tensor
    row_A: Tensor
    slot_AK: Tensor
    settings: Settings
    departed_D: Tensor


@dataclass(frozen=True, slots=True)
class _Routes:
    """The estimates that are needed, and where each goes: the same from one breakpoint to the next.

    Args:
        row_E, conditioning_E: what each estimate is evaluated on.
        u_R, t_R: positions of every row's unconditional estimate and its prompt's.
        guidance_scale_R111: of classifier-free guidance.
        acting: None where no cell does.
        bookings: evaluations of one step, by the key of the cell that they are booked on.
    """

    row_E: Tensor
    conditioning_E: Conditioning
    u_R: Tensor
    t_R: Tensor
    guidance_scale_R111: Tensor
    acting: _Acting | None
    bookings: Counter[str]

    @classmethod
    def at(cls, step: int, rows: Sequence[Row], edits: _Edits, texts: _Texts, n: int) -> _Routes:
        """The routes from a breakpoint on."""
        device, dtype = edits.nu_MCHW.device, edits.nu_MCHW.dtype
        wanted = _list_estimates(rows, edits, step, n)
        base = [base_texts(row.cell) for row in rows]

        def index(positions: Sequence[Any]) -> Tensor:
            return torch.tensor(positions, device=device)

        text_E = index([texts.position[text] for _, text in wanted])
        guidance_scale_R = torch.tensor([row.cell.guidance_scale for row in rows], dtype=dtype, device=device)
        return cls(
            row_E=index([row for row, _ in wanted]),
            conditioning_E={name: value[text_E] for name, value in texts.conditioning_T.items()},
            u_R=index([wanted[r, of_row[0]] for r, of_row in enumerate(base)]),
            t_R=index([wanted[r, of_row[-1]] for r, of_row in enumerate(base)]),
            guidance_scale_R111=guidance_scale_R[:, None, None, None],
            acting=_act(step, rows, edits, wanted, index),
            bookings=Counter(rows[row].pays for row, _ in wanted),
        )


Estimates = dict[tuple[int, str], int]
"""The estimates of one step: (row, text) -> position among them."""


def _list_estimates(rows: Sequence[Row], edits: _Edits, step: int, n: int) -> Estimates:
    """What the rows need at this step, each once: cells that ride on one trunk share a concept's estimate."""
    wanted: Estimates = {}
    for position, row in enumerate(rows):
        texts = [*base_texts(row.cell)]
        for m in row.riders:
            texts += concept_texts(edits.cells[m], step, n)
        for text in texts:
            wanted.setdefault((position, text), len(wanted))
    return wanted


def _act(
    step: int,
    rows: Sequence[Row],
    edits: _Edits,
    wanted: Estimates,
    index: Callable[[Sequence[Any]], Tensor],
) -> _Acting | None:
    has_departed = [leaves <= step for leaves in edits.departures]
    active = [
        (m, r) for r, row in enumerate(rows) for m in row.riders if edits.has_momentum[m] or has_departed[m]
    ]
    if not active:
        return None
    cell_A = index([m for m, _ in active])
    return _Acting(
        cell_A=cell_A,
        row_A=index([r for _, r in active]),
        slot_AK=index([_slots(edits.cells[m], r, wanted, edits.slots) for m, r in active]),
        settings=edits.settings.take(cell_A),
        departed_D=index([a for a, (m, _) in enumerate(active) if has_departed[m]]).long(),
    )


def _slots(cell: Cell, row: int, wanted: Estimates, slots: int) -> list[int]:
    positions = [wanted.get((row, edit.concept), 0) for edit in cell.edits]
    return positions + [0] * (slots - len(positions))


def _combine(eps_ECHW: Tensor, routes: _Routes, edits: _Edits, step: int) -> Tensor:
    """Classifier-free and semantic guidance of all rows, RCHW; the momenta of ``edits`` move on."""
    eps_u_RCHW = eps_ECHW[routes.u_R]
    guidance_RCHW = routes.guidance_scale_R111 * (eps_ECHW[routes.t_R] - eps_u_RCHW)
    if acting := routes.acting:
        edit_ACHW, nu_ACHW = semantic_guidance(
            eps_u_RCHW[acting.row_A],
            eps_ECHW[acting.slot_AK],
            edits.nu_MCHW[acting.cell_A],
            acting.settings,
            step,
        )
        edits.nu_MCHW[acting.cell_A] = nu_ACHW
        guidance_RCHW[acting.row_A[acting.departed_D]] += edit_ACHW[acting.departed_D]
    return eps_u_RCHW + guidance_RCHW


_Image = tuple[npt.NDArray[np.uint8] | None, str | None]


def _images(denoiser: Denoiser, rows: Rows, batching: Batching) -> dict[Cell, _Image]:
    """The image of every row, or why it has none, by its cell."""
    is_finite_R = rows.latents_RCHW.isfinite().flatten(1).all(dim=1).tolist()
    decoded = decode(denoiser, rows.latents_RCHW, batching)
    return {
        row.cell: (image_HW3, None) if is_finite else (None, "the latents became NaN or infinite")
        for row, image_HW3, is_finite in zip(rows.rows, decoded, is_finite_R, strict=True)
    }


def _outcome(cell: Cell, images: Mapping[Cell, _Image], unet_evals: int, n: int) -> Outcome:
    image_HWC, error = images[image_owner(cell, n)]
    return Outcome(cell, image_HWC, unet_evals, error)

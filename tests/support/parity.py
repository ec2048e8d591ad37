"""Cells on which the engine is compared with diffusers' pipeline: fixed settings, schedulers, random sweeps.

Thresholds lie off the grid k/(n-1) of the n elements of a channel, which are 64 or 256 here: on the grid,
rounding decides on which side of the threshold an element falls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

from hypothesis import strategies as st
from torch import Tensor

from sega_bench.cell import Cell, Edit, canonical_json
from sega_bench.sega.batching import Batching
from sega_bench.sega.models import StableDiffusion
from sega_bench.sega.schedule import wave_of
from sega_bench.sega.steps import image_owner
from sega_bench.sega.wave import count_timesteps, denoise
from support import tiny_sd
from support.strategies import cells, edits

A, B, C, D = "glasses", "smile", "beard", "curly hair"
MOMENTUM = {"edit_momentum_scale": 0.3, "edit_mom_beta": 0.6}

SETTINGS: dict[str, dict[str, object]] = {
    "unedited": {},
    "one concept": {"edits": (Edit(A, 6, 0.931, 2),)},
    "from the first step": {"edits": (Edit(A, 6, 0.931, 0),)},
    "nothing is below threshold 0": {"edits": (Edit(A, 3, 0.0, 1),), **MOMENTUM},
    "reversed": {"edits": (Edit(A, 6, 0.871, 2, reverse_editing_direction=True),), **MOMENTUM},
    "cools down": {"edits": (Edit(A, 6, 0.871, 1, 4),), **MOMENTUM},
    "cools down before it is warm": {"edits": (Edit(A, 6, 0.871, 4, 2),), **MOMENTUM},
    "two at once": {"edits": (Edit(A, 6, 0.931, 2), Edit(B, 4, 0.813, 2)), **MOMENTUM},
    "two, staggered": {"edits": (Edit(A, 6, 0.931, 1), Edit(B, 4, 0.813, 4)), **MOMENTUM},
    "two, staggered, weighted": {
        "edits": (Edit(A, 6, 0.931, 1, edit_weights=0.4), Edit(B, 4, 0.813, 3, edit_weights=2.5)),
        **MOMENTUM,
    },
    "three, one cools down, one is reversed": {
        "edits": (Edit(A, 6, 0.931, 1), Edit(B, 4, 0.813, 2, 4), Edit(C, 5, 0.777, 3, None, 0.7, True)),
        **MOMENTUM,
    },
    "four, staggered": {
        "edits": (Edit(A, 4, 0.991, 0), Edit(B, 5, 0.973, 1), Edit(C, 5, 0.923, 2), Edit(D, 5.4, 0.963, 3)),
        **MOMENTUM,
    },
    "without momentum": {"edits": (Edit(A, 6, 0.931, 2),), "edit_momentum_scale": 0.0},
    "strong, long momentum": {
        "edits": (Edit(A, 6, 0.931, 3), Edit(B, 4, 0.813, 3)),
        "edit_momentum_scale": 0.7,
        "edit_mom_beta": 0.9,
    },
    "negative prompt": {"edits": (Edit(A, 6, 0.931, 2),), "negative_prompt": "smile", **MOMENTUM},
    "the concept is the prompt": {"edits": (Edit("a face", 6, 0.931, 2),), **MOMENTUM},
    "stochastic": {"edits": (Edit(A, 6, 0.931, 2),), "eta": 0.7, "seed": 5, **MOMENTUM},
}
"""Fields of a cell, beside those of :func:`support.tiny_sd.cell`."""

FOR_SCHEDULERS = SETTINGS["three, one cools down, one is reversed"]
"""The settings with which every scheduler is compared."""

SCHEDULERS: dict[str, tuple[str, dict[str, object]]] = {
    "DDIM": ("DDIM", {}),
    "PNDM": ("PNDM", {}),
    "LMS": ("LMS", {}),
    "Euler": ("Euler", {}),
    "Euler ancestral": ("EulerAncestral", {}),
    "DPM-Solver++": ("DPMSolverMultistep", {}),
    "DPM-Solver++, third order": ("DPMSolverMultistep", {"solver_order": 3}),
    "DPM-Solver++, stochastic": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM-Solver++, single steps": ("DPMSolverSinglestep", {"lower_order_final": True}),
    "UniPC": ("UniPC", {}),
    "UniPC, third order": ("UniPC", {"solver_order": 3}),
    "DEIS": ("DEIS", {}),
    "DDPM": ("DDPM", {}),
    "LCM": ("LCM", {}),
}
"""A scheduler's name and what differs from the checkpoint's configuration of it."""

REPLAY_SCHEDULERS = ("PNDM", "LMS", "Euler ancestral", "DPM-Solver++", "UniPC")

_ROUND_TO_FLOAT32 = ("EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep")
"""Schedulers of diffusers that take a step in float32 whatever the latents' precision is."""


def sampled(scheduler: str, prediction_type: str = "epsilon", **settings: object) -> Cell:
    """A cell of the tiny checkpoint with one of :data:`SCHEDULERS`."""
    name, config = SCHEDULERS[scheduler]
    cell = tiny_sd.cell(prediction_type=prediction_type, scheduler=name, **settings)
    return replace(cell, scheduler_config=canonical_json(json.loads(cell.scheduler_config) | config))


def replaying(cell: Cell) -> Cell:
    """The cell's guidance, replayed on another prompt."""
    return replace(cell, prompt="a cat", replay="a face")


def wave_latents(model: StableDiffusion, cells: Sequence[Cell]) -> dict[Cell, Tensor]:
    """The engine's latents of cells made together, CHW, by cell."""
    n = count_timesteps(cells[0])
    latents = denoise(model, wave_of(cells, n), Batching(micro=6)).latents
    return {cell: latents[image_owner(cell, n)] for cell in cells}


def assert_close(actual: Tensor, expected: Tensor, relative: float) -> None:
    """Compare whole latents, with a tolerance relative to the largest element."""
    assert (actual - expected).abs().max() <= relative * expected.abs().max()


def tolerance(cell: Cell, float64: float) -> float:
    """The relative difference to allow.

    Args:
        cell: with its scheduler.
        float64: what is allowed where every step is taken in float64.
    """
    return 1e-5 if cell.scheduler.removesuffix("Scheduler") in _ROUND_TO_FLOAT32 else float64


def divides_by_zero(cell: Cell, n: int) -> bool:
    """Whether diffusers divides by 0 at one of n steps: the weights of those that are warm sum to 0."""
    for i in range(n):
        warm = [edit for edit in cell.edits if edit.edit_warmup_steps <= i]
        live = [e for e in warm if e.edit_cooldown_steps is None or i < e.edit_cooldown_steps]
        if 0 < len(warm) < len(cell.edits) and sum(edit.edit_weights for edit in live) == 0:
            return True
    return False


@st.composite
def sweeps(draw: st.DrawFn, size: Mapping[str, int] | None = None) -> tuple[list[Cell], str]:
    """Three cells that one scheduler steps together, and the checkpoint's prediction type.

    Prompts, seeds, guidance, concepts and settings differ.

    Args:
        draw: from hypothesis.
        size: ``height`` and ``width`` of the images, the checkpoint's own by default.
    """
    prediction_type = draw(st.sampled_from(["epsilon", "epsilon", "v_prediction"]))
    scheduler = draw(st.sampled_from(sorted(SCHEDULERS)))
    eta = draw(st.sampled_from([0.0, 0.4, 1.0])) if scheduler == "DDIM" else 0.0
    steps = draw(st.sampled_from([4, 5, 7]))
    base = sampled(scheduler, prediction_type, eta=eta, num_inference_steps=steps, **(size or {}))
    shared = {
        f.name: getattr(base, f.name) for f in fields(base) if f.name not in ("prompt", "seed", "edits")
    }
    n = count_timesteps(base)
    own = {
        "edits": edits(n),
        "guidance_scale": st.floats(1.1, 9).map(lambda g: round(g, 2)),
        "negative_prompt": st.sampled_from(["", "", "smile", "a cat"]),
        "edit_momentum_scale": st.one_of(st.just(0.0), st.floats(0.05, 0.8)),
        "edit_mom_beta": st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.05, 0.95)),
    }
    one = cells(**{**shared, **own}).filter(lambda cell: not divides_by_zero(cell, n))
    return draw(st.lists(one, min_size=3, max_size=3, unique=True)), prediction_type

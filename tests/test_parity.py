"""Our engine against diffusers' pipeline on a random checkpoint in float64: equal to rounding.

Thresholds lie off the grid k/(n-1) of the 256 elements of a channel: on it, rounding decides which side an
element falls.
"""

import numpy as np
import pytest
import tiny_sd
import torch

from sega_bench.cell import Cell, Edit
from sega_bench.sega import oracle
from sega_bench.sega.batching import Batching
from sega_bench.sega.wave import generate

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
SCHEDULERS = (
    "PNDM",
    "LMS",
    "Euler",
    "EulerAncestral",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "UniPC",
    "DEIS",
    "DDPM",
    "LCM",
)


class LatentDecoder:
    """A loaded model that hands out its latents instead of pictures, through the engine's own way."""

    def __init__(self, model: tiny_sd.StableDiffusion) -> None:
        self.model, self.latents = model, []

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        self.latents.append(latents_BCHW.clone())
        return torch.zeros(len(latents_BCHW), 1, 1, 3, dtype=torch.uint8)


def engine_latents(model: tiny_sd.StableDiffusion, cell: Cell) -> torch.Tensor:
    """The cell's latents, made beside its reference so that it forks."""
    decoder = LatentDecoder(model)
    list(generate(decoder, [cell.reference(), cell] if cell.edits else [cell], Batching(micro=4, decode=4)))
    (latents_BCHW,) = decoder.latents
    return latents_BCHW[-1:]  # the cell's row is the last, and is repeated to fill the batch


def assert_parity(cell: Cell, prediction_type: str = "epsilon") -> None:
    model = tiny_sd.loaded("float64", prediction_type)
    ours = engine_latents(model, cell)
    theirs = oracle.make_latents(oracle.make_pipeline(model), cell)
    assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max()


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str) -> None:
    assert_parity(tiny_sd.cell(**SETTINGS[name]))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(scheduler: str) -> None:
    settings = SETTINGS["three, one cools down, one is reversed"]
    assert_parity(tiny_sd.cell(scheduler=scheduler, **settings))


def test_v_prediction() -> None:
    settings = SETTINGS["two, staggered, weighted"]
    assert_parity(tiny_sd.cell(prediction_type="v_prediction", **settings), "v_prediction")


def test_an_edit_is_no_small_thing() -> None:
    """Parity of something that changes nothing would prove nothing."""
    model = tiny_sd.loaded("float64")
    for name in ("one concept", "four, staggered", "cools down before it is warm"):
        cell = tiny_sd.cell(**SETTINGS[name])
        difference = engine_latents(model, cell) - engine_latents(model, cell.reference())
        assert difference.abs().max() > 0.01


def test_pictures_too() -> None:
    model, cell = tiny_sd.loaded("float32"), tiny_sd.cell("float32", **SETTINGS["two at once"])
    (ours,) = generate(model, [cell])
    theirs = oracle.make_image(oracle.make_pipeline(model), cell)
    assert ours.image_HWC is not None
    assert np.abs(ours.image_HWC.astype(int) - theirs.astype(int)).max() <= 1


# Where diffusers is wrong or silent: each of its faults, and what is done here.


def test_diffusers_ignores_concepts_without_guidance_and_we_refuse() -> None:
    model = tiny_sd.loaded("float64")
    pipeline = oracle.make_pipeline(model)
    plain = pipeline("a face", guidance_scale=1.0, num_inference_steps=2, generator=torch.manual_seed(0))
    edited = pipeline(
        "a face",
        guidance_scale=1.0,
        num_inference_steps=2,
        generator=torch.manual_seed(0),
        editing_prompt=[A],
        edit_warmup_steps=0,
    )
    assert np.array_equal(np.asarray(plain.images[0]), np.asarray(edited.images[0]))
    with pytest.raises(ValueError, match="classifier-free guidance"):
        tiny_sd.cell(guidance_scale=1.0, edits=(Edit(A),))


def test_diffusers_divides_by_weights_that_sum_to_zero_and_we_add_nothing() -> None:
    cell = tiny_sd.cell(edits=(Edit(A, 5, 0.5, 0, 2), Edit(B, 5, 0.5, 5)), edit_momentum_scale=0.0)
    model = tiny_sd.loaded("float64")
    assert not oracle.make_latents(oracle.make_pipeline(model), cell).isfinite().all()
    assert engine_latents(model, cell).isfinite().all()

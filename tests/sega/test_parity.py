"""Our engine against diffusers' pipeline on a random checkpoint in float64: equal to rounding.

Thresholds lie off the grid k/(n-1) of the 256 elements of a channel: on it, rounding decides which side an
element falls.
"""

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import naive, tiny_sd
from support.strategies import cells, edits

from sega_bench.benchmark import oracle
from sega_bench.cell import Cell, Edit, canonical_json
from sega_bench.sega.batching import Batching
from sega_bench.sega.models import load
from sega_bench.sega.schedule import wave_of
from sega_bench.sega.steps import image_owner
from sega_bench.sega.wave import count_timesteps, denoise, generate

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
ROUND_TO_FLOAT32 = ("EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep")
"""Schedulers of diffusers that take a step in float32 whatever they are given."""


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def pipeline_of(prediction_type: str = "epsilon") -> object:
    return oracle.make_pipeline(tiny_sd.loaded("float64", prediction_type))


def theirs(cell: Cell, prediction_type: str = "epsilon") -> torch.Tensor:
    return oracle.make_latents(pipeline_of(prediction_type), cell)[0]


def ours(cells: Sequence[Cell], prediction_type: str = "epsilon") -> dict[Cell, torch.Tensor]:
    """The latents of cells made together, of each its own."""
    n = count_timesteps(cells[0])
    latents = denoise(
        tiny_sd.loaded("float64", prediction_type), wave_of(cells, n), Batching(micro=6)
    ).latents
    return {cell: latents[image_owner(cell, n)] for cell in cells}


def assert_parity(cells: Sequence[Cell], prediction_type: str = "epsilon") -> None:
    tolerance = 1e-5 if cells[0].scheduler.removesuffix("Scheduler") in ROUND_TO_FLOAT32 else 1e-9
    for cell, latents in ours(cells, prediction_type).items():
        expected = theirs(cell, prediction_type)
        assert (latents - expected).abs().max() <= tolerance * expected.abs().max()


def sampled(scheduler: str, prediction_type: str = "epsilon", **settings: object) -> Cell:
    """A cell of the checkpoint with one of :data:`SCHEDULERS`."""
    name, extra = SCHEDULERS[scheduler]
    cell = tiny_sd.cell(prediction_type=prediction_type, scheduler=name, **settings)
    return replace(cell, scheduler_config=canonical_json(json.loads(cell.scheduler_config) | extra))


def divides_by_zero(cell: Cell, n: int) -> bool:
    """Whether at some step the concepts that are warm, being not all, have no weight to share."""
    for i in range(n):
        warm = [edit for edit in cell.edits if edit.edit_warmup_steps <= i]
        live = [e for e in warm if e.edit_cooldown_steps is None or i < e.edit_cooldown_steps]
        if 0 < len(warm) < len(cell.edits) and sum(edit.edit_weights for edit in live) == 0:
            return True
    return False


@st.composite
def sweeps(draw: st.DrawFn) -> tuple[list[Cell], str]:
    """Three cells that one scheduler steps together: other prompts, seeds, guidance, concepts, settings."""
    prediction_type = draw(st.sampled_from(["epsilon", "epsilon", "v_prediction"]))
    scheduler = draw(st.sampled_from(sorted(SCHEDULERS)))
    eta = draw(st.sampled_from([0.0, 0.4, 1.0])) if scheduler == "DDIM" else 0.0
    base = sampled(scheduler, prediction_type, eta=eta, num_inference_steps=draw(st.sampled_from([4, 5, 7])))
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


def check_random_settings(examples: int) -> None:
    """Parity of three times as many settings, most of which change their image."""
    edited = 0

    @given(sweeps())
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    def agrees(sweep: tuple[list[Cell], str]) -> None:
        nonlocal edited
        drawn, prediction_type = sweep
        assert_parity(drawn, prediction_type)
        n = count_timesteps(drawn[0])
        edited += sum(image_owner(cell, n) == cell for cell in drawn)

    agrees()
    assert edited >= 2 * examples


def test_300_random_settings() -> None:
    check_random_settings(100)


@pytest.mark.slow
def test_3000_random_settings() -> None:
    check_random_settings(1000)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str) -> None:
    cell = tiny_sd.cell(**SETTINGS[name])
    assert_parity([cell.reference(), cell] if cell.edits else [cell])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(scheduler: str) -> None:
    assert_parity([sampled(scheduler, **SETTINGS["three, one cools down, one is reversed"])])


def test_v_prediction() -> None:
    settings = SETTINGS["two, staggered, weighted"]
    assert_parity([tiny_sd.cell(prediction_type="v_prediction", **settings)], "v_prediction")


def test_an_edit_is_no_small_thing() -> None:
    """Parity of something that changes nothing would prove nothing."""
    for name in ("one concept", "four, staggered", "cools down before it is warm"):
        cell = tiny_sd.cell(**SETTINGS[name])
        latents = ours([cell, cell.reference()])
        assert (latents[cell] - latents[cell.reference()]).abs().max() > 0.01


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
    cooled = tiny_sd.cell(edits=(Edit(A, 5, 0.5, 0, 2), Edit(B, 5, 0.5, 5)), edit_momentum_scale=0.0)
    weightless = tiny_sd.cell(edits=(Edit(A, 5, 0.5, 1, edit_weights=0), Edit(B, 5, 0.5, 4)), **MOMENTUM)
    for cell in (cooled, weightless):
        assert divides_by_zero(cell, 6)
        assert not theirs(cell).isfinite().all()
        latents, expected = ours([cell])[cell], naive.latents(tiny_sd.loaded("float64"), cell)
        assert (latents - expected).abs().max() <= 1e-9 * expected.abs().max()


def diffusers_latents(**arguments: object) -> torch.Tensor:
    """What its pipeline makes of these arguments, handed over as they are."""
    usual = {"prompt": "a face", "guidance_scale": 4.0, "num_inference_steps": 4, "edit_warmup_steps": 1}
    generator = torch.Generator().manual_seed(0)
    return pipeline_of()(**{**usual, **arguments}, generator=generator, output_type="latent").images


def test_diffusers_ignores_what_a_list_has_too_many_and_lacks_what_it_has_too_few() -> None:
    """What is done here: errors that name both lengths, in test_planner.py and test_pipeline.py."""
    two = {"editing_prompt": [A, B]}
    assert torch.equal(
        diffusers_latents(**two, edit_weights=[1, 2, 3]), diffusers_latents(**two, edit_weights=[1, 2])
    )
    for setting in ("edit_weights", "edit_threshold", "edit_guidance_scale", "edit_warmup_steps"):
        with pytest.raises(IndexError):
            diffusers_latents(**two, **{setting: [0.5]})


def test_diffusers_compares_none_with_a_step_and_here_it_is_never() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        diffusers_latents(editing_prompt=[A, B], edit_cooldown_steps=[None, 3])
    assert_parity([tiny_sd.cell(edits=(Edit(A, 5, 0.931, 1, None), Edit(B, 5, 0.931, 1, 3)))])


def test_diffusers_takes_negative_weights_for_zero_and_we_refuse() -> None:
    two = {"editing_prompt": [A, B]}
    negative, zero = (diffusers_latents(**two, edit_weights=[1, weight]) for weight in (-2, 0))
    assert torch.equal(negative, zero)
    with pytest.raises(ValueError, match="use reverse_editing_direction"):
        Edit(A, edit_weights=-2)


def test_diffusers_cuts_a_long_text_without_its_end_mark_and_we_with_it() -> None:
    model = tiny_sd.loaded("float64")
    longest = " ".join(["a"] * (model.tokenizers[0].model_max_length - 2))  # letters: it knows no words
    cut, long = tiny_sd.cell(prompt=longest), tiny_sd.cell(prompt=longest + " face")
    assert model.truncation(cut.prompt) is None
    assert "was cut to" in str(model.truncation(long.prompt))
    assert (theirs(long) - theirs(cut)).abs().max() > 1e-3
    assert (ours([long])[long] - theirs(cut)).abs().max() <= 1e-9 * theirs(cut).abs().max()


def test_diffusers_drops_an_edit_that_is_nan_and_we_fail_its_cell() -> None:
    model = load(tiny_sd.model(), torch.device("cpu"), "float64")
    (poison,) = model.tokenizers[0]("poison", add_special_tokens=False).input_ids[:1]
    model.text_encoders[0].get_input_embeddings().weight.data[poison] = float("nan")
    cell = tiny_sd.cell(edits=(Edit("poison", 6, 0.5, 2),))
    pipeline = oracle.make_pipeline(model)
    assert torch.equal(oracle.make_latents(pipeline, cell), oracle.make_latents(pipeline, cell.reference()))
    (outcome,) = generate(model, [cell])
    assert (outcome.image_HWC, outcome.error) == (None, "the latents became NaN or infinite")


@pytest.mark.parametrize("scheduler", ["Heun", "KDPM2"])
def test_diffusers_has_no_room_for_2n_steps(scheduler: str) -> None:
    """That these are right here is proved without it, in test_wave.py."""
    with pytest.raises(IndexError):
        theirs(tiny_sd.cell(scheduler=scheduler, edits=(Edit(A),)))


# Replay: what diffusers calls sem_guidance.


@pytest.fixture
def unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers keeps a run's guidance in float32, which would round what we compare: make it float64."""
    zeros = torch.zeros
    monkeypatch.setattr(
        torch, "zeros", lambda *size, **kind: zeros(*size, **{"dtype": torch.float64, **kind})
    )


def diffusers_replay(cell: Cell) -> torch.Tensor:
    """The source's run, and its guidance handed to a run of the cell's own prompt."""
    pipeline = pipeline_of()
    oracle.make_latents(pipeline, cell.source())
    return oracle.make_latents(pipeline, cell.reference(), sem_guidance=pipeline.sem_guidance)[0]


@pytest.mark.usefixtures("unrounded")
@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "unedited"])
def test_replay(name: str) -> None:
    cell = replace(tiny_sd.cell(**SETTINGS[name]), prompt="a cat", replay="a face")
    latents = ours([cell, cell.reference()])
    expected = diffusers_replay(cell)
    assert (latents[cell] - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert (latents[cell] - latents[cell.reference()]).abs().max() > 1e-3


@pytest.mark.usefixtures("unrounded")
@pytest.mark.parametrize("scheduler", ["PNDM", "LMS", "Euler ancestral", "DPM-Solver++", "UniPC"])
def test_replay_with_schedulers(scheduler: str) -> None:
    cell = sampled(scheduler, **SETTINGS["three, one cools down, one is reversed"])
    cell = replace(cell, prompt="a cat", replay="a face")
    expected = diffusers_replay(cell)
    tolerance = 1e-5 if cell.scheduler.removesuffix("Scheduler") in ROUND_TO_FLOAT32 else 1e-9
    assert (ours([cell])[cell] - expected).abs().max() <= tolerance * expected.abs().max()

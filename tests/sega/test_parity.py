"""The engine against diffusers' pipeline on a random checkpoint in float64: equal to rounding.

Skipped once diffusers has removed the pipeline; test_frozen_parity.py compares with its frozen latents.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from support import live_oracle, naive, tiny_sd
from support.live_oracle import needs_live_oracle
from support.parity import (
    FOR_SCHEDULERS,
    MOMENTUM,
    REPLAY_SCHEDULERS,
    SCHEDULERS,
    SETTINGS,
    A,
    B,
    assert_close,
    divides_by_zero,
    replaying,
    sampled,
    sweeps,
    tolerance,
    wave_latents,
)

from sega_bench.benchmark import oracle
from sega_bench.cell import Cell, Edit
from sega_bench.sega.models import StableDiffusion, load
from sega_bench.sega.steps import image_owner
from sega_bench.sega.wave import count_timesteps, generate

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def live_pipeline(prediction_type: str = "epsilon") -> Any:
    return oracle.make_pipeline(tiny_sd.loaded("float64", prediction_type))


def theirs(cell: Cell, prediction_type: str = "epsilon") -> torch.Tensor:
    return live_oracle.latents(live_pipeline(prediction_type), cell)


def ours(cells: Sequence[Cell], prediction_type: str = "epsilon") -> dict[Cell, torch.Tensor]:
    return wave_latents(tiny_sd.loaded("float64", prediction_type), cells)


def assert_parity(cells: Sequence[Cell], prediction_type: str = "epsilon") -> None:
    for cell, latents in ours(cells, prediction_type).items():
        assert_close(latents, theirs(cell, prediction_type), tolerance(cell, float64=1e-9))


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


@needs_live_oracle
def test_300_random_settings() -> None:
    check_random_settings(100)


@needs_live_oracle
@pytest.mark.slow
def test_3000_random_settings() -> None:
    check_random_settings(1000)


@needs_live_oracle
@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str) -> None:
    cell = tiny_sd.cell(**SETTINGS[name])
    assert_parity([cell.reference(), cell] if cell.edits else [cell])


@needs_live_oracle
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(scheduler: str) -> None:
    assert_parity([sampled(scheduler, **FOR_SCHEDULERS)])


@needs_live_oracle
def test_v_prediction() -> None:
    settings = SETTINGS["two, staggered, weighted"]
    assert_parity([tiny_sd.cell(prediction_type="v_prediction", **settings)], "v_prediction")


def test_an_edit_changes_the_latents() -> None:
    """Parity of settings without an effect would prove nothing."""
    for name in ("one concept", "four, staggered", "cools down before it is warm"):
        cell = tiny_sd.cell(**SETTINGS[name])
        latents = ours([cell, cell.reference()])
        assert (latents[cell] - latents[cell.reference()]).abs().max() > 0.01


@needs_live_oracle
def test_images_differ_by_at_most_one_of_255() -> None:
    model, cell = tiny_sd.loaded("float32"), tiny_sd.cell("float32", **SETTINGS["two at once"])
    (ours,) = generate(model, [cell])
    theirs = oracle.make_image(oracle.make_pipeline(model), cell)
    assert ours.image_HWC is not None
    assert np.abs(ours.image_HWC.astype(int) - theirs.astype(int)).max() <= 1


# Where diffusers is wrong or silent: its fault, and what the engine does instead.


@needs_live_oracle
def test_diffusers_ignores_concepts_without_guidance() -> None:
    pipeline = oracle.make_pipeline(tiny_sd.loaded("float64"))
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


def test_concepts_without_guidance_are_refused() -> None:
    with pytest.raises(ValueError, match="classifier-free guidance"):
        tiny_sd.cell(guidance_scale=1.0, edits=(Edit(A),))


def weightless_cells() -> list[Cell]:
    """Cells whose warm concepts have weights that sum to 0: one cooled down, one has weight 0."""
    return [
        tiny_sd.cell(edits=(Edit(A, 5, 0.5, 0, 2), Edit(B, 5, 0.5, 5)), edit_momentum_scale=0.0),
        tiny_sd.cell(edits=(Edit(A, 5, 0.5, 1, edit_weights=0), Edit(B, 5, 0.5, 4)), **MOMENTUM),
    ]


@needs_live_oracle
def test_diffusers_divides_by_weights_that_sum_to_zero() -> None:
    for cell in weightless_cells():
        assert divides_by_zero(cell, 6)
        assert not theirs(cell).isfinite().all()


def test_weights_that_sum_to_zero_add_nothing() -> None:
    for cell in weightless_cells():
        assert_close(ours([cell])[cell], naive.latents(tiny_sd.loaded("float64"), cell), 1e-9)


def diffusers_latents(**arguments: object) -> torch.Tensor:
    """Latents of the live pipeline, with these arguments as they are."""
    usual = {"prompt": "a face", "guidance_scale": 4.0, "num_inference_steps": 4, "edit_warmup_steps": 1}
    generator = torch.Generator().manual_seed(0)
    return live_pipeline()(**{**usual, **arguments}, generator=generator, output_type="latent").images


@needs_live_oracle
def test_diffusers_ignores_surplus_list_values_and_raises_on_missing_ones() -> None:
    """The engine raises in both cases and names both lengths: test_planner.py and test_pipeline.py."""
    two = {"editing_prompt": [A, B]}
    assert torch.equal(
        diffusers_latents(**two, edit_weights=[1, 2, 3]), diffusers_latents(**two, edit_weights=[1, 2])
    )
    for setting in ("edit_weights", "edit_threshold", "edit_guidance_scale", "edit_warmup_steps"):
        with pytest.raises(IndexError):
            diffusers_latents(**two, **{setting: [0.5]})


@needs_live_oracle
def test_diffusers_raises_on_a_cooldown_of_none_which_means_never_here() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        diffusers_latents(editing_prompt=[A, B], edit_cooldown_steps=[None, 3])
    assert_parity([tiny_sd.cell(edits=(Edit(A, 5, 0.931, 1, None), Edit(B, 5, 0.931, 1, 3)))])


@needs_live_oracle
def test_diffusers_clamps_negative_weights_to_zero() -> None:
    two = {"editing_prompt": [A, B]}
    negative, zero = (diffusers_latents(**two, edit_weights=[1, weight]) for weight in (-2, 0))
    assert torch.equal(negative, zero)


def test_negative_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="use reverse_editing_direction"):
        Edit(A, edit_weights=-2)


def longest_prompt_cells() -> tuple[Cell, Cell]:
    """A prompt as long as the tokenizer's limit, and one that has to be cut to it."""
    limit = tiny_sd.loaded("float64").tokenizers[0].model_max_length - 2
    longest = " ".join(["a"] * limit)  # letters, because the tokenizer knows no words
    return tiny_sd.cell(prompt=longest), tiny_sd.cell(prompt=longest + " face")


def test_a_long_text_is_cut_and_keeps_its_end_token() -> None:
    model, (cut, long) = tiny_sd.loaded("float64"), longest_prompt_cells()
    assert model.truncation(cut.prompt) is None
    assert "was cut to" in str(model.truncation(long.prompt))
    assert_close(ours([long])[long], ours([cut])[cut], 1e-9)


@needs_live_oracle
def test_diffusers_cuts_a_long_text_without_its_end_token() -> None:
    cut, long = longest_prompt_cells()
    assert (theirs(long) - theirs(cut)).abs().max() > 1e-3
    assert_close(ours([long])[long], theirs(cut), 1e-9)


def poisoned_model_and_cell() -> tuple[StableDiffusion, Cell]:
    """A model for which the concept of the cell is NaN."""
    model = load(tiny_sd.model(), torch.device("cpu"), "float64")
    (poison,) = model.tokenizers[0]("poison", add_special_tokens=False).input_ids[:1]
    model.text_encoders[0].get_input_embeddings().weight.data[poison] = float("nan")
    return model, tiny_sd.cell(edits=(Edit("poison", 6, 0.5, 2),))


@needs_live_oracle
def test_diffusers_drops_an_edit_that_is_nan() -> None:
    model, cell = poisoned_model_and_cell()
    pipeline = oracle.make_pipeline(model)
    assert torch.equal(oracle.make_latents(pipeline, cell), oracle.make_latents(pipeline, cell.reference()))


def test_an_edit_that_is_nan_fails_its_cell() -> None:
    model, cell = poisoned_model_and_cell()
    (outcome,) = generate(model, [cell])
    assert (outcome.image_HWC, outcome.error) == (None, "the latents became NaN or infinite")


@needs_live_oracle
@pytest.mark.parametrize("scheduler", ["Heun", "KDPM2"])
def test_diffusers_has_no_room_for_2n_steps(scheduler: str) -> None:
    """test_wave.py proves the engine right with these schedulers, without the pipeline."""
    with pytest.raises(IndexError):
        theirs(tiny_sd.cell(scheduler=scheduler, edits=(Edit(A),)))


# Replay: diffusers' sem_guidance.


@needs_live_oracle
@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "unedited"])
def test_replay(name: str) -> None:
    cell = replaying(tiny_sd.cell(**SETTINGS[name]))
    latents = ours([cell, cell.reference()])
    assert_close(latents[cell], theirs(cell), 1e-9)
    assert (latents[cell] - latents[cell.reference()]).abs().max() > 1e-3


@needs_live_oracle
@pytest.mark.parametrize("scheduler", REPLAY_SCHEDULERS)
def test_replay_with_schedulers(scheduler: str) -> None:
    assert_parity([replaying(sampled(scheduler, **FOR_SCHEDULERS))])

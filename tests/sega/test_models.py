"""Loaded networks agree with diffusers' own pipelines, and cells take their checkpoint's settings."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from support import tiny_sd, tiny_xl
from support.latents import engine_latents

from sega_bench.errors import UserError
from sega_bench.sega import ModelSettings, describe, schedulers


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("settings", [{}, {"height": 40, "width": 24, "negative_prompt": "a beard"}], ids=str)
def test_an_unedited_cell_equals_diffusers_pipeline(prediction_type: str, settings: dict[str, Any]) -> None:
    """Includes latents of 20 x 12, which the UNet's downsampling does not divide evenly."""
    pipe = StableDiffusionPipeline.from_pretrained(
        tiny_sd.folder(prediction_type), dtype=torch.float64, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    cell = tiny_sd.cell(prediction_type=prediction_type, **settings)
    theirs = pipe(
        cell.prompt,
        negative_prompt=cell.negative_prompt,
        guidance_scale=cell.guidance_scale,
        num_inference_steps=cell.num_inference_steps,
        height=cell.height,
        width=cell.width,
        generator=torch.manual_seed(cell.seed),
        output_type="latent",
    ).images
    ours = engine_latents(tiny_sd.loaded("float64", prediction_type), cell)
    assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max()


def test_texts_are_encoded_and_images_decoded_like_in_diffusers() -> None:
    model = tiny_sd.loaded("float64")
    pipeline = StableDiffusionPipeline.from_pretrained(
        tiny_sd.folder(), dtype=torch.float64, safety_checker=None
    )
    expected, _ = pipeline.encode_prompt("a smile", torch.device("cpu"), 1, False)
    assert torch.equal(model.encode("a smile")["encoder_hidden_states"], expected[0])

    # In float64, because convolutions in channels_last sum in another order; here both round to the same.
    latents = torch.randn(2, 4, 16, 16, generator=torch.manual_seed(0), dtype=torch.float64)
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    images = pipeline.image_processor.postprocess(decoded.detach(), output_type="pil")
    for ours, theirs in zip(model.decode(latents).numpy(), images, strict=True):
        assert np.array_equal(ours, np.asarray(theirs))


def test_long_texts_are_truncated_with_their_end_token_and_reported() -> None:
    model = tiny_sd.loaded("float32")
    limit = model.tokenizers[0].model_max_length
    exact, long = "a" * 5, "x " * 200
    assert model.truncation(exact) is None
    assert f"was cut to {limit}" in (model.truncation(long) or "")
    assert model.encode(long)["encoder_hidden_states"].shape[0] == limit


def test_another_scheduler_takes_the_part_of_the_configuration_it_accepts() -> None:
    model = describe(ModelSettings("mine", str(tiny_sd.folder())))
    name, config = model.scheduler_for("euler")
    assert name == "EulerDiscreteScheduler"
    assert "clip_sample" not in config
    assert json.loads(config)["beta_start"] == 0.00085
    assert json.loads(model.scheduler_for("pndm")[1])["skip_prk_steps"] is True


def test_latents_are_not_clipped_by_another_scheduler_than_the_checkpoints() -> None:
    """XL's configuration, for Euler, has no entry for clipping; DDIM's default is to clip."""
    name, config = tiny_xl.model().scheduler_for("ddim")
    assert schedulers.make(name, config, 5).config.clip_sample is False
    assert engine_latents(tiny_xl.loaded("float64"), tiny_xl.cell(scheduler="ddim")).abs().max() > 1.5
    config_with_clipping = schedulers.accepted_config("DDIMScheduler", {"clip_sample": True})
    assert config_with_clipping["clip_sample"] is True


@pytest.mark.parametrize("name", sorted(schedulers._ROW_STATE))
def test_every_scheduler_runs_with_this_checkpoint(name: str) -> None:
    latents = engine_latents(tiny_sd.loaded("float64"), tiny_sd.cell(scheduler=name, num_inference_steps=4))
    assert latents.isfinite().all()


def test_a_scheduler_that_cannot_be_forked_can_be_replaced(tmp_path: Any) -> None:
    folder = tiny_sd.write_checkpoint(tmp_path / "mine")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("DDIMScheduler", "DPMSolverSDEScheduler"))
    model = describe(ModelSettings("mine", str(folder)))
    with pytest.raises(
        UserError, match=r"DPMSolverSDEScheduler, which SEGA cannot fork: set sampling\.scheduler"
    ):
        model.scheduler_for(None)
    assert model.scheduler_for("ddim")[0] == "DDIMScheduler"

"""Stable Diffusion XL: unedited cells equal diffusers' pipeline, edited ones a plain loop."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from support import tiny_xl
from support.latents import engine_latents
from torch import Tensor

from sega_bench.cell import Cell, Edit
from sega_bench.sega import schedulers
from sega_bench.sega.models import load
from sega_bench.sega.wave import generate

CPU = torch.device("cpu")


@cache
def pipeline(dtype: torch.dtype = torch.float64, *, force_zeros: bool = True) -> Any:
    made = StableDiffusionXLPipeline.from_pretrained(
        tiny_xl.folder(force_zeros=force_zeros), dtype=dtype, add_watermarker=False
    )
    made.set_progress_bar_config(disable=True)
    return made


def run_diffusers(pipe: Any, cell: Cell, output_type: str) -> Any:
    """Call the pipeline like its users: an empty negative prompt is passed as None."""
    pipe.scheduler = schedulers.make(cell.scheduler, cell.scheduler_config, cell.num_inference_steps)
    return pipe(
        cell.prompt,
        negative_prompt=cell.negative_prompt or None,
        guidance_scale=cell.guidance_scale,
        num_inference_steps=cell.num_inference_steps,
        height=cell.height,
        width=cell.width,
        generator=torch.manual_seed(cell.seed),
        output_type=output_type,
    ).images


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"negative_prompt": "a beard"},
        {"guidance_scale": 1.0},
        {"height": 40, "width": 24},
        {"height": 56, "width": 120, "seed": 3},
        {"scheduler": "EulerAncestral"},
        {"scheduler": "DPMSolverMultistep"},
        {"scheduler": "UniPC"},
        {"force_zeros": False},
    ],
    ids=str,
)
def test_an_unedited_cell_equals_diffusers_pipeline(settings: dict[str, Any]) -> None:
    force_zeros = settings.get("force_zeros", True)
    cell = tiny_xl.cell(**settings)
    ours = engine_latents(tiny_xl.loaded("float64", force_zeros=force_zeros), cell)
    theirs = run_diffusers(pipeline(force_zeros=force_zeros), cell, "latent")
    assert ours.shape[-2:] == (cell.height // 8, cell.width // 8)
    assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max()


def test_images_equal_those_of_diffusers_pipeline() -> None:
    cell = tiny_xl.cell("float32")
    (ours,) = generate(tiny_xl.loaded("float32"), [cell])
    (theirs,) = run_diffusers(pipeline(torch.float32), cell, "pil")
    assert ours.image_HWC is not None
    assert np.abs(ours.image_HWC.astype(int) - np.asarray(theirs).astype(int)).max() <= 1


def test_an_empty_negative_prompt_is_zeros_only_if_the_checkpoint_says_so() -> None:
    zeros = tiny_xl.loaded("float64").encode("")
    assert all(not value.any() for value in zeros.values())
    encoded = tiny_xl.loaded("float64", force_zeros=False).encode("")
    assert all(value.any() for value in encoded.values())
    assert tiny_xl.model().id != tiny_xl.model(force_zeros=False).id


def plain_sega(cell: Cell) -> Tensor:
    """SEGA for one image with diffusers' own encoders and size conditions; nothing is shared or skipped."""
    pipe = pipeline()
    scheduler = schedulers.make(cell.scheduler, cell.scheduler_config, cell.num_inference_steps)
    size = (cell.height, cell.width)
    time_ids = pipe._get_add_time_ids(size, (0, 0), size, torch.float64, tiny_xl.PROJECTION)

    def texts(text: str) -> tuple[Tensor, Tensor]:
        states, _, pooled, _ = pipe.encode_prompt(text, device=CPU, do_classifier_free_guidance=False)
        return states, pooled

    def unconditional() -> tuple[Tensor, Tensor]:
        _, states, _, pooled = pipe.encode_prompt("", device=CPU, do_classifier_free_guidance=True)
        return states, pooled

    def estimate(x: Tensor, t: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
        added = {"text_embeds": text[1], "time_ids": time_ids}
        return pipe.unet(x, t, text[0], added_cond_kwargs=added).sample  # type: ignore[no-any-return]

    generator = torch.manual_seed(cell.seed)
    latents = torch.randn(1, 4, size[0] // 8, size[1] // 8, generator=generator, dtype=torch.float64)
    latents, nu = latents * scheduler.init_noise_sigma, torch.zeros_like(latents)
    with torch.no_grad():
        u, p, c = unconditional(), texts(cell.prompt), [texts(edit.concept) for edit in cell.edits]
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.scale_model_input(latents, t)
            eps_u = estimate(x, t, u)
            guidance = cell.guidance_scale * (estimate(x, t, p) - eps_u)
            terms, weights, warm = [], [], []
            for edit, text in zip(cell.edits, c, strict=True):
                sign = -1 if edit.reverse_editing_direction else 1
                d = sign * edit.edit_guidance_scale * (estimate(x, t, text) - eps_u)
                q = torch.quantile(d.abs().flatten(2).float(), edit.edit_threshold, dim=2)[..., None, None]
                cool = edit.edit_cooldown_steps is not None and i >= edit.edit_cooldown_steps
                terms.append(torch.where(d.abs() >= q.double(), d, 0.0))
                weights.append(0.0 if cool else edit.edit_weights)
                warm.append(i >= edit.edit_warmup_steps)
            total = sum(w for w, is_warm in zip(weights, warm, strict=True) if is_warm)
            v = sum(w * e for w, e in zip(weights, terms, strict=True)) + cell.edit_momentum_scale * nu
            nu = cell.edit_mom_beta * nu + (1 - cell.edit_mom_beta) * v
            if all(warm):
                guidance = guidance + v
            elif total:
                shares = [w / total if is_warm else 0.0 for w, is_warm in zip(weights, warm, strict=True)]
                guidance = guidance + sum(s * e for s, e in zip(shares, terms, strict=True))
            latents = scheduler.step(eps_u + guidance, t, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize(
    "edits",
    [
        (Edit("glasses", 1.5, 0.931, 1),),
        (Edit("glasses", 1.5, 0.871, 0, 3), Edit("smile", 1, 0.813, 2, None, 0.7, True)),
    ],
    ids=["one concept", "two, staggered, one cools down, one is reversed"],
)
@pytest.mark.parametrize("scheduler", ["DDIM", "LMS", "DPMSolverMultistep", "Euler"])
def test_an_edited_cell_equals_the_plain_loop(edits: tuple[Edit, ...], scheduler: str) -> None:
    """Uses small scales: with large ones this random network amplifies rounding 100-fold at every step."""
    cell = tiny_xl.cell(
        scheduler=scheduler, guidance_scale=2.0, edits=edits, edit_momentum_scale=0.3, edit_mom_beta=0.6
    )
    model = tiny_xl.loaded("float64")
    ours, theirs = engine_latents(model, cell), plain_sega(cell)
    assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max()
    assert (ours - engine_latents(model, cell.reference())).abs().max() > 0.01


def test_in_float16_the_autoencoder_runs_in_float32() -> None:
    half = load(tiny_xl.model(), CPU, "float16")
    assert (half.unet.dtype, half.vae.dtype, half.latent_dtype) == (
        torch.float16,
        torch.float32,
        torch.float32,
    )
    assert {encoder.dtype for encoder in half.text_encoders} == {torch.float16}
    assert load(tiny_xl.model(), CPU, "bfloat16").vae.dtype == torch.bfloat16


def test_a_long_text_is_truncated_for_both_encoders_and_reported() -> None:
    model = tiny_xl.loaded("float64")
    long = "x " * 200
    assert "was cut to" in (model.truncation(long) or "")
    expected = pipeline().encode_prompt(long, device=CPU, do_classifier_free_guidance=False)
    assert torch.equal(model.encode(long)["encoder_hidden_states"], expected[0][0])
    assert torch.equal(model.encode(long)["text_embeds"], expected[2][0])

"""A tiny Stable Diffusion XL with random weights and all parts, in diffusers' format."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from sega_bench.cell import Cell
from sega_bench.faces.tokenizer import make_tokenizer
from sega_bench.sega.checkpoints.locate import Model, describe
from sega_bench.sega.checkpoints.settings import ModelSettings
from sega_bench.sega.models import StableDiffusion, cell_of, load
from support.tiny_sd import WIDTH, make_text_config, make_unet, make_vae

SIZE = 64
WIDTH_2, PROJECTION, TIME = 24, 20, 8


def write_checkpoint(folder: Path, seed: int = 0, *, force_zeros: bool = True) -> Path:
    """Write a folder for `StableDiffusionXLPipeline.from_pretrained`: images of 64 pixels, latents of 8."""
    torch.manual_seed(seed)
    tokenizer_2 = make_tokenizer([])
    tokenizer_2.pad_token = "!"  # as in the released XL
    pipeline = StableDiffusionXLPipeline(
        vae=make_vae(4, sample_size=SIZE, scaling_factor=0.13025, force_upcast=True),
        text_encoder=CLIPTextModel(make_text_config()),
        text_encoder_2=CLIPTextModelWithProjection(make_text_config(WIDTH_2, projection_dim=PROJECTION)),
        tokenizer=make_tokenizer([]),
        tokenizer_2=tokenizer_2,
        unet=make_unet(
            sample_size=SIZE // 8,
            cross_attention_dim=WIDTH + WIDTH_2,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME,
            projection_class_embeddings_input_dim=PROJECTION + 6 * TIME,
        ),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        force_zeros_for_empty_prompt=force_zeros,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@cache
def folder(*, force_zeros: bool = True) -> Path:
    """The folder of one random checkpoint, written once in a test run."""
    return write_checkpoint(Path(_folders.name) / str(force_zeros), force_zeros=force_zeros)


@cache
def model(*, force_zeros: bool = True) -> Model:
    """That checkpoint, described."""
    return describe(ModelSettings("tiny-xl", str(folder(force_zeros=force_zeros))))


@cache
def loaded(dtype: str = "float64", *, force_zeros: bool = True) -> StableDiffusion:
    """That checkpoint on the CPU."""
    return load(model(force_zeros=force_zeros), torch.device("cpu"), dtype)


def cell(dtype: str = "float64", *, force_zeros: bool = True, **settings: object) -> Cell:
    """A cell of that checkpoint with few steps."""
    defaults = {"prompt": "a face", "seed": 0, "num_inference_steps": 5, "guidance_scale": 4.0}
    return cell_of(model(force_zeros=force_zeros), dtype=dtype, **{**defaults, **settings})


_folders = TemporaryDirectory()

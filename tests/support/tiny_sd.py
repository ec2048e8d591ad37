"""Tiny Stable Diffusion checkpoints with random weights, in diffusers' format."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel

from sega_bench.cell import Cell
from sega_bench.faces.tokenizer import make_tokenizer
from sega_bench.sega.checkpoints.locate import Model, describe
from sega_bench.sega.checkpoints.settings import ModelSettings
from sega_bench.sega.models import StableDiffusion, cell_of, load

SIZE = 32
WIDTH = 16


def make_text_config(width: int = WIDTH, **more: object) -> CLIPTextConfig:
    """Configuration of a text encoder with ``width`` channels that distinguishes texts."""
    tokenizer = make_tokenizer([])
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_factor=8.0,
        **more,
    )


def make_vae(levels: int = 2, **more: object) -> AutoencoderKL:
    """An autoencoder whose latents are 2 ** (levels - 1) times smaller than its images."""
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        **more,
    )


def make_unet(**more: object) -> UNet2DConditionModel:
    """A UNet with two levels and attention in the lower one."""
    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **more,
    )


def make_safety_checker() -> StableDiffusionSafetyChecker:
    """A safety checker with random concepts that flags some images and not others."""
    vision = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32}
    vision |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    for name in ("concept_embeds", "special_care_embeds"):
        getattr(checker, name).data.normal_()
    checker.concept_embeds_weights.data.fill_(0.6)
    checker.special_care_embeds_weights.data.fill_(0.3)
    return checker


def write_checkpoint(
    folder: Path, seed: int = 0, prediction_type: str = "epsilon", *, has_checker: bool = False
) -> Path:
    """Write a folder for `StableDiffusionPipeline.from_pretrained`: images of 32 pixels, latents of 16."""
    torch.manual_seed(seed)
    pipeline = StableDiffusionPipeline(
        vae=make_vae(sample_size=SIZE),
        text_encoder=CLIPTextModel(make_text_config()),
        tokenizer=make_tokenizer([]),
        unet=make_unet(sample_size=SIZE // 2, cross_attention_dim=WIDTH),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type,
        ),
        safety_checker=make_safety_checker() if has_checker else None,
        feature_extractor=CLIPImageProcessor(size=16, crop_size=16) if has_checker else None,
        requires_safety_checker=has_checker,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@cache
def folder(prediction_type: str = "epsilon") -> Path:
    """The folder of one random checkpoint, written once in a test run."""
    return write_checkpoint(Path(_folders.name) / prediction_type, prediction_type=prediction_type)


@cache
def model(prediction_type: str = "epsilon") -> Model:
    """That checkpoint, described."""
    return describe(ModelSettings("tiny", str(folder(prediction_type))))


@cache
def loaded(dtype: str = "float64", prediction_type: str = "epsilon") -> StableDiffusion:
    """That checkpoint on the CPU."""
    return load(model(prediction_type), torch.device("cpu"), dtype)


def cell(dtype: str = "float64", prediction_type: str = "epsilon", **settings: object) -> Cell:
    """A cell of that checkpoint with few steps."""
    defaults = {"prompt": "a face", "seed": 0, "num_inference_steps": 6, "guidance_scale": 4.0}
    return cell_of(model(prediction_type), dtype=dtype, **{**defaults, **settings})


_folders = TemporaryDirectory()

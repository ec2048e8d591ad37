"""Edits with diffusers' SEGA pipeline: measures the model independently of this package's engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sega_bench.errors import UserError

if TYPE_CHECKING:
    from diffusers import SemanticStableDiffusionPipeline

PerConcept = float | tuple[float, ...]
"""One value for all concepts of an edit, or one for each concept."""


@dataclass(frozen=True)
class Setting:
    """Sampling and guidance settings under diffusers' names; the defaults are the model card's."""

    guidance_scale: float = 5.0
    num_inference_steps: int = 25
    edit_guidance_scale: PerConcept = 7.0
    edit_threshold: PerConcept = 0.95
    edit_warmup_steps: int | tuple[int, ...] = 6
    edit_momentum_scale: float = 0.3
    edit_mom_beta: float = 0.6


def load_pipeline(folder: Path) -> SemanticStableDiffusionPipeline:
    """The pipeline in float32, without progress bars.

    Raises:
        UserError: the installed diffusers no longer has its deprecated SEGA pipeline.
    """
    try:
        from diffusers import SemanticStableDiffusionPipeline
    except (ImportError, RuntimeError):  # RuntimeError: its module is there and fails to import
        raise UserError(
            "the face model is measured with SemanticStableDiffusionPipeline, "
            "which this diffusers no longer has: install diffusers 0.42.1"
        ) from None
    pipeline = SemanticStableDiffusionPipeline.from_pretrained(
        folder, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def initial_noise(seeds: Sequence[int]) -> Tensor:
    """Initial latents (B, 4, 16, 16), each from its seed's own generator."""
    return torch.stack(
        [torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


def generate(
    pipeline: SemanticStableDiffusionPipeline,
    prompt: str,
    seeds: Sequence[int],
    concepts: Sequence[str] = (),
    setting: Setting = Setting(),
    batch: int = 16,
) -> Tensor:
    """Generate images in [-1, 1], (len(seeds), 3, 64, 64); without concepts they are unedited."""
    parts = [seeds[i : i + batch] for i in range(0, len(seeds), batch)]
    return torch.cat([_generate_batch(pipeline, prompt, part, list(concepts), setting) for part in parts])


def _generate_batch(
    pipeline: SemanticStableDiffusionPipeline,
    prompt: str,
    seeds: Sequence[int],
    concepts: list[str],
    setting: Setting,
) -> Tensor:
    def each(value: PerConcept) -> list[float]:
        return list(value) if isinstance(value, tuple) else [value] * len(concepts)

    edit = {
        "editing_prompt": concepts,
        "edit_guidance_scale": each(setting.edit_guidance_scale),
        "edit_threshold": each(setting.edit_threshold),
        "edit_warmup_steps": each(setting.edit_warmup_steps),
        "edit_momentum_scale": setting.edit_momentum_scale,
        "edit_mom_beta": setting.edit_mom_beta,
    }
    images: Tensor = pipeline(
        [prompt] * len(seeds),
        latents=initial_noise(seeds),
        guidance_scale=setting.guidance_scale,
        num_inference_steps=setting.num_inference_steps,
        output_type="pt",
        **(edit if concepts else {}),
    ).images
    return images * 2 - 1

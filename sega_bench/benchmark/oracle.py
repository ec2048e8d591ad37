"""Diffusers' deprecated SEGA pipeline: the reference implementation, for parity tests and benchmarks only.

It runs one cell at a time. Diffusers is removing it: only the functions that build it import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sega_bench.cell import Cell
from sega_bench.errors import UserError
from sega_bench.sega import schedulers
from sega_bench.sega.models import StableDiffusion
from sega_bench.sega.pipeline_arguments import diffusers_arguments

MISSING = f"diffusers {diffusers.__version__} has no SemanticStableDiffusionPipeline (0.42.1 has it)"


def is_available() -> bool:
    """Whether the installed diffusers still has the pipeline."""
    try:
        _pipeline_class()
    except UserError:
        return False
    return True


def make_pipeline(model: StableDiffusion) -> Any:
    """Diffusers' SEGA pipeline on the networks of a loaded model; there is none for XL.

    Raises:
        UserError: the installed diffusers has no such pipeline.
    """
    pipeline = _pipeline_class()(
        vae=model.vae,
        text_encoder=model.text_encoders[0],
        tokenizer=model.tokenizers[0],
        unet=model.unet,
        scheduler=schedulers.make("DDIMScheduler", "{}", 1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_pipeline(folder: Path, variant: str | None, device: torch.device, dtype: str) -> Any:
    """Diffusers' SEGA pipeline read from a checkpoint's folder, without any network of this engine.

    Raises:
        UserError: the installed diffusers has no such pipeline.
    """
    pipeline = _pipeline_class().from_pretrained(
        folder,
        variant=variant,
        torch_dtype=getattr(torch, dtype),
        use_safetensors=True,
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def make_image(pipeline: Any, cell: Cell) -> npt.NDArray[np.uint8]:
    """The cell's image by diffusers, HW3."""
    return np.asarray(_run(pipeline, cell, output_type="pil").images[0])


def make_latents(pipeline: Any, cell: Cell, sem_guidance: Sequence[Tensor] | None = None) -> Tensor:
    """The cell's final latents by diffusers, 1CHW, not yet scaled for the VAE.

    Args:
        pipeline: from :func:`make_pipeline`.
        cell: without ``replay``: diffusers replays in two runs, the cell's source and then its reference.
        sem_guidance: guidance to add at each step; a run leaves its own in ``pipeline.sem_guidance``.
    """
    latents_1CHW: Tensor = _run(pipeline, cell, output_type="latent", sem_guidance=sem_guidance).images
    return latents_1CHW


def _run(pipeline: Any, cell: Cell, **extra: Any) -> Any:
    pipeline.scheduler = schedulers.make(cell.scheduler, cell.scheduler_config, cell.num_inference_steps)
    generator = torch.Generator().manual_seed(cell.seed)
    with torch.inference_mode():
        return pipeline(**diffusers_arguments(cell), generator=generator, **extra)


def _pipeline_class() -> Any:
    try:
        return diffusers.SemanticStableDiffusionPipeline
    except (
        AttributeError,
        ImportError,
        RuntimeError,
    ):  # RuntimeError: its module is there and fails to import
        raise UserError(MISSING) from None

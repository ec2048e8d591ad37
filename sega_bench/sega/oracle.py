"""The deprecated pipeline of diffusers, cell by cell: slow, for parity tests and benchmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sega_bench.cell import EDIT_SETTINGS, Cell
from sega_bench.sega import schedulers
from sega_bench.sega.models import Model, StableDiffusion


def diffusers_arguments(cell: Cell) -> dict[str, Any]:
    """The keyword arguments with which ``SemanticStableDiffusionPipeline`` makes this cell, noise apart."""
    arguments: dict[str, Any] = {
        name: getattr(cell, name)
        for name in ("prompt", "negative_prompt", "height", "width", "num_inference_steps")
    }
    arguments |= {"guidance_scale": cell.guidance_scale, "eta": cell.eta}
    if not cell.edits:
        return arguments
    arguments["editing_prompt"] = [edit.concept for edit in cell.edits]
    arguments |= {name: [getattr(edit, name) for edit in cell.edits] for name in EDIT_SETTINGS}
    # Diffusers compares with None only where it is not in a list: a step that never comes says the same.
    never = 10**9
    arguments["edit_cooldown_steps"] = [never if x is None else x for x in arguments["edit_cooldown_steps"]]
    arguments["edit_momentum_scale"] = cell.edit_momentum_scale
    arguments["edit_mom_beta"] = cell.edit_mom_beta
    return arguments


def make_pipeline(model: StableDiffusion) -> Any:
    """Diffusers' SEGA pipeline on the networks of a loaded model."""
    from diffusers import SemanticStableDiffusionPipeline

    pipeline = SemanticStableDiffusionPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=schedulers.make("DDIMScheduler", "{}", 1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_pipeline(model: Model, device: torch.device, dtype: str) -> Any:
    """Diffusers' SEGA pipeline as it comes from a checkpoint's folder: none of this engine's networks."""
    from diffusers import SemanticStableDiffusionPipeline

    pipeline = SemanticStableDiffusionPipeline.from_pretrained(
        model.folder,
        variant=model.variant,
        torch_dtype=getattr(torch, dtype),
        use_safetensors=True,
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def make_image(pipeline: Any, cell: Cell) -> npt.NDArray[np.uint8]:
    """The cell's image as diffusers makes it, HW3."""
    return np.asarray(_run(pipeline, cell, output_type="pil").images[0])


def make_latents(pipeline: Any, cell: Cell) -> Tensor:
    """The cell's final latents as diffusers makes them, 1CHW: what goes into the VAE, unscaled."""
    latents: list[Tensor] = []

    def keep(step: int, timestep: int, latents_1CHW: Tensor) -> None:
        latents[:] = [latents_1CHW.clone()]

    _run(pipeline, cell, output_type="np", callback=keep)
    return latents[0]


def _run(pipeline: Any, cell: Cell, **extra: Any) -> Any:
    pipeline.scheduler = schedulers.make(cell.scheduler, cell.scheduler_config, cell.num_inference_steps)
    generator = torch.Generator().manual_seed(cell.seed)
    with torch.inference_mode():
        return pipeline(**diffusers_arguments(cell), generator=generator, **extra)

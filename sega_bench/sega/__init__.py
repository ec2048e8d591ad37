"""The SEGA engine, with its own API and as a drop-in for diffusers' deprecated pipeline.

>>> from sega_bench import Edit
>>> from sega_bench.sega import ModelSettings, cell_of, describe, generate, load
>>> model = describe(ModelSettings("mine", "/path/to/a/diffusers/folder"))
>>> edit = Edit("smiling, smile", edit_guidance_scale=6, edit_threshold=0.95)
>>> cells = [cell_of(model, prompt="a photo of a face", seed=s, edits=(edit,)) for s in range(8)]
>>> images = {outcome.cell.seed: outcome.image_HWC for outcome in generate(load(model), cells)}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sega_bench.sega.batching import Batching
    from sega_bench.sega.checkpoints.locate import Model, describe
    from sega_bench.sega.checkpoints.settings import LoraSettings, ModelSettings
    from sega_bench.sega.denoiser import Denoiser
    from sega_bench.sega.models import StableDiffusion, cell_of, load
    from sega_bench.sega.pipeline import SemanticStableDiffusionPipeline
    from sega_bench.sega.wave import Outcome, generate

_MODULES = {
    "Batching": "batching",
    "Denoiser": "denoiser",
    "LoraSettings": "checkpoints.settings",
    "Model": "checkpoints.locate",
    "ModelSettings": "checkpoints.settings",
    "Outcome": "wave",
    "SemanticStableDiffusionPipeline": "pipeline",
    "StableDiffusion": "models",
    "cell_of": "models",
    "describe": "checkpoints.locate",
    "generate": "wave",
    "load": "models",
}
__all__ = [
    "Batching",
    "Denoiser",
    "LoraSettings",
    "Model",
    "ModelSettings",
    "Outcome",
    "SemanticStableDiffusionPipeline",
    "StableDiffusion",
    "cell_of",
    "describe",
    "generate",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, because planning a sweep must not import torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'sega_bench.sega' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"sega_bench.sega.{_MODULES[name]}"), name)

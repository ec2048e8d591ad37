"""The SEGA engine, usable on its own, and as a drop-in for diffusers' deprecated pipeline.

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

_HOME = {
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
    """Import a public name when it is first used: the planner's arithmetic needs no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'sega_bench.sega' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"sega_bench.sega.{_HOME[name]}"), name)

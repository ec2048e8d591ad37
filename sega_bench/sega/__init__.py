"""The SEGA engine, usable on its own.

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
    from sega_bench.sega.denoiser import Denoiser
    from sega_bench.sega.models import Model, ModelSettings, StableDiffusion, cell_of, describe, load
    from sega_bench.sega.wave import Outcome, generate

__all__ = [
    "Batching",
    "Denoiser",
    "Model",
    "ModelSettings",
    "Outcome",
    "StableDiffusion",
    "cell_of",
    "describe",
    "generate",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the planner's arithmetic needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'sega_bench.sega' has no attribute {name!r}")
    from sega_bench.sega import models, wave

    return getattr(models if hasattr(models, name) else wave, name)

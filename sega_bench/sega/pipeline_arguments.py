"""Translate a cell into arguments of diffusers' SEGA pipeline."""

from __future__ import annotations

from typing import Any

from sega_bench.cell import EDIT_SETTINGS, Cell


def diffusers_arguments(cell: Cell) -> dict[str, Any]:
    """Keyword arguments of ``SemanticStableDiffusionPipeline`` for this cell, without its seed."""
    arguments: dict[str, Any] = {
        name: getattr(cell, name)
        for name in ("prompt", "negative_prompt", "height", "width", "num_inference_steps")
    }
    arguments |= {"guidance_scale": cell.guidance_scale, "eta": cell.eta}
    if not cell.edits:
        return arguments
    arguments["editing_prompt"] = [edit.concept for edit in cell.edits]
    arguments |= {name: [getattr(edit, name) for edit in cell.edits] for name in EDIT_SETTINGS}
    # diffusers compares list entries with numbers, so None would raise: use a step beyond the last.
    never = 10**9
    arguments["edit_cooldown_steps"] = [never if x is None else x for x in arguments["edit_cooldown_steps"]]
    arguments["edit_momentum_scale"] = cell.edit_momentum_scale
    arguments["edit_mom_beta"] = cell.edit_mom_beta
    return arguments

"""A cell as the arguments of a call of diffusers' SEGA pipeline."""

from __future__ import annotations

from typing import Any

from sega_bench.cell import EDIT_SETTINGS, Cell


def diffusers_arguments(cell: Cell) -> dict[str, Any]:
    """The keyword arguments with which ``SemanticStableDiffusionPipeline`` draws this cell, but its seed."""
    arguments: dict[str, Any] = {
        name: getattr(cell, name)
        for name in ("prompt", "negative_prompt", "height", "width", "num_inference_steps")
    }
    arguments |= {"guidance_scale": cell.guidance_scale, "eta": cell.eta}
    if not cell.edits:
        return arguments
    arguments["editing_prompt"] = [edit.concept for edit in cell.edits]
    arguments |= {name: [getattr(edit, name) for edit in cell.edits] for name in EDIT_SETTINGS}
    # In a list diffusers compares None with a number, which raises; a step beyond the last means "never" too.
    never = 10**9
    arguments["edit_cooldown_steps"] = [never if x is None else x for x in arguments["edit_cooldown_steps"]]
    arguments["edit_momentum_scale"] = cell.edit_momentum_scale
    arguments["edit_mom_beta"] = cell.edit_mom_beta
    return arguments

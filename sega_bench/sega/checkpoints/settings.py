"""What the user says about the model, and whether it can be right: checked before anything is read."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sega_bench.cell import shown
from sega_bench.errors import UserError


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """One LoRA.

    Args:
        path: a .safetensors file, or a folder that holds one.
        scale: its updates are multiplied by this before they are added to the weights.
    """

    path: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which checkpoint, and what is done to it.

    Args:
        name: what people call it; part of the table, not of any key.
        path: a diffusers folder, a hub id, one .safetensors file in the original layout, or ``embedded`` for
            the face model of this package.
        revision: branch, tag or commit of a hub id.
        variant: weights by this infix, such as ``fp16``.
        config: for one file only: what it is, by the name of a known configuration or as a diffusers folder
            whose configurations and tokenizers are read, and no weights.
        lora: fused into the weights, in this order.
        safety_checker: whether the checkpoint's safety checker looks at every image.
    """

    name: str
    path: str
    revision: str | None = None
    variant: str | None = None
    config: str | None = None
    lora: tuple[LoraSettings, ...] = ()
    safety_checker: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ModelSettings:
        """From the configuration's ``model``, where an entry of ``lora`` is a path or a mapping.

        Raises:
            UserError: ``lora`` is no list of those.
        """
        entries = values["lora"]
        if not isinstance(entries, list):
            raise UserError(
                f"model.lora is {shown(entries)}, but it must be a list: model.lora=[/path/to/a.safetensors]"
            )
        lora = tuple(_lora(entry, f"model.lora[{i}]") for i, entry in enumerate(entries))
        return cls(**{**values, "lora": lora})


def local_path(text: str) -> Path:
    """A path as the user wrote it, for os.path's functions: unlike pathlib's, they take any text."""
    return Path(os.path.expanduser(text))


def _lora(entry: Any, key: str) -> LoraSettings:
    if isinstance(entry, str):
        return LoraSettings(entry)
    known = [field.name for field in fields(LoraSettings)]
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str) or not set(entry) <= set(known):
        raise UserError(
            f"{key} is {shown(entry)}, but it must be a path or {{path: /path/to/a.safetensors, scale: 0.8}}"
        )
    scale = entry.get("scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise UserError(f"{key}.scale is {shown(scale)}, but it must be a number")
    return LoraSettings(entry["path"], float(scale))

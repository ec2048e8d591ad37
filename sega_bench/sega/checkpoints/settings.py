"""Model settings, and their validation before any file is read."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sega_bench.cell import abbreviated
from sega_bench.errors import UserError


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """One LoRA.

    Args:
        path: a .safetensors file, or a folder that holds one.
        scale: factor of its updates.
    """

    path: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The checkpoint to use, and its changes.

    Args:
        name: readable name; a column of the table, but not part of any key.
        path: a diffusers folder, a hub id, a single .safetensors file in the original layout, or ``embedded``
            for the face model of this package.
        revision: branch, tag or commit of a hub id.
        variant: infix of the weight files, such as ``fp16``.
        config: only for a single file: the name of a known configuration, or a diffusers folder with
            configurations and tokenizers, whose weights are not read.
        lora: fused into the weights, in this order.
        safety_checker: whether the checkpoint's safety checker scores every image.
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
        """Parse the configuration's ``model``, where an entry of ``lora`` is a path or a mapping.

        Raises:
            UserError: ``lora`` is no list of paths and mappings.
        """
        entries = values["lora"]
        if not isinstance(entries, list):
            raise UserError(
                f"model.lora is {abbreviated(entries)}, but it must be a list: "
                "model.lora=[/path/to/a.safetensors]"
            )
        lora = tuple(_parse_lora(entry, f"model.lora[{i}]") for i, entry in enumerate(entries))
        return cls(**{**values, "lora": lora})


def local_path(text: str) -> Path:
    """A user's path. Test it with os.path, whose functions accept any text, unlike pathlib's."""
    return Path(os.path.expanduser(text))


def _parse_lora(entry: Any, key: str) -> LoraSettings:
    if isinstance(entry, str):
        return LoraSettings(entry)
    known = [field.name for field in fields(LoraSettings)]
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str) or not set(entry) <= set(known):
        raise UserError(
            f"{key} is {abbreviated(entry)}, but it must be a path or "
            "{path: /path/to/a.safetensors, scale: 0.8}"
        )
    scale = entry.get("scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise UserError(f"{key}.scale is {abbreviated(scale)}, but it must be a number")
    return LoraSettings(entry["path"], float(scale))

"""What the user says about the model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which checkpoint.

    Args:
        name: what people call it; part of the table, not of any key.
        path: a diffusers folder, a hub id, one .safetensors file in the original layout, or ``embedded`` for
            the face model of this package.
        revision: branch, tag or commit of a hub id.
        variant: weights by this infix, such as ``fp16``.
        config: for one file only: what it is, by the name of a known configuration or as a diffusers folder
            whose configurations and tokenizers are read, and no weights.
    """

    name: str
    path: str
    revision: str | None = None
    variant: str | None = None
    config: str | None = None


def local_path(text: str) -> Path:
    """A path as the user wrote it, for os.path's functions: unlike pathlib's, they take any text."""
    return Path(os.path.expanduser(text))

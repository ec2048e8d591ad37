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
        path: a diffusers folder, a hub id, or ``embedded`` for the face model of this package.
        revision: branch, tag or commit of a hub id.
        variant: weights by this infix, such as ``fp16``.
    """

    name: str
    path: str
    revision: str | None = None
    variant: str | None = None


def local_path(text: str) -> Path:
    """A path as the user wrote it, for os.path's functions: unlike pathlib's, they take any text."""
    return Path(os.path.expanduser(text))

"""Drawings as tensors: rendered once, cached in one file and read by every training stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from .captions import Caption, caption
from .drawing import Face, face_of_seed, render
from .fitting import save_tensors


@dataclass(frozen=True)
class Drawings:
    """Faces with their pixels (N, 3, 64, 64) uint8 and labels (N, len(LABELS)) int8."""

    faces: list[Face]
    pixels_NCHW: Tensor
    labels_NL: Tensor

    def __len__(self) -> int:
        return len(self.faces)

    def images(self, indices: np.ndarray | slice) -> Tensor:
        """Images in [-1, 1], float32 (B, 3, 64, 64)."""
        return self.pixels_NCHW[indices].float() / 127.5 - 1

    def batch(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Sample `size` random indices with replacement."""
        return rng.integers(len(self), size=size)

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[Caption]:
        """One new random caption for each image."""
        return [caption(self.faces[i], rng) for i in indices]


def draw(seed: int, count: int) -> Drawings:
    """Render the first `count` faces of a seed's sequence."""
    return render_all([face_of_seed(seed, i) for i in range(count)])


def render_all(faces: list[Face]) -> Drawings:
    """Render faces."""
    pixels_NHWC = torch.from_numpy(np.stack([render(face) for face in faces]))
    labels_NL = torch.tensor([face.labels() for face in faces], dtype=torch.int8)
    return Drawings(faces, pixels_NHWC.permute(0, 3, 1, 2).contiguous(), labels_NL)


def load_or_compute(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Load tensors from a file; if it does not exist, compute and write them first."""
    if not path.exists():
        save_tensors(make(), path)
    return load_file(str(path))


def load_drawings(path: Path, seed: int, count: int) -> Drawings:
    """Like `draw`, with pixels and labels cached in a file."""

    def make() -> dict[str, Tensor]:
        drawings = draw(seed, count)
        return {"pixels": drawings.pixels_NCHW, "labels": drawings.labels_NL}

    tensors = load_or_compute(path, make)
    return Drawings([face_of_seed(seed, i) for i in range(count)], tensors["pixels"], tensors["labels"])


def chunks(count: int, size: int = 64) -> list[slice]:
    """Slices of at most `size` that cover range(count)."""
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


@torch.no_grad()
def map_images(function: Callable[[Tensor], Tensor], drawings: Drawings) -> Tensor:
    """Apply `function` to all images in chunks, and concatenate the results."""
    return torch.cat([function(drawings.images(part)) for part in chunks(len(drawings))])

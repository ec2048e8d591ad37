"""Tiny CLIP models with random weights, in open_clip's folder format, and random images for them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

from sega_bench.cell import Cell, Edit

SIZE, CONTEXT = 32, 24
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.5, 0.75)
VISION: dict[str, dict[str, Any]] = {
    "vit": {"image_size": SIZE, "patch_size": 8, "width": 32, "head_width": 16, "layers": 6},
    "resnet": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
}
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


def write_clip(folder: Path, tower: str, seed: int = 0) -> Path:
    """Write a folder for `local-dir:` with a random CLIP that tells images and texts apart."""
    torch.manual_seed(seed)
    model = CLIP(16, VISION[tower], TEXT)
    state = {name: _perturbed(name, value) for name, value in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "open_clip_model.safetensors")
    config = {
        "model_cfg": {"embed_dim": 16, "vision_cfg": VISION[tower], "text_cfg": TEXT},
        "preprocess_cfg": {"mean": MEAN, "std": STD},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@cache
def clip_folder(tower: str) -> Path:
    """The folder of one random model, written once in a test run."""
    return write_clip(Path(_folders.name) / tower, tower)


_folders = tempfile.TemporaryDirectory()


def _perturbed(name: str, value: torch.Tensor) -> torch.Tensor:
    """A weight with noise: open_clip initialises residual branches near zero, where they have no effect."""
    if not value.is_floating_point() or name.endswith("running_var") or value.ndim == 0:
        return value.clone()
    scale = 0.5 if value.ndim < 2 or "embedding" in name else value[0].numel() ** -0.5
    return (value + scale * torch.randn_like(value)).contiguous()


def random_image(seed: int, height: int = SIZE, width: int = SIZE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Random blocks of colour with noise, so that there is coarse and fine structure."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (4, 4, 3)).repeat(-(-height // 4), 0).repeat(-(-width // 4), 1)
    grain = rng.integers(-20, 21, (height, width, 3))
    return np.clip(blocks[:height, :width] + grain, 0, 255).astype(np.uint8)


def sweep(seeds: Sequence[int], prompt: str = "a photo of a face") -> list[Cell]:
    """For each seed, a reference and edits with one and with two concepts, one of them reversed."""
    smile, beard = Edit("smile"), Edit("beard", reverse_editing_direction=True)
    edits: list[tuple[Edit, ...]] = [(), (smile,), (beard,), (smile, beard)]
    return [Cell(prompt, seed, concepts, height=SIZE, width=SIZE) for seed in seeds for concepts in edits]


def draw(cells: Sequence[Cell]) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    """An image for every cell and its reference; an edit's is its reference's with another upper half."""
    images = {}
    for cell in cells:
        reference = cell.reference()
        images[reference.key] = random_image(cell.seed, cell.height, cell.width)
        edited = images[reference.key].copy()
        edited[: cell.height // 2] = random_image(int(cell.key, 16), cell.height // 2, cell.width)
        images.setdefault(cell.key, edited)
    return images

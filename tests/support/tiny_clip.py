"""CLIP models small enough for a test: random weights, in folders as open_clip saves them."""

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
    """A folder for `local-dir:` with a random CLIP whose features differ between images and between texts."""
    torch.manual_seed(seed)
    model = CLIP(16, VISION[tower], TEXT)
    state = {name: _lively(name, value) for name, value in model.state_dict().items()}
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
    """The folder of one random model, written once a test run."""
    return write_clip(Path(_folders.name) / tower, tower)


_folders = tempfile.TemporaryDirectory()


def _lively(name: str, value: torch.Tensor) -> torch.Tensor:
    """open_clip starts residual branches near zero: make them count."""
    if not value.is_floating_point() or name.endswith("running_var") or value.ndim == 0:
        return value.clone()
    scale = 0.5 if value.ndim < 2 or "embedding" in name else value[0].numel() ** -0.5
    return (value + scale * torch.randn_like(value)).contiguous()


def picture(seed: int, height: int = SIZE, width: int = SIZE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Random blocks of colour with grain, so that it has coarse and fine structure."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (4, 4, 3)).repeat(-(-height // 4), 0).repeat(-(-width // 4), 1)
    grain = rng.integers(-20, 21, (height, width, 3))
    return np.clip(blocks[:height, :width] + grain, 0, 255).astype(np.uint8)


def sweep(seeds: Sequence[int], prompt: str = "a photo of a face") -> list[Cell]:
    """Per seed a reference and edits with one and with two concepts, one of them reversed."""
    smile, beard = Edit("smile"), Edit("beard", reverse_editing_direction=True)
    edits: list[tuple[Edit, ...]] = [(), (smile,), (beard,), (smile, beard)]
    return [Cell(prompt, seed, chosen, height=SIZE, width=SIZE) for seed in seeds for chosen in edits]


def draw(cells: Sequence[Cell]) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    """A picture for every cell and its reference; an edited one is its reference with a disturbed corner."""
    images = {}
    for cell in cells:
        reference = cell.reference()
        images[reference.key] = picture(cell.seed, cell.height, cell.width)
        edited = images[reference.key].copy()
        edited[: cell.height // 2] = picture(int(cell.key, 16), cell.height // 2, cell.width)
        images.setdefault(cell.key, edited)
    return images

"""DINO distance between an edited image and its reference, by a network that was trained without texts.

Shape suffixes: B images of a batch, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from sega_bench.cell import Cell
from sega_bench.errors import UserError

from .clip import Preprocessing
from .loading import one_line, weights_id
from .scoring import Features, edited_only

PREPROCESSING = Preprocessing(
    (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", "shortest", shortest=256
)
"""The evaluation transform of DINOv2's authors."""


@dataclass(frozen=True)
class DinoScorer:
    """Computes `dino`: 1 minus the cosine of an edited image's and its reference's class embeddings, 0 to 2.

    The cosine is DreamBooth's DINO score (Ruiz et al. 2023, section 4.1).

    Args:
        model: transformers' `Dinov2Model` in float32, on `device`.
    """

    model: Any
    device: torch.device
    provenance: Mapping[str, Mapping[str, str]]

    def features(self, image_BHWC: Tensor) -> Features:
        """Class embeddings (B, D), normalised."""
        output = self.model(pixel_values=PREPROCESSING(image_BHWC.to(self.device)))
        return (F.normalize(output.last_hidden_state[:, 0].double(), dim=-1),)  # token 0 is the class token

    def compare(self, cells: Sequence[Cell], edited: Features, reference: Features) -> list[dict[str, float]]:
        """`dino` of every edited cell."""
        return edited_only(cells, dino=1 - (edited[0] * reference[0]).sum(-1).clamp(-1, 1))


def load_dino(name: str, device: torch.device) -> DinoScorer:
    """Load DINOv2 from a folder or a hub id, from safetensors only.

    Raises:
        UserError: its weights are not available, or do not fit.
    """
    from transformers import Dinov2Model

    path = str(Path(name).expanduser()) if Path(name).expanduser().exists() else name
    try:
        model, report = Dinov2Model.from_pretrained(path, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"scores.dino={name} cannot be loaded ({one_line(error)}); give a folder with config.json and "
            "model.safetensors of a Dinov2Model, a hub id such as facebook/dinov2-base, or null"
        ) from error
    # transformers only warns and leaves missing weights random.
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"scores.dino={name}: its file lacks {missing[0]}: name a Dinov2Model's weights")
    source = {
        "name": "DINOv2, class embedding",
        "backbone": Path(name).name if path != name or Path(name).exists() else name,
        "weights": weights_id(model.state_dict()),
        "preprocessing": str(PREPROCESSING),
    }
    return DinoScorer(model.to(device).eval().requires_grad_(False), device, {"dino": source})

"""The verdict of the safety checker that came with the checkpoint; the picture stays as it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sega_bench.cell import Cell
from sega_bench.sega.checkpoints.checkpoint import SafetyChecker

from .loading import weights_id
from .scoring import Features


@dataclass(frozen=True)
class SafetyScorer:
    """``nsfw``: 1 where Stable Diffusion's safety checker finds one of its concepts in the picture, else 0.

    Args:
        checker: diffusers' ``StableDiffusionSafetyChecker`` in float32, on `device`.
        preprocessor: makes its input of pictures, as the checkpoint's configuration says.
    """

    checker: Any
    preprocessor: Any
    device: torch.device
    provenance: Mapping[str, Mapping[str, str]]

    def features(self, image_BHWC: Tensor) -> Features:
        """The verdicts (B,)."""
        pictures = [Image.fromarray(image_HWC) for image_HWC in image_BHWC.cpu().numpy()]
        pixels_BCHW = self.preprocessor(pictures, return_tensors="pt").pixel_values.to(self.device)
        # It blackens what it is given as images, so it is given none of ours.
        _, verdict = self.checker(images=torch.zeros(len(pictures), 1), clip_input=pixels_BCHW)
        return (torch.tensor(verdict, dtype=torch.float32),)

    def compare(self, cells: Sequence[Cell], edited: Features, reference: Features) -> list[dict[str, float]]:
        """Every cell's own verdict, references included."""
        return [{"nsfw": value} for value in edited[0][: len(cells)].tolist()]


def load_safety_checker(found: SafetyChecker, device: torch.device) -> SafetyScorer:
    """The safety checker of a checkpoint."""
    checker: Any = found.part.load(device, torch.float32)
    preprocessor = found.load_preprocessor()
    logging.getLogger(type(checker).__module__).setLevel(logging.ERROR)  # it announces pictures turned black
    source = {
        "name": "Stable Diffusion safety checker",
        "weights": weights_id(checker.state_dict()),
        "preprocessing": f"the checkpoint's {found.preprocessor.name}",
    }
    return SafetyScorer(checker, preprocessor, device, {"nsfw": source})

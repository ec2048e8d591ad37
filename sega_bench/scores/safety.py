"""The score `nsfw`, by the safety checker of the checkpoint; images are not blackened."""

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
    """Computes `nsfw`: 1 if Stable Diffusion's safety checker flags the image, else 0.

    Args:
        checker: diffusers' ``StableDiffusionSafetyChecker`` in float32, on `device`.
        preprocessor: transformers' image processor with the checkpoint's configuration.
    """

    checker: Any
    preprocessor: Any
    device: torch.device
    provenance: Mapping[str, Mapping[str, str]]

    def features(self, image_BHWC: Tensor) -> Features:
        """The checker's flags (B,)."""
        images = [Image.fromarray(image_HWC) for image_HWC in image_BHWC.cpu().numpy()]
        pixels_BCHW = self.preprocessor(images, return_tensors="pt").pixel_values.to(self.device)
        # The checker blackens its `images` argument in place: pass placeholders.
        _, is_nsfw = self.checker(images=torch.zeros(len(images), 1), clip_input=pixels_BCHW)
        return (torch.tensor(is_nsfw, dtype=torch.float32),)

    def compare(self, cells: Sequence[Cell], edited: Features, reference: Features) -> list[dict[str, float]]:
        """`nsfw` of every cell, references included."""
        return [{"nsfw": value} for value in edited[0][: len(cells)].tolist()]


def load_safety_checker(safety_checker: SafetyChecker, device: torch.device) -> SafetyScorer:
    """Load the safety checker of a checkpoint."""
    checker: Any = safety_checker.part.load(device, torch.float32)
    preprocessor = safety_checker.load_preprocessor()
    # diffusers warns that it returns black images, which is not true here.
    logging.getLogger(type(checker).__module__).setLevel(logging.ERROR)
    source = {
        "name": "Stable Diffusion safety checker",
        "weights": weights_id(checker.state_dict()),
        "preprocessing": f"the checkpoint's {safety_checker.preprocessor.name}",
    }
    return SafetyScorer(checker, preprocessor, device, {"nsfw": source})

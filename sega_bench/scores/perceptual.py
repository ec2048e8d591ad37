"""Perceptual distances: between the feature maps that a network has of two pictures.

LPIPS proper (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
the `lpips` package) where its backbone can be had; and a distance of the same form on any network's stages,
which is LPIPS-like and must not be compared with published LPIPS values.
Shape suffixes: B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sega_bench.cell import Cell

from .scoring import Features, edited_only


def feature_distance(edited: Features, reference: Features) -> Tensor:
    """Distance (B,) of feature maps (B, C, H, W): 0 for equal ones, at most 4.

    Channels are normalised to unit length; squared differences are summed over channels and averaged over
    positions as in LPIPS, without its learnt channel weights, and averaged over the stages.
    """
    stages = [
        (F.normalize(a_BCHW) - F.normalize(b_BCHW)).square().sum(1).mean((1, 2))
        for a_BCHW, b_BCHW in zip(edited, reference, strict=True)
    ]
    return torch.stack(stages).mean(0)


@dataclass(frozen=True)
class LpipsScorer:
    """`lpips` of edited pictures and their references, from the parts of the `lpips` package."""

    net: Any
    device: torch.device
    provenance: Mapping[str, Mapping[str, str]]

    def features(self, image_BHWC: Tensor) -> Features:
        """The backbone's stages, each (B, C, H, W) with channels of unit length."""
        import lpips

        image_BCHW = image_BHWC.to(self.device).movedim(-1, 1).float() / 127.5 - 1
        stages = self.net.net(self.net.scaling_layer(image_BCHW))
        return tuple(lpips.normalize_tensor(stage_BCHW) for stage_BCHW in stages)

    def compare(self, cells: Sequence[Cell], edited: Features, reference: Features) -> list[dict[str, float]]:
        """Squared differences, channels weighted as people see them; mean over positions, sum over stages."""
        stages = zip(self.net.lins, edited, reference, strict=True)
        distance_B = torch.stack([weigh((a - b).square()).mean((1, 2, 3)) for weigh, a, b in stages]).sum(0)
        return edited_only(cells, lpips=distance_B)

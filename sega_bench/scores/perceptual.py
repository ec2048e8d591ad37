"""Perceptual distances between a network's feature maps of two images.

There are two: LPIPS itself (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a
Perceptual Metric", the `lpips` package), which needs its backbone's weights; and an LPIPS-like distance of
the same form on any network's stages, which must not be compared with published LPIPS values.

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

    As in LPIPS, channels are normalised to unit length, and squared differences are summed over channels and
    averaged over positions. There are no learnt channel weights, and stages are averaged.
    """
    stages = [
        (F.normalize(a_BCHW) - F.normalize(b_BCHW)).square().sum(1).mean((1, 2))
        for a_BCHW, b_BCHW in zip(edited, reference, strict=True)
    ]
    return torch.stack(stages).mean(0)


@dataclass(frozen=True)
class LpipsScorer:
    """Computes `lpips` of edited images and their references, with the network of the `lpips` package."""

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
        """Squared differences with learnt channel weights; mean over positions, sum over stages."""
        stages = zip(self.net.lins, edited, reference, strict=True)
        distance_B = torch.stack([weigh((a - b).square()).mean((1, 2, 3)) for weigh, a, b in stages]).sum(0)
        return edited_only(cells, lpips=distance_B)

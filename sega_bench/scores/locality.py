"""How much of what changed in a picture lies where its edit acted.

Shape suffixes: B images of a batch, H height, W width, C channels; h w of the latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sega_bench.cell import Cell

from .scoring import Features

PROVENANCE = {
    "locality": {
        "mask": "where a warm concept's direction passed its threshold, at any step, upsampled",
        "change": "absolute difference of the reference's 8-bit pixels, summed over channels",
    }
}


def locality(change_BHW: Tensor, is_guided_BHW: Tensor) -> Tensor:
    """Share (B,) of a picture's change that lies where it was guided; NaN where nothing changed."""
    inside_B = (change_BHW * is_guided_BHW).sum((1, 2)).double()
    return inside_B / change_BHW.sum((1, 2))


@dataclass(frozen=True)
class LocalityScorer:
    """`locality` of edited pictures, and `guided_fraction`, the share of the picture that was guided.

    A change that is spread at random has a locality of `guided_fraction`. Neither is there for a method
    without guidance of its own.

    Args:
        is_guided: bool (h, w) of the cells that have one, by key.
    """

    is_guided: Mapping[str, npt.NDArray[np.bool_]]

    @property
    def provenance(self) -> Mapping[str, Mapping[str, str]]:
        """The definition; there are no weights."""
        return PROVENANCE

    def features(self, image_BHWC: Tensor) -> Features:
        """The pictures themselves; everything is in integers, which the CPU adds up fast enough."""
        return (image_BHWC,)

    def compare(self, cells: Sequence[Cell], edited: Features, reference: Features) -> list[dict[str, float]]:
        """Both scores of every cell that was guided."""
        rows = [row for row, cell in enumerate(cells) if cell.key in self.is_guided]
        scores: list[dict[str, float]] = [{} for _ in cells]
        if not rows:
            return scores
        a_BHWC, b_BHWC = edited[0][rows].int(), reference[0][rows].int()
        change_BHW = (a_BHWC - b_BHWC).abs().sum(-1)
        mask_Bhw = torch.from_numpy(np.stack([self.is_guided[cells[row].key] for row in rows]))
        is_guided_BHW = F.interpolate(mask_Bhw[:, None].byte(), change_BHW.shape[1:])[:, 0]
        values = zip(
            rows,
            locality(change_BHW, is_guided_BHW).tolist(),
            is_guided_BHW.double().mean((1, 2)).tolist(),
            strict=True,
        )
        for row, inside, fraction in values:
            scores[row] = {"locality": inside, "guided_fraction": fraction}
        return scores

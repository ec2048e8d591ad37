"""Locality: the share of an image's change that lies where the edit's guidance was applied.

Shape suffixes: B images of a batch, H height, W width, C channels; h, w height and width of the latents.
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
    """Share (B,) of an image's change inside its guided mask; NaN where nothing changed."""
    inside_B = (change_BHW * is_guided_BHW).sum((1, 2)).double()
    return inside_B / change_BHW.sum((1, 2))


@dataclass(frozen=True)
class LocalityScorer:
    """Computes `locality` and `guided_fraction`, the share of the image that was guided.

    A change that is spread at random has a locality of `guided_fraction`. Cells without a mask, such as those
    of methods other than SEGA, get neither score.

    Args:
        is_guided: masks, bool (h, w), by cell key.
    """

    is_guided: Mapping[str, npt.NDArray[np.bool_]]

    @property
    def provenance(self) -> Mapping[str, Mapping[str, str]]:
        """The definitions; there are no weights."""
        return PROVENANCE

    def features(self, image_BHWC: Tensor) -> Features:
        """The images themselves; they stay on the CPU, which is fast enough for integer sums."""
        return (image_BHWC,)

    def compare(self, cells: Sequence[Cell], edited: Features, reference: Features) -> list[dict[str, float]]:
        """Both scores of every cell that has a mask."""
        rows = [row for row, cell in enumerate(cells) if cell.key in self.is_guided]
        scores: list[dict[str, float]] = [{} for _ in cells]
        if not rows:
            return scores
        a_BHWC, b_BHWC = edited[0][rows].int(), reference[0][rows].int()  # uint8 would wrap around
        change_BHW = (a_BHWC - b_BHWC).abs().sum(-1)
        mask_Bhw = torch.from_numpy(np.stack([self.is_guided[cells[row].key] for row in rows]))
        # Nearest-neighbour interpolation, which does not support bool.
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

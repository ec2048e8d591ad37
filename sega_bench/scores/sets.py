"""Distances between two sets of pictures, from features of a network; unbiased, so few pictures will do.

Both are maximum mean discrepancies (Gretton et al. 2012, equation 3), estimated without bias: means of a
kernel over all pairs, without those of a picture with itself. KID: Binkowski et al. 2018, "Demystifying MMD
GANs". CMMD: Jayasumana et al. 2024, "Rethinking FID". Either may be below zero where the sets hardly differ.

The equation is one of independent pictures. An edit is much like the picture it is an edit of, and like
other edits of that: such pairs, within a set or across, are left out as those of a picture with itself are,
for they would make sets seem nearer to each other the fewer pictures they have.

Shape suffixes: N, M pictures of the sets, D features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .clip import ClipScorer
from .scoring import reproducible

CMMD_BANDWIDTH = 10.0
"""Sigma of the Gaussian kernel, for features of unit length."""
CMMD_SCALE = 1000.0
"""What the paper multiplies its squared distance by."""
_ROWS = 1024
"""So many pictures' kernel values with all others are in memory at once."""

Kernel = Callable[[Tensor, Tensor], Tensor]


Sources = tuple[Tensor, Tensor]
"""A number for each picture of both sets, (N,) and (M,): pictures with the same one depend on each other."""


def kid(x_ND: Tensor, y_MD: Tensor, sources: Sources | None = None) -> float:
    """Kernel distance of two sets: the cubic kernel (x.y / D + 1)^3, over whole sets in place of subsets.

    NaN where a set has no two pictures that are independent.
    """

    def cubic(a_AD: Tensor, b_BD: Tensor) -> Tensor:
        return (a_AD @ b_BD.T / a_AD.shape[1] + 1) ** 3

    return unbiased_mmd2(x_ND, y_MD, cubic, sources)


def cmmd(x_ND: Tensor, y_MD: Tensor, sources: Sources | None = None) -> float:
    """CLIP's MMD of two sets: 1000 times the squared distance of a Gaussian kernel of bandwidth 10.

    The authors' code averages over all pairs; this leaves out those of a picture with itself, and so does not
    grow as sets shrink. NaN where a set has no two pictures that are independent.

    Args:
        x_ND: CLIP's embeddings of unit length.
        y_MD: those of the other set.
        sources: see :data:`Sources`; None: all pictures are independent.
    """
    gamma = 1 / (2 * CMMD_BANDWIDTH**2)

    def gaussian(a_AD: Tensor, b_BD: Tensor) -> Tensor:
        return (-gamma * torch.cdist(a_AD, b_BD).square()).exp()

    return CMMD_SCALE * unbiased_mmd2(x_ND, y_MD, gaussian, sources)


def unbiased_mmd2(x_ND: Tensor, y_MD: Tensor, kernel: Kernel, sources: Sources | None = None) -> float:
    """Squared maximum mean discrepancy in float64; its memory grows with the pictures, not with their pairs.

    Args:
        x_ND: features of one set.
        y_MD: of the other.
        kernel: values (A, B) of all pairs of rows (A, D) and (B, D).
        sources: see :data:`Sources`; None: all pictures are independent.
    """
    x_ND, y_MD = x_ND.double(), y_MD.double()
    n, m = len(x_ND), len(y_MD)
    of_x_N, of_y_M = sources or (torch.arange(n), torch.arange(n, n + m))
    own_x = _mean(x_ND, x_ND, kernel, of_x_N, of_x_N)
    own_y = _mean(y_MD, y_MD, kernel, of_y_M, of_y_M)
    return own_x + own_y - 2 * _mean(x_ND, y_MD, kernel, of_x_N, of_y_M)


def _mean(x_ND: Tensor, y_MD: Tensor, kernel: Kernel, of_x_N: Tensor, of_y_M: Tensor) -> float:
    """Mean of the kernel over the pairs of independent pictures, a few rows at a time; NaN of none."""
    total, pairs = 0.0, 0
    for start in range(0, len(x_ND), _ROWS):
        part = slice(start, start + _ROWS)
        counts_AM = of_x_N[part, None] != of_y_M
        total += float(kernel(x_ND[part], y_MD)[counts_AM].sum())
        pairs += int(counts_AM.sum())
    return total / pairs if pairs else float("nan")


def embed(scorer: ClipScorer, images: Iterable[NDArray[np.uint8]], batch_size: int) -> Tensor:
    """CLIP's embeddings (N, D) of pictures (H, W, 3), as its tower gives them; one batch in memory at a time.

    Args:
        scorer: see :func:`sega_bench.scores.loading.load_clip`.
        images: those of one size that follow each other go through together.
        batch_size: to which batches are padded, so that an embedding does not depend on its batch mates.
    """
    embedded = []
    with torch.inference_mode(), reproducible():
        for _, same in itertools.groupby(images, key=lambda image_HWC: image_HWC.shape):
            while batch := list(itertools.islice(same, batch_size)):
                image_BHWC = torch.from_numpy(np.stack(batch))
                padding = image_BHWC.new_zeros(batch_size - len(batch), *image_BHWC.shape[1:])
                embedded.append(scorer.features(torch.cat([image_BHWC, padding]))[0][: len(batch)].cpu())
    return torch.cat(embedded) if embedded else torch.zeros(0, 1)

"""KID and CMMD: distances between two sets of images, from a network's features.

Both are unbiased estimates of the squared maximum mean discrepancy (Gretton et al. 2012, equation 3): means
of a kernel over all pairs, without the pairs of an image with itself. They need few images, and may be below
zero where the sets hardly differ. KID: Binkowski et al. 2018, "Demystifying MMD GANs". CMMD: Jayasumana et
al. 2024, "Rethinking FID".

The equation assumes independent images. An edit resembles its reference and other edits of that reference,
so pairs of one source, within a set or across the two, are left out like an image's pair with itself.
Including them would make sets look closer the fewer images they have.

Shape suffixes: N, M images of the two sets, D features.
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
"""The paper's factor of the squared distance."""
_ROWS = 1024
"""Rows of the kernel matrix that are in memory at once."""

Kernel = Callable[[Tensor, Tensor], Tensor]

Sources = tuple[Tensor, Tensor]
"""A source number for each image of both sets, (N,) and (M,): images of one source depend on each other."""


def kid(x_ND: Tensor, y_MD: Tensor, sources: Sources | None = None) -> float:
    """KID: the discrepancy with the cubic kernel (x.y / D + 1)^3, over whole sets instead of subsets.

    NaN where a set has no two independent images.
    """

    def cubic(a_AD: Tensor, b_BD: Tensor) -> Tensor:
        return (a_AD @ b_BD.T / a_AD.shape[1] + 1) ** 3

    return unbiased_mmd2(x_ND, y_MD, cubic, sources)


def cmmd(x_ND: Tensor, y_MD: Tensor, sources: Sources | None = None) -> float:
    """CLIP-MMD: 1000 times the squared discrepancy with a Gaussian kernel of bandwidth 10.

    The authors' code averages over all pairs. This function leaves out the pairs of an image with itself, so
    that the distance does not grow as sets shrink. NaN where a set has no two independent images.

    Args:
        x_ND: CLIP embeddings of one set, of unit length.
        y_MD: CLIP embeddings of the other set, of unit length.
        sources: see :data:`Sources`; None: all images are independent.
    """
    gamma = 1 / (2 * CMMD_BANDWIDTH**2)

    def gaussian(a_AD: Tensor, b_BD: Tensor) -> Tensor:
        return (-gamma * torch.cdist(a_AD, b_BD).square()).exp()

    return CMMD_SCALE * unbiased_mmd2(x_ND, y_MD, gaussian, sources)


def unbiased_mmd2(x_ND: Tensor, y_MD: Tensor, kernel: Kernel, sources: Sources | None = None) -> float:
    """Squared maximum mean discrepancy in float64; memory is linear in the number of images.

    Args:
        x_ND: features of one set.
        y_MD: features of the other set.
        kernel: maps rows (A, D) and (B, D) to the values (A, B) of all pairs.
        sources: see :data:`Sources`; None: all images are independent.
    """
    x_ND, y_MD = x_ND.double(), y_MD.double()
    n, m = len(x_ND), len(y_MD)
    source_N, source_M = sources or (torch.arange(n), torch.arange(n, n + m))
    within_x = _mean(x_ND, x_ND, kernel, source_N, source_N)
    within_y = _mean(y_MD, y_MD, kernel, source_M, source_M)
    return within_x + within_y - 2 * _mean(x_ND, y_MD, kernel, source_N, source_M)


def _mean(x_ND: Tensor, y_MD: Tensor, kernel: Kernel, source_N: Tensor, source_M: Tensor) -> float:
    """Mean of the kernel over all pairs of independent images, ``_ROWS`` at a time; NaN without a pair."""
    total, pairs = 0.0, 0
    for start in range(0, len(x_ND), _ROWS):
        rows = slice(start, start + _ROWS)
        is_independent_AM = source_N[rows, None] != source_M
        total += float(kernel(x_ND[rows], y_MD)[is_independent_AM].sum())
        pairs += int(is_independent_AM.sum())
    return total / pairs if pairs else float("nan")


def embed(scorer: ClipScorer, images: Iterable[NDArray[np.uint8]], batch_size: int) -> Tensor:
    """CLIP embeddings (N, D) of images (H, W, 3), not normalised; one batch is in memory at a time.

    Args:
        scorer: from :func:`sega_bench.scores.loading.load_clip`.
        images: consecutive images of one size share batches.
        batch_size: every batch is padded to this size, so that an embedding does not depend on the others in
            its batch.
    """
    embedded = []
    with torch.inference_mode(), reproducible():
        for _, same_size in itertools.groupby(images, key=lambda image_HWC: image_HWC.shape):
            while batch := list(itertools.islice(same_size, batch_size)):
                image_BHWC = torch.from_numpy(np.stack(batch))
                padding = image_BHWC.new_zeros(batch_size - len(batch), *image_BHWC.shape[1:])
                embedded.append(scorer.features(torch.cat([image_BHWC, padding]))[0][: len(batch)].cpu())
    return torch.cat(embedded) if embedded else torch.zeros(0, 1)

"""Distances between two sets of pictures, from features of a network; unbiased, so few pictures will do.

Both are maximum mean discrepancies (Gretton et al. 2012, equation 3), estimated without bias: means of a
kernel over all pairs, without those of a picture with itself. KID: Binkowski et al. 2018, "Demystifying MMD
GANs". CMMD: Jayasumana et al. 2024, "Rethinking FID". Either may be below zero where the sets hardly differ.
Shape suffixes: N, M pictures of the sets, D features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

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


def kid(x_ND: Tensor, y_MD: Tensor) -> float:
    """Kernel distance of two sets: the cubic kernel (x.y / D + 1)^3, over whole sets in place of subsets.

    NaN where a set has fewer than two pictures.
    """
    return unbiased_mmd2(x_ND, y_MD, lambda a_AD, b_BD: (a_AD @ b_BD.T / a_AD.shape[1] + 1) ** 3)


def cmmd(x_ND: Tensor, y_MD: Tensor) -> float:
    """CLIP's MMD of two sets: 1000 times the squared distance of a Gaussian kernel of bandwidth 10.

    The authors' code averages over all pairs; this leaves out those of a picture with itself, and so does not
    grow as sets shrink. NaN where a set has fewer than two pictures.

    Args:
        x_ND: CLIP's embeddings of unit length.
        y_MD: those of the other set.
    """
    gamma = 1 / (2 * CMMD_BANDWIDTH**2)

    def gaussian(a_AD: Tensor, b_BD: Tensor) -> Tensor:
        return (-gamma * torch.cdist(a_AD, b_BD).square()).exp()

    return CMMD_SCALE * unbiased_mmd2(x_ND, y_MD, gaussian)


def unbiased_mmd2(x_ND: Tensor, y_MD: Tensor, kernel: Kernel) -> float:
    """Squared maximum mean discrepancy in float64; its memory grows with the pictures, not with their pairs.

    Args:
        x_ND: features of one set.
        y_MD: of the other.
        kernel: values (A, B) of all pairs of rows (A, D) and (B, D).
    """
    x_ND, y_MD = x_ND.double(), y_MD.double()
    if min(len(x_ND), len(y_MD)) < 2:
        return float("nan")
    own_x, own_y = (_mean_of_others(set_ND, kernel) for set_ND in (x_ND, y_MD))
    across = [float(kernel(part_AD, y_MD).sum()) for _, part_AD in _parts(x_ND)]
    return own_x + own_y - 2 * sum(across) / (len(x_ND) * len(y_MD))


def _mean_of_others(x_ND: Tensor, kernel: Kernel) -> float:
    """Mean of the kernel over ordered pairs of different pictures."""
    total = 0.0
    for start, part_AD in _parts(x_ND):
        values_AN = kernel(part_AD, x_ND)
        total += float(values_AN.sum() - values_AN.diagonal(start).sum())
    return total / (len(x_ND) * (len(x_ND) - 1))


def _parts(x_ND: Tensor) -> Iterator[tuple[int, Tensor]]:
    """A few rows at a time, and the place of the first."""
    return ((start, x_ND[start : start + _ROWS]) for start in range(0, len(x_ND), _ROWS))


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

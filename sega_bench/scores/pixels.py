"""Pixel scores: how much of the image an edit leaves unchanged.

Everything is computed in float64 or in integers from the 8-bit pixels, so all devices agree.

Shape suffixes: B images of a batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sega_bench.cell import Cell
from sega_bench.errors import UserError

from .scoring import Features, edited_only

WINDOW, SIGMA = 11, 1.5
"""SSIM's Gaussian window, in pixels."""
MAX_PSNR = 100.0
"""Decibels for identical images, whose PSNR is infinite."""
CHANGED_BY = 16
"""A pixel counts as changed if any channel differs by more than this, of 255."""


def mse(a_BHWC: Tensor, b_BHWC: Tensor) -> Tensor:
    """Mean squared error (B,) of uint8 images scaled to [0, 1]; exact, because the sum is an integer."""
    difference_BHWC = a_BHWC.to(torch.int64) - b_BHWC.to(torch.int64)
    return difference_BHWC.square().sum((1, 2, 3)).double() / (255**2 * difference_BHWC[0].numel())


def psnr(mse_B: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in decibels for a peak of 1, capped at `MAX_PSNR`."""
    return (-10 * mse_B.log10()).clamp(max=MAX_PSNR)


def changed_fraction(a_BHWC: Tensor, b_BHWC: Tensor) -> Tensor:
    """Share (B,) of the pixels in which any channel differs by more than `CHANGED_BY`."""
    difference_BHWC = (a_BHWC.to(torch.int16) - b_BHWC.to(torch.int16)).abs()  # uint8 would wrap around
    changed_BHW = (difference_BHWC > CHANGED_BY).any(-1)
    return changed_BHW.sum((1, 2)).double() / changed_BHW[0].numel()


def ssim(a_BHWC: Tensor, b_BHWC: Tensor) -> Tensor:
    """Structural similarity (B,) of uint8 images: mean over channels and all windows inside the image.

    Equals scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False)`. Source: Wang et al. 2004, "Image quality assessment: from error visibility
    to structural similarity".

    Raises:
        UserError: the images are smaller than the window.
    """
    height, width = a_BHWC.shape[1:3]
    if min(height, width) < WINDOW:
        raise UserError(
            f"height, width: {height}x{width} pixels are too few for ssim; use at least {WINDOW}x{WINDOW}"
        )
    a, b = (image_BHWC.movedim(-1, 1).double() / 255 for image_BHWC in (a_BHWC, b_BHWC))
    # A Gaussian window is separable: blur rows and columns by one matrix product each.
    rows, columns = _blur_matrix(height, a), _blur_matrix(width, a).T
    mean_a, mean_b, aa, bb, ab = (rows @ x @ columns for x in (a, b, a * a, b * b, a * b))
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    variances = (aa - mean_a**2) + (bb - mean_b**2)
    structure = (2 * (ab - mean_a * mean_b) + 0.03**2) / (variances + 0.03**2)
    return (luminance * structure).mean((1, 2, 3))


def _blur_matrix(size: int, like: Tensor) -> Tensor:
    """Matrix (size - WINDOW + 1, size) whose rows average one window of a pixel line, Gaussian-weighted."""
    offset = torch.arange(WINDOW, dtype=like.dtype, device=like.device) - WINDOW // 2
    weight = torch.exp(-0.5 * (offset / SIGMA) ** 2)
    matrix = like.new_zeros(size - WINDOW + 1, size)
    for tap, value in enumerate(weight / weight.sum()):
        matrix.diagonal(tap).fill_(value)
    return matrix


@dataclass(frozen=True)
class PixelScorer:
    """Computes `ssim`, `psnr`, `mse` and `changed_fraction` of an edited image against its reference."""

    device: torch.device

    @property
    def provenance(self) -> Mapping[str, Mapping[str, str]]:
        """The constants of the definitions; there are no weights."""
        return {
            "ssim": {"window": f"gaussian {WINDOW}, sigma {SIGMA}", "data_range": "1"},
            "psnr": {"cap": f"{MAX_PSNR:g}"},
            "mse": {"data_range": "1"},
            "changed_fraction": {"threshold": f"{CHANGED_BY}/255 in any channel"},
        }

    def features(self, image_BHWC: Tensor) -> Features:
        """The images themselves."""
        return (image_BHWC.to(self.device),)

    def compare(self, cells: Sequence[Cell], edited: Features, reference: Features) -> list[dict[str, float]]:
        """The four scores of every edited cell."""
        pair = edited[0], reference[0]
        mse_B = mse(*pair)
        return edited_only(
            cells, ssim=ssim(*pair), psnr=psnr(mse_B), mse=mse_B, changed_fraction=changed_fraction(*pair)
        )

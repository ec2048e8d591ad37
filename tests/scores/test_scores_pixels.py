"""Pixel scores against scikit-image, against their definitions, and in edge cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skimage.data
import skimage.metrics
import skimage.transform
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sega_bench.errors import UserError
from sega_bench.scores.pixels import CHANGED_BY, changed_fraction, mse, psnr, ssim

Image = np.ndarray[Any, np.dtype[np.uint8]]


def photograph(name: str, size: int = 64) -> Image:
    resized = skimage.transform.resize(getattr(skimage.data, name)(), (size, size), anti_aliasing=True)
    return np.round(resized * 255).astype(np.uint8)


def noisy(image: Image, strength: int) -> Image:
    noise = np.random.default_rng(strength).integers(-strength, strength + 1, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def batch(*images: Image) -> Tensor:
    return torch.from_numpy(np.stack(images))


PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
PAIRS = [
    (photograph(name), noisy(photograph(name), strength)) for name in PHOTOGRAPHS for strength in (1, 8, 60)
]
PAIRS += [
    (photograph("astronaut"), photograph("coffee")),
    (np.zeros((64, 64, 3), np.uint8), photograph("rocket")),
]


def reference_ssim(a: Image, b: Image) -> float:
    """scikit-image with the settings that, by its documentation, match Wang et al."""
    return float(
        skimage.metrics.structural_similarity(
            a / 255,
            b / 255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=-1,
        )
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance"),
    [
        (ssim, reference_ssim, 1e-10),
        (lambda a, b: psnr(mse(a, b)), skimage.metrics.peak_signal_noise_ratio, 1e-10),
        (mse, lambda a, b: skimage.metrics.mean_squared_error(a / 255, b / 255), 1e-12),
    ],
    ids=["ssim", "psnr", "mse"],
)
def test_agrees_with_scikit_image(
    ours: Callable[[Tensor, Tensor], Tensor], theirs: Callable[[Image, Image], float], tolerance: float
) -> None:
    values_B = ours(batch(*(a for a, _ in PAIRS)), batch(*(b for _, b in PAIRS)))
    for value, pair in zip(values_B.tolist(), PAIRS, strict=True):
        assert value == pytest.approx(theirs(*pair), abs=tolerance)


def test_ssim_of_an_image_that_is_not_square() -> None:
    a, b = photograph("astronaut")[:40], photograph("coffee")[:40]
    assert ssim(batch(a), batch(b)).item() == pytest.approx(reference_ssim(a, b), abs=1e-10)


def test_ssim_needs_a_whole_window() -> None:
    smallest = np.zeros((11, 11, 3), np.uint8)
    assert ssim(batch(smallest), batch(smallest)).item() == 1.0
    with pytest.raises(UserError, match="10x11 pixels are too few for ssim; use at least 11x11"):
        ssim(batch(smallest[1:]), batch(smallest[1:]))


def test_changed_fraction_counts_pixels_and_is_strict() -> None:
    a = np.full((4, 5, 3), 100, np.uint8)
    b = a.copy()
    b[0, 0] += CHANGED_BY  # all channels off by 16: not changed
    b[1, 1, 0] += CHANGED_BY + 1  # one channel is enough
    b[2, 2] -= CHANGED_BY + 1  # three channels are still one pixel
    assert changed_fraction(batch(a), batch(b)).item() == 2 / 20


def test_no_overflow_between_black_and_white() -> None:
    black, white = (np.full((16, 16, 3), value, np.uint8) for value in (0, 255))
    for pair in ((batch(black), batch(white)), (batch(white), batch(black))):
        assert mse(*pair).item() == 1.0
        assert psnr(mse(*pair)).item() == 0.0
        assert changed_fraction(*pair).item() == 1.0


def test_psnr_is_capped() -> None:
    one_step = 1 / (255**2 * 1e7)  # smaller than any real difference
    assert psnr(torch.tensor([0.0, one_step, 1e-4], dtype=torch.float64)).tolist() == pytest.approx(
        [100, 100, 40]
    )


seeds = st.integers(0, 2**32 - 1)


def random_image(seed: int, height: int = 12, width: int = 13) -> Tensor:
    return batch(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(max_examples=40, deadline=None)
@given(seeds, seeds)
def test_scores_are_in_range_and_symmetric(seed_a: int, seed_b: int) -> None:
    a, b = random_image(seed_a), random_image(seed_b)
    for measure, low, high in ((ssim, -1, 1), (mse, 0, 1), (changed_fraction, 0, 1)):
        value = measure(a, b).item()
        assert low <= value <= high
        assert value == pytest.approx(measure(b, a).item(), abs=1e-15)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_identical_images_have_perfect_scores(seed: int) -> None:
    a = random_image(seed)
    assert (ssim(a, a).item(), mse(a, a).item(), changed_fraction(a, a).item()) == (1.0, 0.0, 0.0)
    assert psnr(mse(a, a)).item() == 100.0

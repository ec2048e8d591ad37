"""The autoencoder of the embedded model: diffusers' AutoencoderKL, 64x64 pixels to 4x16x16 latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .data import Drawings, map_images
from .fitting import Recipe, fit

RECIPE = Recipe(steps=2000, batch=10, lr=2e-3, ema=0.995)
KL_WEIGHT = 3e-5


def make_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder.

    Four norm groups: with one channel a group, normalisation would remove the colours.
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=1.0,
    )


def train_autoencoder(drawings: Drawings, recipe: Recipe, folder: Path, seed: int) -> AutoencoderKL:
    """Train the autoencoder to reconstruct drawings, half of the batches mirrored."""
    vae = make_autoencoder()

    def loss(rng: np.random.Generator) -> Tensor:
        x_BCHW = drawings.images(drawings.batch(rng, recipe.batch))
        if rng.random() < 0.5:
            x_BCHW = x_BCHW.flip(-1)
        posterior = vae.encode(x_BCHW).latent_dist
        y_BCHW = vae.decode(posterior.sample()).sample
        kl: Tensor = posterior.kl().mean() / posterior.mean[0].numel()
        return reconstruction_loss(x_BCHW, y_BCHW) + KL_WEIGHT * kl

    fit("autoencoder", vae, loss, recipe, folder, seed)
    return vae


def reconstruction_loss(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """L1 + L2 + L1 of the image gradients; the gradients keep thin lines from blurring."""
    error_BCHW = y_BCHW - x_BCHW
    edges = error_BCHW.diff(dim=-1).abs().mean() + error_BCHW.diff(dim=-2).abs().mean()
    return error_BCHW.abs().mean() + error_BCHW.square().mean() + edges


def encode_means(vae: AutoencoderKL, drawings: Drawings) -> Tensor:
    """Posterior means of the drawings' latents, (N, 4, 16, 16)."""
    return map_images(lambda x_BCHW: vae.encode(x_BCHW).latent_dist.mean, drawings)


def reconstruct(vae: AutoencoderKL, drawings: Drawings) -> Tensor:
    """Drawings encoded and decoded, (N, 3, 64, 64), clipped to [-1, 1]."""
    return map_images(
        lambda x_BCHW: vae.decode(vae.encode(x_BCHW).latent_dist.mean).sample.clamp(-1, 1), drawings
    )


@torch.no_grad()
def standardise(vae: AutoencoderKL, latents_NCHW: Tensor) -> Tensor:
    """Standardise the latents by changing the convolutions before and after them, in place.

    Each channel's mean and standard deviation go into `quant_conv` and `post_quant_conv`, so that
    `scaling_factor` can stay 1 and decoded images do not change.

    Returns:
        The latents as the changed autoencoder encodes them.
    """
    mean_C = latents_NCHW.mean((0, 2, 3))
    deviation_C = latents_NCHW.std((0, 2, 3))
    before, after = vae.quant_conv, vae.post_quant_conv
    channels = len(mean_C)
    before.weight[:channels] /= deviation_C[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean_C) / deviation_C
    before.bias[channels:] -= 2 * deviation_C.log()  # the posterior's log variance
    after.bias += after.weight[:, :, 0, 0] @ mean_C
    after.weight *= deviation_C[None, :, None, None]
    return (latents_NCHW - mean_C[:, None, None]) / deviation_C[:, None, None]


def psnr(x_BCHW: Tensor, y_BCHW: Tensor) -> float:
    """Mean peak signal-to-noise ratio of images in [-1, 1], in dB."""
    mse_B = ((x_BCHW - y_BCHW) / 2).square().flatten(1).mean(1)
    return float((-10 * mse_B.log10()).mean())

"""The denoiser of the embedded model: diffusers' UNet2DConditionModel on 16x16 latents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from .clip import token_ids
from .data import Drawings
from .fitting import Recipe, fit

RECIPE = Recipe(steps=14000, batch=48, lr=1e-3, ema=0.9995, warmup=200, cycles=2)
"""Two cycles; `practice` continues from the averaged weights."""
SNR_LIMIT = 5.0
"""Gamma of Min-SNR weighting (arXiv 2303.09556)."""


def make_unet() -> UNet2DConditionModel:
    """An untrained denoiser with 3.8 M parameters."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 96, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.5's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type="epsilon",
    )


def train_unet(
    drawings: Drawings,
    latents_NCHW: Tensor,
    text: tuple[CLIPTokenizer, CLIPTextModel],
    recipe: Recipe,
    folder: Path,
    seed: int,
) -> UNet2DConditionModel:
    """Train the denoiser to predict the noise in the drawings' latents, with a new caption each time."""
    unet = make_unet()
    tokenizer, encoder = text
    denoising = Denoising(unet)

    def loss(rng: np.random.Generator) -> Tensor:
        indices = drawings.batch(rng, recipe.batch)
        texts = [caption.text for caption in drawings.captions(indices, rng)]
        states_BSD = encoder(token_ids(tokenizer, texts)).last_hidden_state
        x_BCHW = latents_NCHW[indices]
        noise_BCHW = torch.randn_like(x_BCHW)
        return denoising.loss(x_BCHW, x_BCHW, noise_BCHW, random_steps(len(x_BCHW)), states_BSD)

    fit("unet", unet, loss, recipe, folder, seed)
    return unet


def random_steps(count: int, first: int = 0) -> Tensor:
    """Sample noise levels (count,): training steps, uniform from `first` (0: least noise) to the last."""
    return torch.randint(first, make_scheduler().config.num_train_timesteps, (count,))


class Denoising:
    """The loss of a denoiser: how well it predicts the noise in latents, given a text."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._unet = unet
        self._scheduler = make_scheduler()
        alphas_T = self._scheduler.alphas_cumprod
        self.snr_T = alphas_T / (1 - alphas_T)
        self._weight_T = snr_weights(self.snr_T)

    def loss(
        self, x_BCHW: Tensor, target_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor, states_BSD: Tensor
    ) -> Tensor:
        """Weighted mean squared error when noisy `x` should be denoised to `target`.

        With `x` = `target` this is the usual loss. Otherwise the difference of the two counts as noise:
        x_t = sqrt(a) x + sqrt(1 - a) eps = sqrt(a) target + sqrt(1 - a) (eps + sqrt(snr) (x - target)).
        """
        noisy_BCHW = self._scheduler.add_noise(x_BCHW, noise_BCHW, t_B)
        eps_BCHW = noise_BCHW + self.snr_T[t_B].sqrt()[:, None, None, None] * (x_BCHW - target_BCHW)
        error_BCHW = self._unet(noisy_BCHW, t_B, states_BSD).sample - eps_BCHW
        error_B: Tensor = error_BCHW.square().mean((1, 2, 3))
        return (error_B * self._weight_T[t_B]).mean()


def snr_weights(snr_T: Tensor) -> Tensor:
    """Min-SNR weights (T,) for noise prediction: steps with little noise count less."""
    return snr_T.clamp(max=SNR_LIMIT) / snr_T


def save_pipeline(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Write a pipeline with float16 weights that loads in float32 by default.

    transformers reads the text encoder's dtype from its config, and diffusers uses float32 for the rest.
    The config is corrected, so that a plain `from_pretrained` does not mix dtypes.
    """
    pipeline.to(torch.float16).save_pretrained(folder)
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text()) | {"dtype": "float32"}
    path.write_text(json.dumps(config, indent=2) + "\n")


def make_pipeline(
    vae: AutoencoderKL, unet: UNet2DConditionModel, tokenizer: CLIPTokenizer, encoder: CLIPTextModel
) -> StableDiffusionPipeline:
    """Assemble a plain Stable Diffusion pipeline without a safety checker."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )

"""The denoiser's last training stage: texts that contradict the image, and texts without meaning.

An edit gives the denoiser inputs that it has never seen in training, such as a noisy image of straight hair
with the text "curls". For small features (smile, glasses, beard) it generalises. Curls change so much of an
image that above a signal-to-noise ratio of about 0.1 the denoiser follows the image and ignores the text.
Guidance towards curls then acts only in the first steps, where it also changes the hair's colour.

This stage trains on such inputs, with the same face *with* curls as the target. Bayes' rule gives the same
target: of all faces with curls, it is the nearest to the noisy image.

It trains only curls. A model trained this way on all four concepts was edited as cleanly by a plain sum of
guidance as by SEGA, unlike large models, so that sweeps of settings or methods on it showed few differences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from .autoencoder import encode_means
from .captions import bare_phrase, nonsense
from .clip import token_ids
from .data import Drawings, load_or_compute, render_all
from .fitting import Recipe, fit
from .unet import Denoising, random_steps

RECIPE = Recipe(steps=2500, batch=48, lr=4e-4, ema=0.998)
CONTRADICTED, NONSENSE = 8, 3
"""Images of a batch that come with a text they contradict, and with a text without meaning."""
FIRST_STEP = 250
"""First training step for counterfactuals: with less noise, a text should not override the image."""


@dataclass(frozen=True)
class Counterfactuals:
    """Indices (M,) of drawings without curls, and latents (M, 4, 16, 16) of the same faces with curls."""

    indices_M: np.ndarray
    latents_MCHW: Tensor


def counterfactuals(drawings: Drawings, vae: AutoencoderKL, path: Path) -> Counterfactuals:
    """Render every face without curls again with curls; the latents are cached in a file."""
    indices_M = np.flatnonzero([not face.curls for face in drawings.faces])

    def make() -> dict[str, Tensor]:
        twins = render_all([replace(drawings.faces[i], curls=True) for i in indices_M])
        return {"latents": encode_means(vae, twins)}

    return Counterfactuals(indices_M, load_or_compute(path, make)["latents"])


def continue_training(
    unet: UNet2DConditionModel,
    drawings: Drawings,
    latents_NCHW: Tensor,
    twins: Counterfactuals,
    text: tuple[CLIPTokenizer, CLIPTextModel],
    recipe: Recipe,
    folder: Path,
    seed: int,
) -> None:
    """Train `unet` further, with some counterfactuals and texts without meaning in each batch."""
    denoising = Denoising(unet)
    tokenizer, encoder = text

    def loss(rng: np.random.Generator) -> Tensor:
        pairs = rng.integers(len(twins.indices_M), size=CONTRADICTED)
        plain = drawings.batch(rng, recipe.batch - CONTRADICTED)
        texts = [bare_phrase("curls", rng) for _ in pairs]
        texts += [nonsense(rng) for _ in plain[:NONSENSE]]
        texts += [caption.text for caption in drawings.captions(plain[NONSENSE:], rng)]
        x_BCHW = latents_NCHW[np.concatenate([twins.indices_M[pairs], plain])]
        target_BCHW = torch.cat([twins.latents_MCHW[pairs], latents_NCHW[plain]])
        t_B = torch.cat([random_steps(len(pairs), FIRST_STEP), random_steps(len(plain))])
        states_BSD = encoder(token_ids(tokenizer, texts)).last_hidden_state
        return denoising.loss(x_BCHW, target_BCHW, torch.randn_like(x_BCHW), t_B, states_BSD)

    fit("practice", unet, loss, recipe, folder, seed)

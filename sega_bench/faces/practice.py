"""The denoiser's last stage: what to make of a text that the picture contradicts, or that says nothing.

An edit shows the denoiser what training never did: a noisy picture of straight hair, and the text "curls".
For small features (smile, glasses, beard) it generalises; but curls change so much of a picture that above a
signal-to-noise ratio of about .1 it sides with the picture and ignores the text. Guidance towards curls is
then confined to the first steps, where the colour of the hair is not settled yet, and changes it.

Here it is shown such pictures, together with the same face *with* curls, everything else equal. That is also
what Bayes' rule says: of all faces with curls, the noisy picture is nearest to that one.

Curls alone: a model that practised all four concepts was edited as cleanly by a plain sum of guidance as by
SEGA, which large models are not, and a sweep of settings or methods on it had little to tell.
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
from .data import Drawings, cached, drawn
from .fitting import Recipe, fit
from .unet import Denoising, random_steps

RECIPE = Recipe(steps=2500, batch=48, lr=4e-4, ema=0.998)
CONTRADICTED, NONSENSE = 8, 3
"""How many of a batch are shown with a text that they contradict, and with one that says nothing."""
FIRST_STEP = 250
"""With less noise than here a text should not turn one picture into another any more."""


@dataclass(frozen=True)
class Counterfactuals:
    """Drawings without curls, as indices (M,), and the same faces with curls, as latents (M, 4, 16, 16)."""

    indices_M: np.ndarray
    latents_MCHW: Tensor


def counterfactuals(drawings: Drawings, vae: AutoencoderKL, path: Path) -> Counterfactuals:
    """Every drawing without curls, drawn again with them; the latents are cached in a file."""
    indices_M = np.flatnonzero([not face.curls for face in drawings.faces])

    def make() -> dict[str, Tensor]:
        twins = drawn([replace(drawings.faces[i], curls=True) for i in indices_M])
        return {"latents": encode_means(vae, twins)}

    return Counterfactuals(indices_M, cached(path, make)["latents"])


def practise(
    unet: UNet2DConditionModel,
    drawings: Drawings,
    latents_NCHW: Tensor,
    twins: Counterfactuals,
    text: tuple[CLIPTokenizer, CLIPTextModel],
    recipe: Recipe,
    folder: Path,
    seed: int,
) -> None:
    """Train `unet` further: mostly as before, partly on counterfactuals and on texts without meaning."""
    denoising = Denoising(unet)
    tokenizer, encoder = text

    def loss(rng: np.random.Generator) -> Tensor:
        pairs = rng.integers(len(twins.indices_M), size=CONTRADICTED)
        plain = drawings.batch(rng, recipe.batch - CONTRADICTED)
        texts = [bare_phrase("curls", rng) for _ in pairs]
        texts += [nonsense(rng) for _ in plain[:NONSENSE]]
        texts += [caption.text for caption in drawings.captions(plain[NONSENSE:], rng)]
        x_BCHW = latents_NCHW[np.concatenate([twins.indices_M[pairs], plain])]
        wanted_BCHW = torch.cat([twins.latents_MCHW[pairs], latents_NCHW[plain]])
        t_B = torch.cat([random_steps(len(pairs), FIRST_STEP), random_steps(len(plain))])
        states_BSD = encoder(token_ids(tokenizer, texts)).last_hidden_state
        return denoising.loss(x_BCHW, wanted_BCHW, torch.randn_like(x_BCHW), t_B, states_BSD)

    fit("practice", unet, loss, recipe, folder, seed)

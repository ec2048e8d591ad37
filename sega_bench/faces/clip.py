"""The scorer: a small open_clip model whose text tower is also the pipeline's text encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .captions import CONCEPTS, is_true
from .data import Drawings, map_images
from .drawing import BINARY
from .fitting import Recipe, fit, save_tensors
from .tokenizer import CONTEXT, save_tokenizer

RECIPE = Recipe(steps=800, batch=96, lr=1.5e-3, ema=0.99)
WIDTH, HEADS, LAYERS, EMBED = 128, 4, 3, 128


def clip_config(vocabulary_size: int) -> dict[str, Any]:
    """open_clip's `model_cfg`.

    With any `hf_tokenizer_name`, `local-dir:` uses the tokenizer of its folder.
    """
    return {
        "embed_dim": EMBED,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": vocabulary_size,
            "width": WIDTH,
            "heads": HEADS,
            "layers": LAYERS,
            "hf_tokenizer_name": "local",
        },
    }


def make_clip(vocabulary_size: int) -> open_clip.CLIP:
    """An untrained scorer."""
    config = clip_config(vocabulary_size)
    return open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"], init_logit_bias=-4.0)


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids (B, CONTEXT)."""
    ids: Tensor = tokenizer(
        texts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
    ).input_ids
    return ids


def train_clip(
    drawings: Drawings, tokenizer: CLIPTokenizer, recipe: Recipe, folder: Path, seed: int
) -> open_clip.CLIP:
    """Train the scorer to tell which captions are true of which images."""
    clip = make_clip(len(tokenizer))

    def loss(rng: np.random.Generator) -> Tensor:
        indices = drawings.batch(rng, recipe.batch)
        captions = drawings.captions(indices, rng)
        claims_BL = np.stack([caption.claimed() for caption in captions])
        true_BN = torch.from_numpy(is_true(claims_BL, drawings.labels_NL[indices].numpy()))
        x_ND = clip.encode_image(_augment(drawings.images(indices)), normalize=True)
        t_BD = clip.encode_text(token_ids(tokenizer, [caption.text for caption in captions]), normalize=True)
        return truth_loss(t_BD @ x_ND.T * clip.logit_scale.exp() + clip.logit_bias, true_BN)

    fit("clip", clip, loss, recipe, folder, seed)
    return clip


def truth_loss(logits_BN: Tensor, true_BN: Tensor) -> Tensor:
    """Sigmoid loss, averaged separately over true and false pairs of captions and images.

    CLIP's contrastive loss fails here: with few attributes, many captions are true of several images of a
    batch and would count as negatives.
    """
    positive, negative = F.softplus(-logits_BN[true_BN]), F.softplus(logits_BN[~true_BN])
    return positive.mean() + (negative.mean() if len(negative) else 0.0)


def _augment(x_BCHW: Tensor) -> Tensor:
    """Slight noise and contrast changes, and a blur for half of the batches, as in generated images."""
    if torch.rand(()) < 0.5:
        x_BCHW = F.avg_pool2d(F.pad(x_BCHW, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x_BCHW = x_BCHW * (1 + 0.1 * torch.randn(len(x_BCHW), 1, 1, 1))
    return x_BCHW + 0.05 * torch.randn_like(x_BCHW)


def save_scorer(clip: open_clip.CLIP, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write weights and tokenizer as a folder that open_clip loads as `local-dir:FOLDER`."""
    save_tokenizer(tokenizer, folder)
    halves = {name: half(value) for name, value in clip.state_dict().items()}
    save_tensors(halves, folder / "open_clip_model.safetensors", {"format": "pt"})
    config = {
        "model_cfg": {**clip_config(len(tokenizer)), "init_logit_bias": -4.0},
        "preprocess_cfg": {
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def half(value: Tensor) -> Tensor:
    """Convert a floating-point tensor to float16; return others unchanged."""
    return value.half() if value.is_floating_point() else value


def text_encoder(clip: open_clip.CLIP, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The scorer's text tower as transformers' CLIPTextModel, frozen."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        projection_dim=EMBED,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = CLIPTextModel(config)
    model.load_state_dict(_transformers_names(clip), strict=True)
    return model.eval().requires_grad_(False)


def _transformers_names(clip: open_clip.CLIP) -> dict[str, Tensor]:
    """The text tower's weights under transformers' names."""
    state = clip.state_dict()
    renamed = {
        "embeddings.token_embedding.weight": state["token_embedding.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
        "final_layer_norm.weight": state["ln_final.weight"],
        "final_layer_norm.bias": state["ln_final.bias"],
    }
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    parts |= {"attn.out_proj": "self_attn.out_proj"}
    for index in range(LAYERS):
        old, new = f"transformer.resblocks.{index}.", f"encoder.layers.{index}."
        for kind in ("weight", "bias"):
            renamed |= {f"{new}{parts[key]}.{kind}": state[f"{old}{key}.{kind}"] for key in parts}
            qkv = state[f"{old}attn.in_proj_{kind}"].chunk(3)  # open_clip fuses the three projections
            names = ("q_proj", "k_proj", "v_proj")
            renamed |= {
                f"{new}self_attn.{name}.{kind}": value for name, value in zip(names, qkv, strict=True)
            }
    return renamed


@torch.no_grad()
def concept_auc(clip: open_clip.CLIP, tokenizer: CLIPTokenizer, drawings: Drawings) -> dict[str, float]:
    """ROC AUC of the cosine to each concept's text, images with the concept against images without it."""
    x_ND = map_images(lambda x_BCHW: clip.encode_image(x_BCHW, normalize=True), drawings)
    t_KD = clip.encode_text(token_ids(tokenizer, list(CONCEPTS.values())), normalize=True)
    scores_NK = x_ND @ t_KD.T
    result = {}
    for k, name in enumerate(CONCEPTS):
        has = drawings.labels_NL[:, BINARY.index(name)].bool()
        result[name] = float((scores_NK[has, k][:, None] > scores_NK[~has, k][None]).float().mean())
    return result


@torch.no_grad()
def cosine_to_empty(encoder: nn.Module, tokenizer: CLIPTokenizer) -> dict[str, float]:
    """Cosine between the text states of '' and of each concept; at 1, SEGA has no edit direction."""
    states_BSD = encoder(token_ids(tokenizer, ["", *CONCEPTS.values()])).last_hidden_state
    cosines = F.cosine_similarity(states_BSD[1:].flatten(1), states_BSD[:1].flatten(1))
    return dict(zip(CONCEPTS, cosines.tolist(), strict=True))

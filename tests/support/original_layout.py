"""Write a diffusers pipeline's weights as a single file with the original code's tensor names.

The names come from the published layout of the original networks, independently of the reader under test.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_module(name: str, unet: Any) -> str:
    """The original name of a UNet module, without the prefix ``model.diffusion_model.``."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    per_block = unet.config.layers_per_block + 1
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        index = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"middle_block.{index}.{_inner(match[1], match[3])}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|\w+samplers)\.(\d)\.(.+)", name)
    assert match is not None, name
    block, kind, layer = int(match[2]), match[3], int(match[4])
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * per_block}.0.op"
    if kind == "upsamplers":
        attention = hasattr(unet.up_blocks[block], "attentions")
        return f"output_blocks.{block * per_block + per_block - 1}.{1 + attention}.conv"
    side = "input_blocks" if match[1] == "down" else "output_blocks"
    index = block * per_block + layer + (match[1] == "down")
    return f"{side}.{index}.{0 if kind == 'resnets' else 1}.{_inner(kind, match[5])}"


def _inner(kind: str, name: str) -> str:
    return _RESNET[name] if kind == "resnets" else name


def _vae_module(name: str, levels: int) -> str:
    if "." not in name or name.endswith(("encoder.conv_in", "coder.conv_out", "decoder.conv_in")):
        return name
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if match := re.fullmatch(r"(\w+coder)\.mid_block\.resnets\.(\d)\.(.+)", name):
        return f"{match[1]}.mid.block_{int(match[2]) + 1}.{match[3]}"
    if match := re.fullmatch(r"(\w+coder)\.mid_block\.attentions\.0\.(.+)", name):
        return f"{match[1]}.mid.attn_1.{_ATTENTION[match[2]]}"
    if match := re.fullmatch(r"(\w+coder)\.(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", name):
        # The original code counts the decoder's levels from the finest.
        level = int(match[3]) if match[2] == "down" else levels - 1 - int(match[3])
        inner = f"{match[2]}sample.conv" if "samplers" in match[4] else f"block.{match[5]}.{match[6]}"
        return f"{match[1]}.{match[2]}.{level}.{inner}"
    return name


def unet_tensors(unet: Any) -> Tensors:
    """The UNet's tensors, ``model.diffusion_model.*``."""
    renamed = {}
    for name, tensor in unet.state_dict().items():
        module, _, kind = name.rpartition(".")
        renamed[f"model.diffusion_model.{unet_module(module, unet)}.{kind}"] = tensor
    return renamed


def vae_tensors(vae: Any) -> Tensors:
    """The VAE's tensors, ``first_stage_model.*``, where attention layers are 1x1 convolutions."""
    renamed = {}
    for name, tensor in vae.state_dict().items():
        module, _, kind = name.rpartition(".")
        old = _vae_module(module, len(vae.config.block_out_channels))
        is_attention = re.search(r"attn_1\.(q|k|v|proj_out)$", old) and kind == "weight"
        renamed[f"first_stage_model.{old}.{kind}"] = tensor[..., None, None] if is_attention else tensor
    return renamed


def clip_tensors(encoder: Any, prefix: str) -> Tensors:
    """Tensors of OpenAI's CLIP text encoder, which has the names of transformers."""
    renamed = {
        f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in encoder.state_dict().items()
    }
    ids = torch.arange(encoder.config.max_position_embeddings)[None]
    return renamed | {f"{prefix}text_model.embeddings.position_ids": ids}


def open_clip_tensors(encoder: Any, prefix: str) -> Tensors:
    """Tensors of OpenCLIP's text encoder, where queries, keys and values are one matrix."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    renamed = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
    }
    if "text_projection.weight" in state:
        renamed["text_projection"] = state["text_projection.weight"].T
    for layer in range(encoder.config.num_hidden_layers):
        new, old = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            renamed |= {f"{old}{b}.{kind}": state[f"{new}{a}.{kind}"] for a, b in _CLIP.items()}
            qkv = [state[f"{new}self_attn.{which}_proj.{kind}"] for which in "qkv"]
            renamed[f"{old}attn.in_proj_{kind}"] = torch.cat(qkv)
    return {prefix + name: tensor for name, tensor in renamed.items()}


def original_tensors(pipeline: Any, *, is_open_clip: bool = False) -> Tensors:
    """All tensors of a pipeline; with ``is_open_clip`` in Stable Diffusion 2's layout."""
    tensors = unet_tensors(pipeline.unet) | vae_tensors(pipeline.vae)
    if hasattr(pipeline, "text_encoder_2"):
        tensors |= clip_tensors(pipeline.text_encoder, "conditioner.embedders.0.transformer.")
        return tensors | open_clip_tensors(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    if is_open_clip:
        return tensors | open_clip_tensors(pipeline.text_encoder, "cond_stage_model.model.")
    return tensors | clip_tensors(pipeline.text_encoder, "cond_stage_model.transformer.")


def write_original(pipeline: Any, path: Path, *, is_open_clip: bool = False, **more: torch.Tensor) -> Path:
    """Write a single file, with some tensors that only training needs."""
    tensors = original_tensors(pipeline, is_open_clip=is_open_clip)
    training = {"betas": torch.ones(4), "model_ema.decay": torch.ones(()), "global_step": torch.ones(())}
    tensors |= training | more
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    return path

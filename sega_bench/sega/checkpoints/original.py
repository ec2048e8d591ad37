"""Read single-file checkpoints in the layout of Stable Diffusion's original code.

Such a file holds weights but no configuration. The package ships the released models' configurations in
``known/``; the vocabulary is CLIP's. diffusers' own functions convert tensor names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sega_bench.cell import abbreviated
from sega_bench.errors import UserError
from sega_bench.sega.checkpoints.layout import NETWORKS, NETWORKS_XL, Layout, read_layout, validated
from sega_bench.sega.checkpoints.settings import local_path
from sega_bench.sega.checkpoints.weights import Tensors

KNOWN = ("sd15", "sd21", "sd21-base", "sdxl")
"""Names of released models, for ``model.config``."""

_CLIP, _OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
_CLIP_XL, _OPEN_CLIP_XL = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
_PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": (_CLIP, _OPEN_CLIP, _CLIP_XL),
    "text_encoder_2": (_OPEN_CLIP_XL,),
}


def identify(names: Collection[str], where: str) -> str:
    """Identify a file's model, one of :data:`KNOWN`, by the names of its tensors.

    Raises:
        UserError: it is none of them, or the names do not suffice.
    """

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    if has(_OPEN_CLIP):
        raise UserError(
            f"{where}, a Stable Diffusion 2: its weights do not say which; set model.config=sd21 (768 "
            "pixels, v-prediction) or model.config=sd21-base (512 pixels, epsilon)"
        )
    if "v_pred" in names:
        raise UserError(
            f"{where}, which says that it predicts v: set model.config to a diffusers folder whose scheduler "
            "has prediction_type v_prediction"
        )
    if has(_OPEN_CLIP_XL) and has(_CLIP_XL):
        return "sdxl"
    if has(_CLIP):
        return "sd15"
    raise UserError(
        f"{where}, which is no whole Stable Diffusion 1.x, 2.x or XL in one file: it has no text encoder of "
        "theirs (a LoRA belongs into model.lora)"
    )


def layout_of(config: str, where: str) -> tuple[Layout, tuple[Path | str, ...]]:
    """The configurations that ``model.config`` names, and the sources of its tokenizers.

    Args:
        config: one of :data:`KNOWN`, or a diffusers folder, whose weights are not read.
        where: start of an error message.

    Returns:
        The layout; and for each tokenizer its folder, or the padding token for CLIP's own vocabulary.

    Raises:
        UserError: it is neither.
    """
    if config not in KNOWN:
        folder = local_path(config)
        if not os.path.isdir(folder):
            raise UserError(f"{where}, but it must be a diffusers folder or one of {', '.join(KNOWN)}")
        layout = read_layout(folder, where)
        return layout, tuple(folder / name for name in layout.tokenizers)
    text = (resources.files(__package__) / "known" / f"{config}.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    kinds = NETWORKS_XL if "text_encoder_2" in content["networks"] else NETWORKS
    layout = Layout(
        networks={name: (kinds[name], network) for name, network in content["networks"].items()},
        scheduler=content["scheduler"],
        force_zeros_for_empty_prompt=config == "sdxl",
    )
    return validated(layout, where), tuple(content["tokenizers"])


def convert(name: str, network: torch.nn.Module, tensors: Tensors, where: str) -> dict[str, Tensor]:
    """The tensors of one part, by diffusers' names.

    Args:
        name: diffusers' component name.
        network: the part; its configuration determines the numbering of blocks.
        tensors: of the whole file; they may be on the meta device.
        where: start of an error message.

    Raises:
        UserError: a tensor that the conversion needs is missing, or one would be left over.
    """
    from diffusers.loaders import single_file_utils as diffusers_utils

    own = {key: tensor for key, tensor in tensors.items() if key.startswith(_PREFIXES[name])}
    try:
        if name == "unet":
            converted = diffusers_utils.convert_ldm_unet_checkpoint(own, network.config)
        elif name == "vae":
            converted = diffusers_utils.convert_ldm_vae_checkpoint(own, network.config)
        elif any(key.startswith((_OPEN_CLIP, _OPEN_CLIP_XL)) for key in own):
            prefix = _OPEN_CLIP if name == "text_encoder" else _OPEN_CLIP_XL
            converted = diffusers_utils.convert_open_clip_checkpoint(network, own, prefix)
        else:
            converted = diffusers_utils.convert_ldm_clip_checkpoint(own)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: its {name} is not in the original layout ({abbreviated(error)})"
        ) from error
    # These two converters silently skip tensors that they do not expect.
    if name in ("unet", "vae") and _element_count(own) != _element_count(converted):
        raise UserError(
            f"{where}: its {name} holds {_element_count(own)} numbers, of which "
            f"{_element_count(converted)} have a "
            "place in its configuration: is it another model than model.config says?"
        )
    return dict(converted)


def _element_count(tensors: Tensors) -> int:
    return sum(tensor.numel() for tensor in tensors.values())

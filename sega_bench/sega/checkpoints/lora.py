"""Read LoRAs in diffusers' and kohya's formats and fuse them into a model's weights.

A fused weight is W + scale * alpha / rank * up @ down (Hu et al., "LoRA: Low-Rank Adaptation of Large
Language Models", arXiv 2106.09685). diffusers' own reader converts names. An update without a weight is an
error.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sega_bench.cell import abbreviated
from sega_bench.errors import UserError
from sega_bench.sega.checkpoints.layout import Layout
from sega_bench.sega.checkpoints.settings import LoraSettings, local_path
from sega_bench.sega.checkpoints.weights import Tensors, read_tensors

_METADATA = "lora_adapter_metadata"
"""The key under which diffusers writes rank and alpha into the file's header."""

# unet.conv_in.lora_A.weight, unet...to_q_lora.down.weight, text_encoder...fc1.lora_linear_layer.up.weight
_KEY = re.compile(
    r"(?P<part>unet|text_encoder|text_encoder_2)\.(?P<module>.+?)[._]lora(?:_linear_layer)?"
    r"[._](?P<side>A|B|down|up)\.weight"
)
_OLD_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""The text encoders' attention layers, by their names in older versions of diffusers."""
_UNSUPPORTED = ("dora_scale", "lora_magnitude_vector", "hada_", "lokr_", "lora_mid")
"""Substrings of tensor names that reveal another method than plain LoRA."""

Module = tuple[str, str]
"""Diffusers' component name, and a module's name in it, spelled by :func:`_flat`."""


@dataclass(frozen=True)
class Update:
    """The update of one weight: ``factor * up @ down``, both flattened to matrices.

    Args:
        part: diffusers' component name.
        weight: name of the tensor in the part's network.
        down: (rank, inputs); for a convolution followed by its kernel's dimensions.
        up: (outputs, rank); for a convolution followed by two dimensions of length 1.
        factor: the LoRA's scale times alpha / rank.
    """

    part: str
    weight: str
    down: Tensor
    up: Tensor
    factor: float


def lora_file(settings: LoraSettings) -> Path:
    """The file of a LoRA.

    Raises:
        UserError: there is none, or a folder holds several.
    """
    path = local_path(settings.path)
    where = f"model.lora: {settings.path}"
    if os.path.isfile(path) and path.suffix == ".safetensors":
        return path
    if not os.path.isdir(path):
        raise UserError(f"{where} is no .safetensors file and no folder")
    if os.path.isfile(default := path / "pytorch_lora_weights.safetensors"):
        return default
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise UserError(f"{where} holds {len(files)} .safetensors files: name the one to use")
    return files[0]


def read_updates(settings: LoraSettings, layout: Layout, weights: Mapping[str, Tensors]) -> list[Update]:
    """Read a LoRA's updates and match each to its weight.

    Args:
        settings: the LoRA's file and scale.
        layout: of the checkpoint.
        weights: part -> its network's tensors by name; only shapes are used.

    Raises:
        UserError: the file is damaged, no plain LoRA, or made for another model.
    """
    path = lora_file(settings)
    where = f"model.lora: {path.name}"
    tensors = read_tensors((path,), where)
    _check_plain(tensors, where)
    converted, alphas = _convert(tensors, layout, where)
    metadata = _metadata(path, where)
    names = _weight_names(weights)
    updates = []
    for (part, module), sides in _pairs(converted, where).items():
        weight = names.get((part, module))
        if weight is None:
            raise UserError(
                f"{where} changes {part}.{module}, which the model does not have: is it of another model?"
            )
        rank = len(sides["down"])
        # An alpha in a tensor (kohya) takes precedence over one in the header (diffusers).
        alpha = alphas.get((part, module), _declared_alpha(metadata, part, rank, where))
        update = Update(part, weight, sides["down"], sides["up"], settings.scale * alpha / rank)
        _check_shape(update, weights[part][weight], where)
        updates.append(update)
    return updates


def _check_plain(tensors: Tensors, where: str) -> None:
    for word in _UNSUPPORTED:
        if any(word in name for name in tensors):
            raise UserError(
                f"{where} is no plain LoRA (it holds {word.strip('_')}): that kind is not supported"
            )


def _weight_names(weights: Mapping[str, Tensors]) -> dict[Module, str]:
    """The name of each module's weight in its network."""
    return {
        (part, _flat(part, name.removesuffix(".weight"))): name
        for part, tensors in weights.items()
        for name in tensors
        if name.endswith(".weight")
    }


def _convert(tensors: Tensors, layout: Layout, where: str) -> tuple[dict[str, Tensor], dict[Module, float]]:
    """Tensors by diffusers' names, and the alphas of kohya's format."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

    loader: Any = StableDiffusionXLLoraLoaderMixin if layout.is_xl else StableDiffusionLoraLoaderMixin
    blocks = SimpleNamespace(layers_per_block=layout.config("unet").get("layers_per_block", 2))
    try:
        converted, alphas = loader.lora_state_dict(
            dict(tensors), unet_config=blocks if layout.is_xl else None
        )
    except (AttributeError, IndexError, KeyError, ValueError) as error:
        raise UserError(f"{where} is no LoRA of this kind of model ({abbreviated(str(error))})") from error
    alpha_of = {}
    for name, alpha in (alphas or {}).items():
        key = name.removesuffix(".alpha")
        match = _KEY.fullmatch(key)
        part, _, rest = key.partition(".")
        alpha_of[part, _flat(part, match["module"] if match else rest)] = float(alpha)
    return dict(converted), alpha_of


def _flat(part: str, module: str) -> str:
    """One spelling of a module for all formats, which differ in dots, processors, prefixes and old names."""
    module = module.replace(".processor.", ".").removeprefix("text_model.")
    module, _, last = module.rpartition(".")
    if part != "unet":
        last = _OLD_NAMES.get(last, last)
    elif last == "to_out":
        last = "to_out.0"
    return f"{module}.{last}".replace(".", "_").lstrip("_")


def _pairs(tensors: Tensors, where: str) -> dict[Module, dict[str, Tensor]]:
    """The ``down`` and ``up`` matrices of every module."""
    pairs: dict[Module, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise UserError(f"{where} holds {name}, which is no LoRA of Stable Diffusion 1.x, 2.x or XL")
        side = {"A": "down", "B": "up"}.get(match["side"], match["side"])
        pairs.setdefault((match["part"], _flat(match["part"], match["module"])), {})[side] = tensor
    for (part, module), sides in pairs.items():
        if len(sides) != 2 or min(tensor.dim() for tensor in sides.values()) < 2:
            raise UserError(
                f"{where} has {' and '.join(sides)} of {part}.{module}, but an update needs down and up"
            )
    if not pairs:
        raise UserError(f"{where} holds no LoRA")
    return pairs


def _metadata(path: Path, where: str) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA)
        content = json.loads(text) if text else {}
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{where}: {_METADATA} in its header cannot be read ({error})") from error
    return content if isinstance(content, dict) else {}


def _declared_alpha(metadata: Mapping[str, Any], part: str, rank: int, where: str) -> float:
    """Alpha from the header; by default the rank, which gives a factor of 1."""
    for name in ("alpha_pattern", "use_rslora", "use_dora"):
        if metadata.get(f"{part}.{name}"):
            raise UserError(f"{where} was made with {name}, which is not supported")
    alpha = metadata.get(f"{part}.lora_alpha", rank)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise UserError(f"{where}: lora_alpha in its header is {abbreviated(alpha)}, not a number")
    return float(alpha)


def _check_shape(update: Update, weight: Tensor, where: str) -> None:
    down, up = update.down.flatten(1), update.up.flatten(1)
    if up.shape[1] != len(down) or len(up) * down.shape[1] != weight.numel() or len(up) != len(weight):
        raise UserError(
            f"{where} updates {update.part}.{update.weight} by {tuple(up.shape)} @ {tuple(down.shape)}, but "
            f"that is {tuple(weight.shape)}: is it of another model?"
        )


def fuse(part: str, tensors: Tensors, updates: Sequence[Update]) -> dict[str, Tensor]:
    """Add a part's updates to its tensors, in order, computing in float32 or wider."""
    fused = dict(tensors)
    for update in updates:
        if update.part == part:
            weight = fused[update.weight]
            wide = torch.promote_types(weight.dtype, torch.float32)
            # Flattened, a convolution's update is a matrix product, too: up has a 1x1 kernel.
            delta = update.up.flatten(1).to(wide) @ update.down.flatten(1).to(wide)
            fused[update.weight] = weight.to(wide) + update.factor * delta.reshape(weight.shape)
    return fused

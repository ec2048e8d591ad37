"""LoRAs: low-rank updates of weights, read in diffusers' and kohya's formats and added once and for all.

W + scale * alpha / rank * up @ down (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
arXiv 2106.09685). Names are converted by diffusers' own reader; an update that finds no weight is an error.
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

from sega_bench.cell import shown
from sega_bench.errors import UserError
from sega_bench.sega.checkpoints.layout import Layout
from sega_bench.sega.checkpoints.settings import LoraSettings, local_path
from sega_bench.sega.checkpoints.weights import Tensors, read_tensors

_METADATA = "lora_adapter_metadata"
"""Where diffusers writes rank and alpha, in the header of the file."""

# unet.conv_in.lora_A.weight, unet...to_q_lora.down.weight, text_encoder...fc1.lora_linear_layer.up.weight
_KEY = re.compile(
    r"(?P<part>unet|text_encoder|text_encoder_2)\.(?P<module>.+?)[._]lora(?:_linear_layer)?"
    r"[._](?P<side>A|B|down|up)\.weight"
)
_OLD_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""Of a text encoder's attention, as diffusers once wrote them."""


@dataclass(frozen=True)
class Update:
    """The update of one weight: ``factor * up @ down``, both flattened to matrices.

    Args:
        part: diffusers' component name.
        weight: name of the tensor in the part's network.
        down, up: rank x inputs, outputs x rank.
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
        UserError: there is none, or it cannot be told which.
    """
    path = local_path(settings.path)
    where = f"model.lora: {settings.path}"
    if os.path.isfile(path) and path.suffix == ".safetensors":
        return path
    if not os.path.isdir(path):
        raise UserError(f"{where} is no .safetensors file and no folder")
    if os.path.isfile(usual := path / "pytorch_lora_weights.safetensors"):
        return usual
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise UserError(f"{where} holds {len(found)} .safetensors files: name the one to use")
    return found[0]


def read_updates(settings: LoraSettings, layout: Layout, weights: Mapping[str, Tensors]) -> list[Update]:
    """A LoRA's updates, each with the weight that it belongs to.

    Args:
        settings: which file, how strongly.
        layout: of the checkpoint.
        weights: part -> its network's tensors by name; only their shapes are looked at.

    Raises:
        UserError: the file is damaged, of another kind, or of another model.
    """
    path = lora_file(settings)
    where = f"model.lora: {path.name}"
    tensors = read_tensors((path,), where)
    for word in ("dora_scale", "lora_magnitude_vector", "hada_", "lokr_", "lora_mid"):
        if any(word in name for name in tensors):
            raise UserError(
                f"{where} is no plain LoRA (it holds {word.strip('_')}): that kind is not supported"
            )
    converted, alphas = _convert(tensors, layout, where)
    metadata = _metadata(path, where)
    known = {
        (part, _flat(part, name.removesuffix(".weight"))): name
        for part, of_part in weights.items()
        for name in of_part
        if name.endswith(".weight")
    }
    updates = []
    for (part, module), sides in _pairs(converted, where).items():
        weight = known.get((part, module))
        if weight is None:
            raise UserError(
                f"{where} changes {part}.{module}, which the model does not have: is it of another model?"
            )
        rank = len(sides["down"])
        alpha = alphas.get((part, module), _declared_alpha(metadata, part, rank, where))
        update = Update(part, weight, sides["down"], sides["up"], settings.scale * alpha / rank)
        _check_shape(update, weights[part][weight], where)
        updates.append(update)
    return updates


def _convert(
    tensors: Tensors, layout: Layout, where: str
) -> tuple[dict[str, Tensor], dict[tuple[str, str], float]]:
    """Tensors under diffusers' names, and the alphas of kohya's format by part and module."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

    loader: Any = StableDiffusionXLLoraLoaderMixin if layout.is_xl else StableDiffusionLoraLoaderMixin
    blocks = SimpleNamespace(layers_per_block=layout.config("unet").get("layers_per_block", 2))
    try:
        converted, alphas = loader.lora_state_dict(
            dict(tensors), unet_config=blocks if layout.is_xl else None
        )
    except (AttributeError, IndexError, KeyError, ValueError) as error:
        raise UserError(f"{where} is no LoRA of this kind of model ({shown(str(error))})") from error
    named = {}
    for name, alpha in (alphas or {}).items():
        module = name.removesuffix(".alpha")
        found = _KEY.fullmatch(module)
        part, _, rest = module.partition(".")
        named[part, _flat(part, found["module"] if found else rest)] = float(alpha)
    return dict(converted), named


def _flat(part: str, module: str) -> str:
    """One spelling for all that formats write differently: dots, processors, levels, old names."""
    module = module.replace(".processor.", ".").removeprefix("text_model.")
    module, _, last = module.rpartition(".")
    if part != "unet":
        last = _OLD_NAMES.get(last, last)
    elif last == "to_out":
        last = "to_out.0"
    return f"{module}.{last}".replace(".", "_").lstrip("_")


def _pairs(tensors: Tensors, where: str) -> dict[tuple[str, str], dict[str, Tensor]]:
    """Both sides of every update by part and module."""
    pairs: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = _KEY.fullmatch(name)
        if found is None:
            raise UserError(f"{where} holds {name}, which is no LoRA of Stable Diffusion 1.x, 2.x or XL")
        side = {"A": "down", "B": "up"}.get(found["side"], found["side"])
        pairs.setdefault((found["part"], _flat(found["part"], found["module"])), {})[side] = tensor
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
    """Alpha from the header; a LoRA without any is added as it is."""
    for name in ("alpha_pattern", "use_rslora", "use_dora"):
        if metadata.get(f"{part}.{name}"):
            raise UserError(f"{where} was made with {name}, which is not supported")
    alpha = metadata.get(f"{part}.lora_alpha", rank)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise UserError(f"{where}: lora_alpha in its header is {shown(alpha)}, not a number")
    return float(alpha)


def _check_shape(update: Update, weight: Tensor, where: str) -> None:
    down, up = update.down.flatten(1), update.up.flatten(1)
    if up.shape[1] != len(down) or len(up) * down.shape[1] != weight.numel() or len(up) != len(weight):
        raise UserError(
            f"{where} updates {update.part}.{update.weight} by {tuple(up.shape)} @ {tuple(down.shape)}, but "
            f"that is {tuple(weight.shape)}: is it of another model?"
        )


def fuse(part: str, tensors: Tensors, updates: Sequence[Update]) -> dict[str, Tensor]:
    """The tensors of a part with all of its updates added, in float32 at least, in their order."""
    fused = dict(tensors)
    for update in updates:
        if update.part == part:
            weight = fused[update.weight]
            wide = torch.promote_types(weight.dtype, torch.float32)
            delta = update.up.flatten(1).to(wide) @ update.down.flatten(1).to(wide)
            fused[update.weight] = weight.to(wide) + update.factor * delta.reshape(weight.shape)
    return fused

"""Read safetensors and load them strictly: a network takes all tensors and no others."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sega_bench.errors import UserError

Tensors = Mapping[str, Tensor]


def read_tensors(files: Sequence[Path], where: str, *, headers_only: bool = False) -> dict[str, Tensor]:
    """Read all tensors of some files, on the CPU.

    Args:
        files: safetensors.
        where: start of an error message.
        headers_only: read only names, dtypes and shapes, and give tensors on the meta device.

    Raises:
        UserError: a file is damaged or incomplete.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    tensors[name] = (
                        _empty_like(file.get_slice(name)) if headers_only else file.get_tensor(name)
                    )
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise UserError(f"{where}: {file_label(path)} cannot be read as safetensors ({error})") from error
    return tensors


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def _empty_like(slice: Any) -> Tensor:
    dtype = _DTYPES.get(slice.get_dtype(), torch.int64)  # any integer type: `fit` refuses it
    return torch.empty(slice.get_shape(), dtype=dtype, device="meta")


def file_label(path: Path) -> str:
    """Folder and name of a checkpoint's file, for error messages."""
    return "/".join(path.parts[-2:])


def empty_network(kind: str, config: Mapping[str, Any], where: str) -> torch.nn.Module:
    """Build a network with parameters on the meta device; its buffers have data.

    Args:
        kind: class name, of diffusers or transformers.
        config: contents of its config.json.
        where: start of an error message.

    Raises:
        UserError: the configuration is invalid for this class.
    """
    from accelerate import init_empty_weights

    try:
        with init_empty_weights():
            network = construct_network(kind, config)
    except Exception as error:  # a wrong value can raise anything in the constructor
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}/config.json makes no {kind} ({type(error).__name__}: {reason})") from error
    return network.eval()


def construct_network(kind: str, config: Mapping[str, Any]) -> torch.nn.Module:
    """Build a network with random weights; arguments as in :func:`empty_network`."""
    import diffusers
    import transformers

    network: torch.nn.Module
    if kind in ("UNet2DConditionModel", "AutoencoderKL"):
        network = getattr(diffusers, kind).from_config(dict(config))
    elif kind == "StableDiffusionSafetyChecker":
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        network = StableDiffusionSafetyChecker(transformers.CLIPConfig.from_dict(dict(config)))
    else:
        network = getattr(transformers, kind)(transformers.CLIPTextConfig.from_dict(dict(config)))
    return network


def fit(network: torch.nn.Module, tensors: Tensors, where: str) -> dict[str, Tensor]:
    """Rename tensors to the network's parameter names and check that they match one to one.

    Names of older versions of diffusers and transformers are accepted.

    Args:
        network: its parameters may be on the meta device.
        tensors: by their names in the file.
        where: start of an error message, which names the file.

    Raises:
        UserError: a tensor is missing, superfluous, of another shape, or not of floating point.
    """
    expected = network.state_dict()
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("position_ids"):  # a constant, stored by older versions of transformers
            continue
        current = _current_name(name, expected)
        if current in renamed:
            raise UserError(f"{where} has {current} twice, once under an older name")
        renamed[current] = tensor
    if missing := expected.keys() - renamed.keys():
        raise UserError(f"{where} lacks {_listed(missing)} of its configuration's network")
    if superfluous := renamed.keys() - expected.keys():
        raise UserError(f"{where} also has {_listed(superfluous)}, not of its configuration's network")
    for name, tensor in renamed.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{where}: {name} is {_shape(tensor)}, but by its configuration {_shape(expected[name])}"
            )
        if not tensor.is_floating_point():
            raise UserError(f"{where}: {name} holds no floating point numbers")
    return renamed


_RENAMED_LAYERS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_MOVED_PREFIXES = (("text_model.", ""), ("", "text_model."), ("vision_model.vision_model.", "vision_model."))


def _current_name(name: str, expected: Collection[str]) -> str:
    """A tensor's name in the installed versions of diffusers and transformers.

    The VAE's attention layers were renamed, and CLIP models lost or gained a prefix.
    """
    renamed = re.sub(
        r"\.(query|key|value|proj_attn)(\.weight|\.bias)$",
        lambda match: f".{_RENAMED_LAYERS[match[1]]}{match[2]}",
        name,
    )
    moved = [
        after + name.removeprefix(before) for before, after in _MOVED_PREFIXES if name.startswith(before)
    ]
    return next((candidate for candidate in (name, renamed, *moved) if candidate in expected), name)


def _listed(names: Collection[str]) -> str:
    """The number of tensors and the first three names."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return f"{len(ordered)} tensor{'s' if len(ordered) > 1 else ''} ({', '.join(ordered[:3])}{more})"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


def fill(
    network: torch.nn.Module, tensors: Tensors, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    """Load weights into an empty network, each directly with its final dtype and device.

    Args:
        network: from :func:`empty_network`.
        tensors: from :func:`fit`.
        device: of the parameters.
        dtype: of the parameters.
    """
    # Copy: a tensor from safetensors is a view of the mapped file and would keep all of it in memory.
    weights = {name: tensor.to(device=device, dtype=dtype, copy=True) for name, tensor in tensors.items()}
    network.load_state_dict(weights, strict=True, assign=True)
    return network.to(device)

"""Tensors from safetensors, and networks that take all of them and no others."""

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
    """All tensors of some files, on the CPU.

    Args:
        files: safetensors.
        where: begins an error message.
        headers_only: read names, types and shapes; the tensors are on the device ``meta``, without data.

    Raises:
        UserError: a file is damaged, incomplete, or holds numbers that are no floating point.
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
            raise UserError(f"{where}: {shown_file(path)} cannot be read as safetensors ({error})") from error
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
    dtype = _DTYPES.get(slice.get_dtype(), torch.int64)
    return torch.empty(slice.get_shape(), dtype=dtype, device="meta")


def shown_file(path: Path) -> str:
    """A file of a checkpoint as an error message names it."""
    return "/".join(path.parts[-2:])


def empty_network(kind: str, config: Mapping[str, Any], where: str) -> torch.nn.Module:
    """A network whose parameters have shapes but no memory; its buffers are real.

    Args:
        kind: class name, of diffusers or transformers.
        config: as in its config.json.
        where: begins an error message.

    Raises:
        UserError: the configuration makes no such network.
    """
    from accelerate import init_empty_weights

    try:
        with init_empty_weights():
            network = construct_network(kind, config)
    except Exception as error:  # constructors raise whatever a wrong value runs into
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}/config.json makes no {kind} ({type(error).__name__}: {reason})") from error
    return network.eval()


def construct_network(kind: str, config: Mapping[str, Any]) -> torch.nn.Module:
    """A network with random weights; the arguments are those of :func:`empty_network`."""
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
    """The tensors under the names that the network has for them.

    Names that older versions of diffusers and transformers wrote are understood.

    Args:
        network: its parameters may be empty.
        tensors: as they were read.
        where: begins an error message, and names the file.

    Raises:
        UserError: a tensor is missing or too many, or of another shape than the configuration says.
    """
    expected = network.state_dict()
    given: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("position_ids"):  # a constant, stored by older versions of transformers
            continue
        present = _present_name(name, expected)
        if present in given:
            raise UserError(f"{where} has {present} twice, once under an older name")
        given[present] = tensor
    if lacking := expected.keys() - given.keys():
        raise UserError(f"{where} lacks {_some(lacking)} of its configuration's network")
    if left_over := given.keys() - expected.keys():
        raise UserError(f"{where} also has {_some(left_over)}, not of its configuration's network")
    for name, tensor in given.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{where}: {name} is {_shape(tensor)}, but by its configuration {_shape(expected[name])}"
            )
        if not tensor.is_floating_point():
            raise UserError(f"{where}: {name} holds no floating point numbers")
    return given


_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LEVELS = (("text_model.", ""), ("", "text_model."), ("vision_model.vision_model.", "vision_model."))


def _present_name(name: str, expected: Collection[str]) -> str:
    """A tensor's name today: attention of the VAE was renamed, CLIP lost a level here and has it there."""
    renamed = re.sub(
        r"\.(query|key|value|proj_attn)(\.weight|\.bias)$",
        lambda found: f".{_RENAMED[found[1]]}{found[2]}",
        name,
    )
    moved = [after + name.removeprefix(before) for before, after in _LEVELS if name.startswith(before)]
    return next((candidate for candidate in (name, renamed, *moved) if candidate in expected), name)


def _some(names: Collection[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return f"{len(ordered)} tensor{'s' if len(ordered) > 1 else ''} ({', '.join(ordered[:3])}{more})"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


def fill(
    network: torch.nn.Module, tensors: Tensors, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    """Give an empty network its weights, one by one, each in its final type and place.

    Args:
        network: from :func:`empty_network`.
        tensors: from :func:`fit`.
        device: of the parameters.
        dtype: of the parameters.
    """
    # Copies, for what is read is a window of the file, which is in memory for as long as one of them is used.
    placed = {name: tensor.to(device=device, dtype=dtype, copy=True) for name, tensor in tensors.items()}
    network.load_state_dict(placed, strict=True, assign=True)
    return network.to(device)

"""Load the scorers' networks: never with random weights, never from a pickle that can run code."""

from __future__ import annotations

import hashlib
import logging
import pickle
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from sega_bench.errors import UserError

from .clip import CONCEPT_SHOWN, ClipScorer, Preprocessing
from .perceptual import LpipsScorer
from .settings import LOCAL_DIR, ScoreSettings, clip_folder

_log = logging.getLogger(__name__)

BACKBONES = {
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "squeeze": "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
}
"""LPIPS's backbones: URLs of torchvision's ImageNet weights, whose file names torch.hub uses in its cache."""
STAGES = 4
"""Number of blocks, evenly spaced, whose outputs the LPIPS-like distance compares; a ResNet has exactly 4."""


def weights_id(state: Mapping[str, Tensor]) -> str:
    """`sha256:` and 16 hex digits of names, dtypes, shapes and values; independent of the file format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return f"sha256:{digest.hexdigest()[:16]}"


def load_clip(settings: ScoreSettings, device: torch.device) -> ClipScorer:
    """Load the CLIP model of checked settings, in float32.

    Raises:
        UserError: its weights are not available or do not fit, or its image tower or preprocessing is not
            supported.
    """
    name = _open_clip_name(settings)
    model, tokenizer = _load_open_clip(name, settings)
    preprocessing = _preprocessing(name, model.visual.preprocess_cfg)
    stages = _stages(settings, model.visual) if settings.perceptual == "clip" else ()
    source = {
        **_public_name(name, settings),
        "weights": weights_id(model.state_dict()),
        "preprocessing": str(preprocessing),
    }
    provenance = {"clip": source, "success": {"shown": CONCEPT_SHOWN, **source}}
    if stages:
        blocks = " ".join(str(stage) for stage in stages)
        provenance["lpips"] = {"name": "LPIPS-like on CLIP features", **source, "blocks": blocks}
    model = model.to(device).eval().requires_grad_(False)
    return ClipScorer(model, tokenizer, preprocessing, device, stages, provenance)


def _open_clip_name(settings: ScoreSettings) -> str:
    """The name under which open_clip builds the network with the activation that its weights expect.

    Many weights, among them all of OpenAI's, were trained with QuickGELU. With the plain name open_clip only
    warns, and the features are wrong.
    """
    folder = clip_folder(settings)
    if folder is not None:
        return f"{LOCAL_DIR}{folder}"
    import open_clip

    quick = f"{settings.clip_model}-quickgelu"
    weights = open_clip.get_pretrained_cfg(settings.clip_model, settings.clip_pretrained)
    return quick if weights.get("quick_gelu") and quick in open_clip.list_models() else settings.clip_model


def _public_name(name: str, settings: ScoreSettings) -> dict[str, str]:
    """The model's name without this machine's paths."""
    if settings.clip_pretrained is not None:
        return {"backbone": name, "pretrained": Path(settings.clip_pretrained).name}
    if settings.clip_model.startswith(LOCAL_DIR):
        return {"backbone": LOCAL_DIR + Path(settings.clip_model.removeprefix(LOCAL_DIR)).name}
    return {"backbone": settings.clip_model}


def _load_open_clip(name: str, settings: ScoreSettings) -> tuple[Any, Any]:
    import open_clip

    pretrained = settings.clip_pretrained
    if pretrained is not None and pretrained.endswith(".safetensors"):
        pretrained = str(Path(pretrained).expanduser())
        _warn_if_ambiguous(name)
    try:
        model = open_clip.create_model(name, pretrained, require_pretrained=True)
        return model, open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = one_line(error)
        if name.startswith(LOCAL_DIR):
            raise UserError(f"scores.clip_model={settings.clip_model} cannot be loaded: {reason}") from error
        raise UserError(
            f"scores.clip_pretrained={settings.clip_pretrained}: the weights of {name} cannot be had "
            f"({reason}); if the hub cannot be reached, use scores.clip_pretrained=/path/to/file.safetensors"
        ) from error


def one_line(error: Exception) -> str:
    """The error's message, shortened to one line."""
    return textwrap.shorten(str(error), 200, placeholder="...")


def _warn_if_ambiguous(name: str) -> None:
    """Warn that a bare file does not say how it was trained, if known weights of this name differ in that."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    variants = {_training(open_clip.get_pretrained_cfg(name, tag)) for tag in tags}
    if len(variants) > 1:
        _log.warning(
            "scores.clip_pretrained is a bare file: %s is taken with open_clip's default activation and "
            "preprocessing (see plan.json), yet some weights of that name need others; a folder with "
            "open_clip_config.json, scores.clip_model=local-dir:FOLDER, says which",
            name,
        )


def _training(weights: Mapping[str, Any]) -> str:
    """Everything that decides how an image must be preprocessed for these weights, as text."""
    keys = ("mean", "std", "interpolation", "resize_mode", "quick_gelu")
    return str([weights.get(key) for key in keys])


def _preprocessing(name: str, config: Mapping[str, Any]) -> Preprocessing:
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    mode = config["resize_mode"]
    if mode not in ("shortest", "squash") or (mode == "shortest" and height != width):
        raise UserError(
            f"scores.clip_model={name}: its preprocessing ({mode}, {height}x{width}) is not supported"
        )
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return Preprocessing((height, width), mean, std, config["interpolation"], mode)


def _stages(settings: ScoreSettings, visual: Any) -> tuple[int, ...]:
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, ModifiedResNet):
        return (1, 2, 3, 4)  # index 0 is the stem
    if not isinstance(visual, VisionTransformer):
        raise UserError(
            f"scores.perceptual=clip: the image tower of {settings.clip_model} does not show its stages; "
            "use scores.perceptual=alex or =none"
        )
    blocks = len(visual.transformer.resblocks)
    count = min(STAGES, blocks)
    return tuple((index + 1) * blocks // count - 1 for index in range(count))


def load_lpips(name: str, device: torch.device) -> LpipsScorer:
    """Load LPIPS v0.1 on the backbone `alex`, `vgg` or `squeeze`.

    Raises:
        UserError: the backbone is not in torchvision's cache and cannot be downloaded.
    """
    url = BACKBONES[name]
    try:
        backbone = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:  # no network is an OSError
        file = f"{torch.hub.get_dir()}/checkpoints/{url.rpartition('/')[2]}"
        raise UserError(
            f"scores.perceptual={name}: its backbone cannot be had from {url} ({one_line(error)}); "
            f"use scores.perceptual=clip or =none, or put the file at {file}"
        ) from error
    return make_lpips(name, backbone, device)


def make_lpips(name: str, backbone: Mapping[str, Tensor], device: torch.device) -> LpipsScorer:
    """Build LPIPS v0.1 on a backbone's weights, named as in torchvision (`features.0.weight`)."""
    import lpips

    with warnings.catch_warnings(action="ignore", category=UserWarning):  # lpips calls torchvision's old way
        # pnet_rand: the backbone's weights are replaced below; only the channel weights are lpips' own.
        net = lpips.LPIPS(net=name, pnet_rand=True, verbose=False).requires_grad_(False)
    # lpips slices torchvision's `features` and keeps the numbers: slice2.3.weight is features.3.weight
    sliced = {key: backbone["features." + key.partition(".")[2]] for key in net.net.state_dict()}
    net.net.load_state_dict(sliced)
    source = {
        "name": f"LPIPS ({name}, v0.1)",
        "backbone": name,
        "weights": weights_id(net.state_dict()),
        "preprocessing": "own size, scaled to [-1, 1]",
    }
    return LpipsScorer(net.to(device), device, {"lpips": source})

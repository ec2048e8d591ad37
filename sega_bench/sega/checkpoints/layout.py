"""The components of a Stable Diffusion checkpoint: classes, configurations and weight files.

Checkpoints of other model families are refused here, by name, before their weights are read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sega_bench.cell import abbreviated
from sega_bench.errors import UserError

Config = Mapping[str, Any]

NETWORKS = {"text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
NETWORKS_XL = {**NETWORKS, "text_encoder_2": "CLIPTextModelWithProjection"}
SAFETY_CHECKER, SAFETY_CHECKER_CLASS = "safety_checker", "StableDiffusionSafetyChecker"
PREPROCESSOR = "feature_extractor"

_UNSUPPORTED_INPUTS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim", "time_cond_proj_dim")
"""Keys of UNet configurations for inputs that Stable Diffusion's text-to-image UNets do not have."""


@dataclass(frozen=True)
class Layout:
    """The configurations of a checkpoint.

    Args:
        networks: diffusers' component name -> class name and configuration.
        scheduler: configuration of its scheduler, with ``_class_name``.
        force_zeros_for_empty_prompt: XL only: zeros instead of an encoded empty negative prompt.
        has_safety_checker: whether it names a safety checker.
    """

    networks: Mapping[str, tuple[str, Config]]
    scheduler: Config
    force_zeros_for_empty_prompt: bool = False
    has_safety_checker: bool = False

    @property
    def is_xl(self) -> bool:
        """Whether it has Stable Diffusion XL's two text encoders."""
        return "text_encoder_2" in self.networks

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """Component names of the tokenizers, in the order of the text encoders."""
        return ("tokenizer", "tokenizer_2") if self.is_xl else ("tokenizer",)

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Component names of the text encoders."""
        return ("text_encoder", "text_encoder_2") if self.is_xl else ("text_encoder",)

    def config(self, name: str) -> Config:
        """The configuration of a network."""
        return self.networks[name][1]

    @property
    def upsampling(self) -> int:
        """Pixels per latent, along one side."""
        return int(2 ** (len(self.config("vae")["block_out_channels"]) - 1))

    @property
    def size(self) -> int:
        """Height and width, in pixels, of the images that it was trained for."""
        return self.upsampling * int(self.config("unet")["sample_size"])


def read_layout(folder: Path, where: str) -> Layout:
    """Read the configurations of a diffusers folder.

    Args:
        folder: holds model_index.json.
        where: start of an error message: the key and its value.

    Raises:
        UserError: a configuration is missing or unreadable, or it is no Stable Diffusion.
    """
    if not os.path.exists(folder / "model_index.json"):
        raise UserError(
            f"{where}, which is no Stable Diffusion checkpoint in diffusers' format: it lacks "
            "model_index.json"
        )
    index = read_object(folder / "model_index.json", where)
    is_xl = isinstance(index.get("text_encoder_2"), list) and index["text_encoder_2"] != [None, None]
    classes = NETWORKS_XL if is_xl else NETWORKS
    tokenizers = ("tokenizer", "tokenizer_2") if is_xl else ("tokenizer",)
    _check_classes(index, {**classes, **dict.fromkeys(tokenizers, "CLIPTokenizer")}, where)
    checker = index.get(SAFETY_CHECKER)
    return validated(
        Layout(
            networks={
                name: (kind, read_object(folder / name / "config.json", where))
                for name, kind in classes.items()
            },
            scheduler=read_object(folder / "scheduler" / "scheduler_config.json", where),
            # True is the default of diffusers' XL pipeline.
            force_zeros_for_empty_prompt=is_xl and index.get("force_zeros_for_empty_prompt", True) is True,
            has_safety_checker=isinstance(checker, list) and checker[-1:] == [SAFETY_CHECKER_CLASS],
        ),
        where,
    )


def _check_classes(index: Config, expected: Mapping[str, str], where: str) -> None:
    for name, kind in expected.items():
        entry = index.get(name)
        actual = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if actual not in (kind, f"{kind}Fast"):
            raise UserError(
                f"{where}, which is no Stable Diffusion 1.x, 2.x or XL: model_index.json says "
                f"{index.get('_class_name')}, and its {name} is {abbreviated(actual)}, not {kind}"
            )


def read_object(path: Path, where: str) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        UserError: the file is missing or unreadable, or holds no JSON object.
    """
    name = f"{path.parent.name}/{path.name}" if path.name != "model_index.json" else path.name
    try:
        # Python's parser accepts NaN and Infinity, which would pass comparisons unnoticed.
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise UserError(f"{where}, which lacks {name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: {name} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: {name} holds {abbreviated(content)}, not a JSON object")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def validated(layout: Layout, where: str) -> Layout:
    """Return the layout if it is a text-to-image model's.

    Raises:
        UserError: a required value is missing or of another type, or the UNet has other inputs.
    """
    _require_count(layout.config("unet"), "sample_size", f"{where}: unet")
    latents = _check_vae(layout.config("vae"), where)
    _check_unet(layout.config("unet"), latents, where)
    _check_conditioning(layout, where)
    return layout


def _check_vae(vae: Config, where: str) -> Any:
    """Check the autoencoder's configuration and return its number of latent channels."""
    _check_positive(vae, "scaling_factor", f"{where}: vae", default=0.18215)
    channels = vae.get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise UserError(
            f"{where}: vae/config.json: block_out_channels is {abbreviated(channels)}, not a list"
        )
    latents = vae.get("latent_channels", 4)
    for key in ("latents_mean", "latents_std"):
        if vae.get(key) is not None and not _is_numbers(vae[key], latents):
            raise UserError(
                f"{where}: vae/config.json: {key} is {abbreviated(vae[key])}, not {latents} numbers"
            )
    return latents


def _check_unet(unet: Config, latents: Any, where: str) -> None:
    """Check that the UNet maps latents to latents and has no other inputs than text-to-image models."""
    for name in _UNSUPPORTED_INPUTS:
        if unet.get(name) is not None:
            raise UserError(f"{where}, whose UNet has an input that SEGA does not know ({name})")
    if unet.get("in_channels", 4) != latents or unet.get("out_channels", 4) != latents:
        raise UserError(
            f"{where}, whose UNet maps {abbreviated(unet.get('in_channels', 4))} to "
            f"{abbreviated(unet.get('out_channels', 4))} channels, but its latents have "
            f"{abbreviated(latents)}: it is no text-to-image model "
            "(inpainting, depth and upscaling checkpoints are not)"
        )


def _check_conditioning(layout: Layout, where: str) -> None:
    """Check that the UNet's text inputs have the text encoders' output sizes."""
    unet = layout.config("unet")
    encoders = [layout.config(name) for name in layout.text_encoders]
    for name, config in zip(layout.text_encoders, encoders, strict=True):
        for key in ("hidden_size", "vocab_size", "max_position_embeddings", "eos_token_id"):
            _require_count(config, key, f"{where}: {name}")
    width = sum(config["hidden_size"] for config in encoders)
    if unet.get("cross_attention_dim") != width:
        raise UserError(
            f"{where}, whose UNet reads {abbreviated(unet.get('cross_attention_dim'))} channels of a text, "
            f"but its text encoder{'s' if layout.is_xl else ''} give {width}"
        )
    addition = "text_time" if layout.is_xl else None
    if unet.get("addition_embed_type") != addition:
        raise UserError(
            f"{where}: unet/config.json: addition_embed_type is "
            f"{abbreviated(unet.get('addition_embed_type'))}, but with {len(encoders)} "
            f"text encoder{'s' if layout.is_xl else ''} it must be {addition}"
        )
    if layout.is_xl:
        _check_pooled_conditioning(unet, encoders[1], where)


def _check_pooled_conditioning(unet: Config, encoder: Config, where: str) -> None:
    """Check XL's additional input: the pooled text and six numbers about the image's size."""
    pooled = _require_count(encoder, "projection_dim", f"{where}: text_encoder_2")
    time = _require_count(unet, "addition_time_embed_dim", f"{where}: unet")
    if unet.get("projection_class_embeddings_input_dim") != pooled + 6 * time:
        raise UserError(
            f"{where}: unet/config.json: projection_class_embeddings_input_dim must be "
            f"{pooled + 6 * time}: a pooled text and six numbers (XL's refiner, which takes five, is not "
            "supported)"
        )


def _is_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(x, int | float) for x in value)


def _require_count(config: Config, key: str, where: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{where}/config.json: {key} is {abbreviated(value)}, but it must be a whole number")
    return value


def _check_positive(config: Config, key: str, where: str, default: float) -> None:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(
            f"{where}/config.json: {key} is {abbreviated(value)}, but it must be a number above 0"
        )


def choose_weights(
    names: Collection[str], component: str, variant: str | None, where: str
) -> tuple[str, ...]:
    """The files with a component's weights, by diffusers' rules.

    Args:
        names: paths relative to the checkpoint's folder, with forward slashes.
        component: such as ``unet``.
        variant: infix of the files, such as ``fp16``.
        where: start of an error message.

    Raises:
        UserError: there are no safetensors, or a shard is missing.
    """
    stem = "diffusion_pytorch_model" if component in ("unet", "vae") else "model"
    infix = f".{variant}" if variant else ""
    whole = f"{component}/{stem}{infix}.safetensors"
    if whole in names:
        return (whole,)
    infix, number = re.escape(infix), r"-(\d+)-of-(\d+)"
    for order in (infix + number, number + infix):  # older versions of diffusers wrote the number first
        matches = [re.fullmatch(rf"{component}/{stem}{order}\.safetensors", name) for name in sorted(names)]
        if shards := [match for match in matches if match]:
            count = int(shards[0][2])
            if [(int(shard[1]), int(shard[2])) for shard in shards] != [(i + 1, count) for i in range(count)]:
                raise UserError(
                    f"{where}, which has {len(shards)} of the {count} files of {component}'s weights"
                )
            return tuple(shard[0] for shard in shards)
    raise UserError(_no_weights(names, component, variant, where))


def _no_weights(names: Iterable[str], component: str, variant: str | None, where: str) -> str:
    of_variant = f" of variant {variant}" if variant else ""
    others = sorted(name for name in names if re.fullmatch(rf"{component}/[^/]+\.(safetensors|bin)", name))
    return (
        f"{where}, which has no safetensors weights{of_variant} in {component}/: convert it with "
        "StableDiffusionPipeline.from_pretrained(path).save_pretrained(new, safe_serialization=True)"
        + (f", or set model.variant; there are {', '.join(others)}" if others else "")
    )

"""What a Stable Diffusion checkpoint consists of: its parts, their classes and configurations.

A checkpoint of another kind is refused here, by name, before its weights are looked at.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sega_bench.cell import shown
from sega_bench.errors import UserError

Config = Mapping[str, Any]

NETWORKS = {"text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
NETWORKS_XL = {**NETWORKS, "text_encoder_2": "CLIPTextModelWithProjection"}
SAFETY_CHECKER, SAFETY_CHECKER_CLASS = "safety_checker", "StableDiffusionSafetyChecker"
PREPROCESSOR = "feature_extractor"

# Inputs that a text-to-image UNet of Stable Diffusion does not have.
_MORE_INPUTS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim", "time_cond_proj_dim")


@dataclass(frozen=True)
class Layout:
    """The configurations of a checkpoint.

    Args:
        networks: diffusers' component name -> class name and configuration.
        scheduler: configuration of its own scheduler, with ``_class_name``.
        force_zeros_for_empty_prompt: XL: an empty negative prompt is zeros, not an encoded text.
        has_safety_checker: whether one came with it.
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
        """Their component names, in the order of the text encoders."""
        return ("tokenizer", "tokenizer_2") if self.is_xl else ("tokenizer",)

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Their component names."""
        return ("text_encoder", "text_encoder_2") if self.is_xl else ("text_encoder",)

    def config(self, name: str) -> Config:
        """The configuration of a network."""
        return self.networks[name][1]

    @property
    def upsampling(self) -> int:
        """Pixels on a side for one latent."""
        return int(2 ** (len(self.config("vae")["block_out_channels"]) - 1))

    @property
    def size(self) -> int:
        """Height and width in pixels of the images it was made for."""
        return self.upsampling * int(self.config("unet")["sample_size"])


def read_layout(folder: Path, where: str) -> Layout:
    """The configurations in a diffusers folder.

    Args:
        folder: holds model_index.json.
        where: begins an error message: the key and its value.

    Raises:
        UserError: it lacks something, something cannot be read, or it is no Stable Diffusion.
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
    return checked(
        Layout(
            networks={
                name: (kind, read_object(folder / name / "config.json", where))
                for name, kind in classes.items()
            },
            scheduler=read_object(folder / "scheduler" / "scheduler_config.json", where),
            force_zeros_for_empty_prompt=is_xl and index.get("force_zeros_for_empty_prompt", True) is True,
            has_safety_checker=isinstance(checker, list) and checker[-1:] == [SAFETY_CHECKER_CLASS],
        ),
        where,
    )


def _check_classes(index: Config, expected: Mapping[str, str], where: str) -> None:
    for name, kind in expected.items():
        entry = index.get(name)
        given = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if given not in (kind, f"{kind}Fast"):
            raise UserError(
                f"{where}, which is no Stable Diffusion 1.x, 2.x or XL: model_index.json says "
                f"{index.get('_class_name')}, and its {name} is {shown(given)}, not {kind}"
            )


def read_object(path: Path, where: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: no such file, or something else in it.
    """
    name = f"{path.parent.name}/{path.name}" if path.name != "model_index.json" else path.name
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise UserError(f"{where}, which lacks {name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: {name} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: {name} holds {shown(content)}, not a JSON object")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def checked(layout: Layout, where: str) -> Layout:
    """The layout, if it is one of a text-to-image model.

    Raises:
        UserError: a value that is needed here is missing or of another kind, or the UNet has other inputs.
    """
    unet, vae = layout.config("unet"), layout.config("vae")
    _whole(unet, "sample_size", f"{where}: unet")
    _number(vae, "scaling_factor", f"{where}: vae", default=0.18215)
    channels = vae.get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise UserError(f"{where}: vae/config.json: block_out_channels is {shown(channels)}, not a list")
    latents = vae.get("latent_channels", 4)
    for key in ("latents_mean", "latents_std"):
        if vae.get(key) is not None and not _numbers(vae[key], latents):
            raise UserError(f"{where}: vae/config.json: {key} is {shown(vae[key])}, not {latents} numbers")
    for name in _MORE_INPUTS:
        if unet.get(name) is not None:
            raise UserError(f"{where}, whose UNet has an input that SEGA does not know ({name})")
    if unet.get("in_channels", 4) != latents or unet.get("out_channels", 4) != latents:
        raise UserError(
            f"{where}, whose UNet maps {shown(unet.get('in_channels', 4))} to "
            f"{shown(unet.get('out_channels', 4))} channels, but its latents have {shown(latents)}: it is no "
            "text-to-image model (inpainting, depth and upscaling checkpoints are not)"
        )
    _check_conditioning(layout, where)
    return layout


def _check_conditioning(layout: Layout, where: str) -> None:
    """The UNet must read what the text encoders give."""
    unet = layout.config("unet")
    encoders = [layout.config(name) for name in layout.text_encoders]
    for name, config in zip(layout.text_encoders, encoders, strict=True):
        for key in ("hidden_size", "vocab_size", "max_position_embeddings", "eos_token_id"):
            _whole(config, key, f"{where}: {name}")
    width = sum(config["hidden_size"] for config in encoders)
    if unet.get("cross_attention_dim") != width:
        raise UserError(
            f"{where}, whose UNet reads {shown(unet.get('cross_attention_dim'))} channels of a text, but its "
            f"text encoder{'s' if layout.is_xl else ''} give {width}"
        )
    addition = "text_time" if layout.is_xl else None
    if unet.get("addition_embed_type") != addition:
        raise UserError(
            f"{where}: unet/config.json: addition_embed_type is {shown(unet.get('addition_embed_type'))}, "
            f"but with {len(encoders)} text encoder{'s' if layout.is_xl else ''} it must be {addition}"
        )
    if layout.is_xl:
        pooled = _whole(encoders[1], "projection_dim", f"{where}: text_encoder_2")
        time = _whole(unet, "addition_time_embed_dim", f"{where}: unet")
        if unet.get("projection_class_embeddings_input_dim") != pooled + 6 * time:
            raise UserError(
                f"{where}: unet/config.json: projection_class_embeddings_input_dim must be "
                f"{pooled + 6 * time}: a pooled text and six numbers (XL's refiner, which takes five, is not "
                "supported)"
            )


def _numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(x, int | float) for x in value)


def _whole(config: Config, key: str, where: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{where}/config.json: {key} is {shown(value)}, but it must be a whole number")
    return value


def _number(config: Config, key: str, where: str, default: float) -> None:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"{where}/config.json: {key} is {shown(value)}, but it must be a number above 0")


def choose_weights(
    names: Collection[str], component: str, variant: str | None, where: str
) -> tuple[str, ...]:
    """The files that hold a component's weights: the ones diffusers would read, and no others.

    Args:
        names: paths relative to the checkpoint's folder, with forward slashes.
        component: such as ``unet``.
        variant: infix of the files, such as ``fp16``.
        where: begins an error message.

    Raises:
        UserError: there are none as safetensors, or a part of them is missing.
    """
    stem = "diffusion_pytorch_model" if component in ("unet", "vae") else "model"
    infix = f".{variant}" if variant else ""
    whole = f"{component}/{stem}{infix}.safetensors"
    if whole in names:
        return (whole,)
    infix, number = re.escape(infix), r"-(\d+)-of-(\d+)"
    for order in (infix + number, number + infix):  # the second is an older habit
        matches = [re.fullmatch(rf"{component}/{stem}{order}\.safetensors", name) for name in sorted(names)]
        if shards := [found for found in matches if found]:
            count = int(shards[0][2])
            if [(int(found[1]), int(found[2])) for found in shards] != [(i + 1, count) for i in range(count)]:
                raise UserError(
                    f"{where}, which has {len(shards)} of the {count} files of {component}'s weights"
                )
            return tuple(found[0] for found in shards)
    raise UserError(_no_weights(names, component, variant, where))


def _no_weights(names: Iterable[str], component: str, variant: str | None, where: str) -> str:
    of_variant = f" of variant {variant}" if variant else ""
    found = sorted(name for name in names if re.fullmatch(rf"{component}/[^/]+\.(safetensors|bin)", name))
    return (
        f"{where}, which has no safetensors weights{of_variant} in {component}/: convert it with "
        "StableDiffusionPipeline.from_pretrained(path).save_pretrained(new, safe_serialization=True)"
        + (f", or set model.variant; there are {', '.join(found)}" if found else "")
    )

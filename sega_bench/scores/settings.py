"""Score settings, and their validation before any model loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sega_bench.errors import UserError, check_count, expand_user, nearest
from sega_bench.faces import SCORER_DIR

LOCAL_DIR = "local-dir:"
EMBEDDED = "embedded"
_LARGEST_BATCH = 4096
PERCEPTUAL = ("alex", "vgg", "squeeze", "clip", "none")


@dataclass(frozen=True)
class ScoreSettings:
    """The networks that score the images.

    Args:
        clip_model: an open_clip name such as `ViT-L-14`; `local-dir:FOLDER` with `open_clip_config.json`,
            weights as safetensors and tokenizer files; or `embedded`, the face model's own.
        clip_pretrained: for an open_clip name only: a tag such as `openai`, or a .safetensors file.
        perceptual: the network behind `lpips`: `alex`, `vgg` or `squeeze` (LPIPS itself), `clip` (an
            LPIPS-like distance on the stages of CLIP's image tower) or `none` (not scored).
        attributes: the attribute classifier: `embedded`, for the face model's attributes; None: not scored.
        dino: folder or hub id of a DINOv2 with safetensors, for `dino`; None: not scored.
        batch_size: images in one batch.
    """

    clip_model: str = "embedded"
    clip_pretrained: str | None = None
    perceptual: str = "clip"
    attributes: str | None = None
    dino: str | None = None
    batch_size: int = 16


def check(settings: ScoreSettings) -> None:
    """Check names and files without loading a model.

    Raises:
        UserError: a name is unknown or a file is missing; the message has the key and the remedy.
    """
    check_count("scores.batch_size", settings.batch_size, _LARGEST_BATCH)
    if settings.perceptual not in PERCEPTUAL:
        raise UserError(
            f"scores.perceptual={settings.perceptual} is not known; "
            f"{nearest(settings.perceptual, PERCEPTUAL)}there are {', '.join(PERCEPTUAL)}"
        )
    if settings.attributes not in (None, EMBEDDED):
        raise UserError(
            f"scores.attributes={settings.attributes} is no classifier: it is {EMBEDDED}, which knows the "
            "face model's attributes, or null"
        )
    folder = clip_folder(settings)
    if folder is None:
        _check_named(settings.clip_model, settings.clip_pretrained)
    else:
        _check_folder(folder, settings)


def score_names(settings: ScoreSettings, *, safety_checker: bool = False) -> tuple[str, ...]:
    """The numeric columns that these settings fill for an edited cell, without those of single concepts."""
    names = ["clip_prompt", "clip_concept", "clip_concept_delta", "clip_directional", "clip_image", "success"]
    names += ["ssim", "psnr", "mse", "changed_fraction", "locality", "guided_fraction"]
    names += ["lpips"] * (settings.perceptual != "none") + ["dino"] * (settings.dino is not None)
    names += ["attribute_success", "attribute_leakage"] * (settings.attributes is not None)
    return (*names, *["nsfw"] * safety_checker)


def clip_folder(settings: ScoreSettings) -> Path | None:
    """The folder that holds the CLIP model; None for a name of open_clip."""
    if settings.clip_model == EMBEDDED:
        return SCORER_DIR
    if settings.clip_model.startswith(LOCAL_DIR):
        return expand_user(settings.clip_model.removeprefix(LOCAL_DIR), "scores.clip_model")
    return None


def _check_folder(folder: Path, settings: ScoreSettings) -> None:
    key = f"scores.clip_model={settings.clip_model}"
    if settings.clip_pretrained is not None:
        raise UserError(
            f"{key} brings its own weights: leave out scores.clip_pretrained={settings.clip_pretrained}"
        )
    if not (folder / "open_clip_config.json").is_file():
        raise UserError(
            f"{key}: there is no {folder / 'open_clip_config.json'}; name a folder saved for open_clip"
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{key}: there is no .safetensors file in {folder}; other formats are not read")


def _check_named(name: str, pretrained: str | None) -> None:
    import open_clip  # takes seconds, so only where a name of open_clip is checked

    if name not in open_clip.list_models():
        raise UserError(
            f"scores.clip_model={name} is not a model of open_clip; "
            f"{nearest(name, [*open_clip.list_models(), EMBEDDED])}a folder is {LOCAL_DIR}FOLDER"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise UserError(
            f"scores.clip_model={name} needs weights: set scores.clip_pretrained to a .safetensors file"
            + (f" or to one of {', '.join(tags)}" if tags else "")
        )
    if pretrained.endswith(".safetensors"):
        if not expand_user(pretrained, "scores.clip_pretrained").is_file():
            raise UserError(f"scores.clip_pretrained={pretrained}: there is no such file")
    elif pretrained not in tags:
        raise UserError(
            f"scores.clip_pretrained={pretrained}: {name} has no such weights; {nearest(pretrained, tags)}"
            f"there are {', '.join(tags) or 'none'}, or name a .safetensors file"
        )

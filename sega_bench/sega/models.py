"""Stable Diffusion checkpoints in diffusers' format: found, identified unloaded, loaded as a Denoiser."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sega_bench import faces
from sega_bench.cell import Cell, canonical_json, shown
from sega_bench.errors import UserError
from sega_bench.sega import onednn, schedulers
from sega_bench.sega.compiling import Compiled
from sega_bench.sega.denoiser import Conditioning

_COMPONENTS = ("text_encoder", "tokenizer", "unet", "vae")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which checkpoint.

    Args:
        name: what people call it; part of the table, not of any key.
        path: a diffusers folder, a hub id, or ``embedded`` for the face model of this package.
        revision: branch, tag or commit of a hub id.
        variant: weights by this infix, such as ``fp16``.
    """

    name: str
    path: str
    revision: str | None = None
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint on this machine, described but not loaded.

    Args:
        id: ``name@hash`` of its weights and configurations; ``name@commit`` if it came from a hub.
        folder: where it is; None if a dry run could not reach the hub.
        scheduler: diffusers' class name.
        scheduler_config: of the checkpoint's own scheduler, as JSON.
        size: default height and width in pixels.
        variant: infix of the weights' file names.
    """

    id: str
    folder: Path | None
    scheduler: str
    scheduler_config: str
    size: int
    variant: str | None = None

    def scheduler_for(self, name: str | None) -> tuple[str, str]:
        """Class name and configuration of the scheduler that ``sampling.scheduler`` asks for.

        Another class than the checkpoint's gets the part of its configuration that it understands.
        """
        chosen = self.scheduler if name is None else schedulers.class_name(name)
        config = schedulers.accepted_config(chosen, json.loads(self.scheduler_config))
        return chosen, canonical_json(config)


def describe(settings: ModelSettings, *, offline_ok: bool = False) -> Model:
    """Find a checkpoint and say what it is, reading nothing but its configurations and hashing its weights.

    Args:
        settings: which.
        offline_ok: for a dry run: a hub that cannot be reached gives a description with Stable Diffusion's
            usual scheduler and size, and an id without hash.

    Raises:
        UserError: no such folder, no diffusers checkpoint in it, no safetensors, or the hub says no.
    """
    if settings.path == "embedded":
        return _describe_folder(settings, faces.PIPELINE_DIR, commit=None)
    folder = Path(settings.path).expanduser()
    if folder.is_dir():
        return _describe_folder(settings, folder, commit=None)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", settings.path):
        try:
            snapshot = _download(settings)
        except UserError:
            if not offline_ok:
                raise
            return Model(settings.name, None, "PNDMScheduler", '{"skip_prk_steps":true}', 512)
        return _describe_folder(settings, snapshot, commit=snapshot.name)
    raise UserError(
        f"model.path is {settings.path!r}, but there is no such folder: give the path of a diffusers folder "
        "(it holds model_index.json) or a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5"
    )


def _describe_folder(settings: ModelSettings, folder: Path, commit: str | None) -> Model:
    missing = [name for name in ("model_index.json", *_COMPONENTS) if not (folder / name).exists()]
    if missing:
        raise UserError(
            f"model.path is {settings.path!r}, which is no Stable Diffusion checkpoint in diffusers' format: "
            f"it lacks {', '.join(missing)}"
        )
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    upsampling = 2 ** (len(_read_json(folder / "vae" / "config.json")["block_out_channels"]) - 1)
    files = list(_identifying_files(folder, settings.variant))
    if not any(path.suffix == ".safetensors" and path.parent.name == "unet" for path in files):
        raise UserError(
            f"model.path is {settings.path!r}, which has no safetensors weights"
            f"{f' of variant {settings.variant}' if settings.variant else ''} in unet/: convert it with "
            "StableDiffusionPipeline.from_pretrained(path).save_pretrained(new, safe_serialization=True)"
        )
    return Model(
        id=f"{settings.name}@{commit or _hash_files(folder, files)}",
        folder=folder,
        scheduler=schedulers.class_name(scheduler["_class_name"]),
        scheduler_config=canonical_json({k: v for k, v in scheduler.items() if not k.startswith("_")}),
        size=upsampling * _read_json(folder / "unet" / "config.json")["sample_size"],
        variant=settings.variant,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: {path.parent.name}/{path.name} cannot be read ({error})") from error
    assert isinstance(content, dict)
    return content


def _identifying_files(folder: Path, variant: str | None) -> Iterator[Path]:
    """The files that decide what the model draws: configurations, vocabularies, the weights it will load."""
    for component in _COMPONENTS:
        for path in sorted((folder / component).iterdir()):
            if path.suffix == ".safetensors":
                infix = re.fullmatch(
                    r"[^.]+\.(?:([^.]+)\.)?safetensors", re.sub(r"-\d+-of-\d+", "", path.name)
                )
                if infix is not None and infix[1] == variant:
                    yield path
            elif path.suffix in (".json", ".txt"):
                yield path


def _hash_files(folder: Path, files: list[Path]) -> str:
    known = _HashCache.read()
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(folder).as_posix()} {known.digest(path)}\n".encode())
    known.write()
    return total.hexdigest()[:16]


@dataclass
class _HashCache:
    """sha256 of large files, remembered by path, size and time of change: gigabytes take seconds to read."""

    path: Path
    entries: dict[str, list[Any]]

    @classmethod
    def read(cls) -> _HashCache:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(base) / "sega_bench" / "weights.json"
        try:
            return cls(path, dict(json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            return cls(path, {})

    def digest(self, path: Path) -> str:
        stat = path.stat()
        entry = self.entries.get(str(path.resolve()))
        if isinstance(entry, list) and entry[:2] == [stat.st_size, stat.st_mtime_ns]:
            return str(entry[2])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.entries[str(path.resolve())] = [stat.st_size, stat.st_mtime_ns, digest]
        return digest

    def write(self) -> None:
        """Best effort: a cache that cannot be kept costs time, nothing else."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(self.entries))
            temporary.replace(self.path)
        except OSError:
            pass


def _download(settings: ModelSettings) -> Path:
    """The snapshot of a hub id on this machine; its folder's name is the commit."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    infix = f".{settings.variant}" if settings.variant else ""
    wanted = [f"{name}/*.{suffix}" for name in (*_COMPONENTS, "scheduler") for suffix in ("json", "txt")]
    wanted += ["model_index.json", *(f"{name}/*[!.]{infix}.safetensors" for name in _COMPONENTS)]
    asked = f"model.path is {settings.path!r}"
    try:
        return Path(
            huggingface_hub.snapshot_download(
                settings.path, revision=settings.revision, allow_patterns=wanted, etag_timeout=5
            )
        )
    except GatedRepoError as error:
        raise UserError(f"{asked}, which is gated: accept its terms, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{asked}: neither a folder here nor a repository on the hub") from error
    except Exception as error:  # the hub client's network errors come from several libraries
        raise UserError(
            f"{asked}: no such folder here, and the hub cannot be reached ({type(error).__name__}); "
            "download it where there is a network and give the folder: model.path=/path/to/folder"
        ) from error


def default_device() -> torch.device:
    """CUDA where there is some, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_device(name: str | None) -> torch.device:
    """``engine.device`` as a torch device; None is CUDA where there is some.

    Raises:
        UserError: no such device here.
    """
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"engine.device is {name!r}, which cannot be used here ({reason})") from error
    return device


def default_dtype(device: torch.device) -> str:
    """Half precision where it is fast."""
    return "float16" if device.type == "cuda" else "float32"


class StableDiffusion:
    """SD 1.x and 2.x networks as a :class:`sega_bench.sega.denoiser.Denoiser`.

    Networks run in their own dtype; latents, guidance and scheduler stay in float32 (float64 with float64
    networks), because a quantile rounded to float16 changes the mask in most channels.

    Args:
        tokenizer, text_encoder, unet, vae: of the checkpoint, the networks on one device and in one dtype.
        compile: run the UNet through ``torch.compile``, once for every batch size.
    """

    def __init__(
        self, tokenizer: Any, text_encoder: Any, unet: Any, vae: Any, *, compile: bool = False
    ) -> None:
        self.tokenizer, self.text_encoder, self.unet, self.vae = tokenizer, text_encoder, unet, vae
        self.device: torch.device = unet.device
        self.dtype: torch.dtype = unet.dtype  # diffusers walks through all modules each time it is asked
        self.latent_dtype = torch.promote_types(self.dtype, torch.float32)
        self._predict = Compiled(unet) if compile else unet
        self.encode = lru_cache(maxsize=1024)(self._encode)
        self.truncation = lru_cache(maxsize=4096)(self._truncation)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """C H W of the latents of an image of ``height`` x ``width`` pixels."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.unet.config.in_channels, height // factor, width // factor

    def _truncation(self, text: str) -> str | None:
        """One line for a text of more tokens than the model reads; None for any other."""
        tokens, limit = len(self.tokenizer(text, verbose=False).input_ids), self.tokenizer.model_max_length
        return f"{shown(text)} has {tokens} tokens and was cut to {limit}" if tokens > limit else None

    @torch.inference_mode()
    def _encode(self, text: str) -> Conditioning:
        """Hidden states (tokens, channels) of one text, cut to the tokenizer's length with its end mark."""
        tokens = self.tokenizer(
            text,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return {"encoder_hidden_states": self.text_encoder(tokens.input_ids.to(self.device))[0][0]}

    @torch.inference_mode()
    def predict(self, latents_BCHW: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output, BCHW in ``latent_dtype``."""
        output = self._predict(latents_BCHW.to(self.dtype), timestep, return_dict=False, **conditioning)[0]
        return output.to(self.latent_dtype)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Images as uint8 BHW3, rounded as diffusers rounds."""
        scaled_BCHW = (latents_BCHW / self.vae.config.scaling_factor).to(self.dtype)
        image_BCHW = self.vae.decode(scaled_BCHW, return_dict=False)[0].float()
        image_BCHW = (image_BCHW / 2 + 0.5).clamp(0, 1)
        return (image_BCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


def load(
    model: Model, device: torch.device | None = None, dtype: str | None = None, *, compile: bool = False
) -> StableDiffusion:
    """Load a checkpoint from its safetensors.

    Args:
        model: from :func:`describe`.
        device: default :func:`default_device`.
        dtype: of the networks: ``float32``, ``float16``, ``bfloat16`` or ``float64``.
        compile: the UNet, with ``torch.compile``: a minute or more before the first image, then faster.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    assert model.folder is not None, "a dry run's model cannot be loaded"
    device = device or default_device()
    how = {"torch_dtype": getattr(torch, dtype or default_dtype(device)), "use_safetensors": True}
    networks = [
        kind.from_pretrained(model.folder, subfolder=name, variant=model.variant, **how)
        .to(device, memory_format=torch.channels_last)
        .eval()
        for kind, name in (
            (CLIPTextModel, "text_encoder"),
            (UNet2DConditionModel, "unet"),
            (AutoencoderKL, "vae"),
        )
    ]
    if device.type == "cpu" and how["torch_dtype"] == torch.float32:
        onednn.use_for(networks[1])
    tokenizer = CLIPTokenizer.from_pretrained(model.folder, subfolder="tokenizer")
    return StableDiffusion(tokenizer, *networks, compile=compile)


def cell_of(model: Model, *, dtype: str | None = None, scheduler: str | None = None, **settings: Any) -> Cell:
    """A cell of this model: what follows from the checkpoint is filled in, ``settings`` are Cell's fields."""
    dtype = dtype or default_dtype(default_device())
    name, config = model.scheduler_for(scheduler)
    size = {"height": model.size, "width": model.size}
    return Cell(model=model.id, dtype=dtype, scheduler=name, scheduler_config=config, **{**size, **settings})

"""Load Stable Diffusion 1.x, 2.x and XL as a Denoiser for the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sega_bench.cell import Cell, abbreviated
from sega_bench.errors import UserError
from sega_bench.sega import onednn
from sega_bench.sega.checkpoints.checkpoint import Checkpoint
from sega_bench.sega.checkpoints.locate import Model
from sega_bench.sega.compiling import Compiled
from sega_bench.sega.denoiser import Conditioning
from sega_bench.sega.recording import Recorded


def default_device() -> torch.device:
    """CUDA if available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_device(name: str | None) -> torch.device:
    """Turn ``engine.device`` into a torch device; None: :func:`default_device`.

    Raises:
        UserError: this machine has no such device.
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
    """``float16`` on CUDA, where it is fast, else ``float32``."""
    return "float16" if device.type == "cuda" else "float32"


class StableDiffusion:
    """The networks of SD 1.x, 2.x or XL as a :class:`sega_bench.sega.denoiser.Denoiser`.

    Networks run in their own dtype. Latents, guidance and scheduler use float32 (float64 with float64
    networks), because a threshold's quantile rounded to float16 changes the mask in most channels.

    Args:
        tokenizers, text_encoders: one of each; two for XL.
        unet, vae: diffusers' networks.
        force_zeros_for_empty_prompt: XL only: an empty text is encoded as zeros.
        run_unet: called instead of the UNet; must return the same output.
    """

    def __init__(
        self,
        tokenizers: Sequence[Any],
        text_encoders: Sequence[Any],
        unet: Any,
        vae: Any,
        *,
        force_zeros_for_empty_prompt: bool = False,
        run_unet: Callable[..., Any] | None = None,
    ) -> None:
        self.tokenizers, self.text_encoders = tuple(tokenizers), tuple(text_encoders)
        self.unet, self.vae = unet, vae
        self.force_zeros_for_empty_prompt = force_zeros_for_empty_prompt
        self.device: torch.device = unet.device
        self.dtype: torch.dtype = unet.dtype  # diffusers' property walks through all modules
        self.latent_dtype = torch.promote_types(self.dtype, torch.float32)
        self._run_unet = run_unet or unet
        self.encode = lru_cache(maxsize=1024)(self._encode)
        self.truncation = lru_cache(maxsize=4096)(self._truncation)
        self._time_ids = lru_cache(maxsize=64)(self._make_time_ids)

    @property
    def is_xl(self) -> bool:
        """Whether the UNet has XL's additional inputs: a pooled text and the image's size."""
        return len(self.text_encoders) == 2

    @property
    def upsampling(self) -> int:
        """Pixels per latent, along one side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape (C, H, W) of the latents of an image of ``height`` x ``width`` pixels."""
        return self.unet.config.in_channels, height // self.upsampling, width // self.upsampling

    def _truncation(self, text: str) -> str | None:
        """A warning of one line if the text has more tokens than the model reads, else None."""
        for tokenizer in self.tokenizers:
            tokens, limit = len(tokenizer(text, verbose=False).input_ids), tokenizer.model_max_length
            if tokens > limit:
                return f"{abbreviated(text)} has {tokens} tokens and was cut to {limit}"
        return None

    @torch.inference_mode()
    def _encode(self, text: str) -> Conditioning:
        """Encode one text, truncated to the tokenizer's length including the end token.

        Returns:
            ``encoder_hidden_states`` (tokens, channels): the last hidden states for SD 1.x and 2.x, the
            concatenated penultimate ones of both encoders for XL; and for XL ``text_embeds`` (channels), the
            second encoder's projection.
        """
        ids = [self._token_ids(tokenizer, text) for tokenizer in self.tokenizers]
        if not self.is_xl:
            return {"encoder_hidden_states": self.text_encoders[0](ids[0])[0][0]}
        outputs = [
            encoder(ids_1T, output_hidden_states=True)
            for encoder, ids_1T in zip(self.text_encoders, ids, strict=True)
        ]
        encoded = {
            "encoder_hidden_states": torch.cat([output.hidden_states[-2][0] for output in outputs], dim=-1),
            "text_embeds": outputs[-1].text_embeds[0],
        }
        if self.force_zeros_for_empty_prompt and not text:
            return {name: torch.zeros_like(value) for name, value in encoded.items()}
        return encoded

    def _token_ids(self, tokenizer: Any, text: str) -> Tensor:
        length = tokenizer.model_max_length
        tokens = tokenizer(
            text, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        ids: Tensor = tokens.input_ids
        return ids.to(self.device)

    @torch.inference_mode()
    def predict(self, latents_BCHW: Tensor, timestep_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output, BCHW in ``latent_dtype``; a timestep without dimensions applies to all rows."""
        added = {"added_cond_kwargs": self._xl_conditions(latents_BCHW, conditioning)} if self.is_xl else {}
        states_BTD = conditioning["encoder_hidden_states"]
        latents_BCHW = latents_BCHW.to(self.dtype)
        output = self._run_unet(latents_BCHW, timestep_B, states_BTD, return_dict=False, **added)[0]
        return output.to(self.latent_dtype)  # type: ignore[no-any-return]

    def _xl_conditions(self, latents_BCHW: Tensor, conditioning: Conditioning) -> Conditioning:
        """XL's additional inputs: pooled texts, and six numbers per image."""
        text_BD = conditioning["text_embeds"]
        height, width = (side * self.upsampling for side in latents_BCHW.shape[-2:])
        return {"text_embeds": text_BD, "time_ids": self._time_ids(height, width).expand(len(text_BD), -1)}

    def _make_time_ids(self, height: int, width: int) -> Tensor:
        """Original size, crop and target size of an image that is neither resized nor cropped.

        Its results are cached, because copying numbers to a GPU synchronises with it.
        """
        return torch.tensor([height, width, 0, 0, height, width], dtype=self.dtype, device=self.device)

    @torch.inference_mode()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Decode latents to images, uint8 BHW3, rounded as in diffusers."""
        config = self.vae.config
        if config.latents_mean is not None and config.latents_std is not None:
            mean_C11, std_C11 = (
                latents_BCHW.new_tensor(value)[:, None, None]
                for value in (config.latents_mean, config.latents_std)
            )
            latents_BCHW = latents_BCHW * std_C11 / config.scaling_factor + mean_C11
        else:
            latents_BCHW = latents_BCHW / config.scaling_factor
        image_BCHW = self.vae.decode(latents_BCHW.to(self.vae.dtype), return_dict=False)[0].float()
        image_BCHW = (image_BCHW / 2 + 0.5).clamp(0, 1)
        return (image_BCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


def load(
    model: Model, device: torch.device | None = None, dtype: str | None = None, *, compile: bool = False
) -> StableDiffusion:
    """Load a checkpoint from its safetensors and fuse its LoRAs.

    Args:
        model: from :func:`sega_bench.sega.checkpoints.locate.describe`.
        device: of the networks; default :func:`default_device`.
        dtype: of the networks: ``float32``, ``float16``, ``bfloat16`` or ``float64``; default
            :func:`default_dtype`. XL's VAE overflows in float16 and then runs in float32, as in diffusers.
        compile: whether to compile the UNet with ``torch.compile``, which takes a minute or more before the
            first image.
    """
    checkpoint = model.checkpoint
    assert checkpoint is not None, "a dry run's model cannot be loaded"
    layout = checkpoint.layout
    networks = _load_networks(checkpoint, device or default_device(), dtype)
    unet = networks["unet"]
    return StableDiffusion(
        checkpoint.load_tokenizers(),
        [networks[name] for name in layout.text_encoders],
        unet,
        networks["vae"],
        force_zeros_for_empty_prompt=layout.force_zeros_for_empty_prompt,
        run_unet=accelerated(unet, compile=compile),
    )


def _load_networks(
    checkpoint: Checkpoint, device: torch.device, dtype: str | None
) -> dict[str, torch.nn.Module]:
    updates = checkpoint.lora_updates() if checkpoint.loras else []
    networks = {}
    for name, part in checkpoint.parts.items():
        network_dtype: torch.dtype = getattr(torch, dtype or default_dtype(device))
        overflows = name == "vae" and checkpoint.layout.is_xl and part.config.get("force_upcast", True)
        if overflows and network_dtype == torch.float16:
            network_dtype = torch.float32
        networks[name] = part.load(device, network_dtype, updates).to(memory_format=torch.channels_last)
    return networks


def accelerated(unet: Any, *, compile: bool = False) -> Callable[..., Any]:
    """A callable with the UNet's output in less time; on a CPU this also changes ``unet`` itself."""
    is_on_cpu = unet.device.type == "cpu"
    if is_on_cpu and unet.dtype == torch.float32:
        (onednn.pack_layers_to_compile if compile else onednn.pack_layers)(unet)
    if compile:
        return Compiled(unet)
    return Recorded(unet) if is_on_cpu else unet


def cell_of(model: Model, *, dtype: str | None = None, scheduler: str | None = None, **settings: Any) -> Cell:
    """Create a cell of this model.

    Args:
        model: sets the cell's model, scheduler configuration and default size.
        dtype: of the networks; default :func:`default_dtype`.
        scheduler: as ``sampling.scheduler``; default: the checkpoint's own.
        settings: further fields of :class:`Cell`.
    """
    dtype = dtype or default_dtype(default_device())
    name, config = model.scheduler_for(scheduler)
    size = {"height": model.size, "width": model.size}
    return Cell(model=model.id, dtype=dtype, scheduler=name, scheduler_config=config, **{**size, **settings})

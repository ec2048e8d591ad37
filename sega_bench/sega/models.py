"""Stable Diffusion 1.x, 2.x and XL, loaded: networks as a Denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sega_bench.cell import Cell, shown
from sega_bench.errors import UserError
from sega_bench.sega import onednn
from sega_bench.sega.checkpoints.locate import Model
from sega_bench.sega.compiling import Compiled
from sega_bench.sega.denoiser import Conditioning
from sega_bench.sega.recording import Recorded


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
    """The networks of SD 1.x, 2.x or XL as a :class:`sega_bench.sega.denoiser.Denoiser`.

    Networks run in their own dtype; latents, guidance and scheduler stay in float32 (float64 with float64
    networks), because a quantile rounded to float16 changes the mask in most channels.

    Args:
        tokenizers, text_encoders: one of each, for XL two.
        unet, vae: diffusers' networks.
        force_zeros_for_empty_prompt: XL: what is read of an empty text is zeros.
        run_unet: called in place of the UNet, to the same end.
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
        self.dtype: torch.dtype = unet.dtype  # diffusers walks through all modules each time it is asked
        self.latent_dtype = torch.promote_types(self.dtype, torch.float32)
        self._run_unet = run_unet or unet
        self.encode = lru_cache(maxsize=1024)(self._encode)
        self.truncation = lru_cache(maxsize=4096)(self._truncation)
        self._time_ids = lru_cache(maxsize=64)(self._make_time_ids)

    @property
    def is_xl(self) -> bool:
        """Whether the UNet also reads a pooled text and the size of the image."""
        return len(self.text_encoders) == 2

    @property
    def upsampling(self) -> int:
        """Pixels on a side for one latent."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """C H W of the latents of an image of ``height`` x ``width`` pixels."""
        return self.unet.config.in_channels, height // self.upsampling, width // self.upsampling

    def _truncation(self, text: str) -> str | None:
        """One line for a text of more tokens than the model reads; None for any other."""
        for tokenizer in self.tokenizers:
            tokens, limit = len(tokenizer(text, verbose=False).input_ids), tokenizer.model_max_length
            if tokens > limit:
                return f"{shown(text)} has {tokens} tokens and was cut to {limit}"
        return None

    @torch.inference_mode()
    def _encode(self, text: str) -> Conditioning:
        """What the UNet reads of one text, cut to the tokenizer's length with its end mark.

        ``encoder_hidden_states`` (tokens, channels): of SD 1.x and 2.x the last, of XL the last but one of
        both encoders, side by side. For XL also ``text_embeds`` (channels), the second encoder's projection.
        """
        ids = [self._token_ids(tokenizer, text) for tokenizer in self.tokenizers]
        if not self.is_xl:
            return {"encoder_hidden_states": self.text_encoders[0](ids[0])[0][0]}
        outputs = [
            encoder(own, output_hidden_states=True)
            for encoder, own in zip(self.text_encoders, ids, strict=True)
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
        """The UNet's output, BCHW in ``latent_dtype``; one timestep without dimensions serves all rows."""
        added = {"added_cond_kwargs": self._added(latents_BCHW, conditioning)} if self.is_xl else {}
        states_BTD = conditioning["encoder_hidden_states"]
        latents_BCHW = latents_BCHW.to(self.dtype)
        output = self._run_unet(latents_BCHW, timestep_B, states_BTD, return_dict=False, **added)[0]
        return output.to(self.latent_dtype)  # type: ignore[no-any-return]

    def _added(self, latents_BCHW: Tensor, conditioning: Conditioning) -> Conditioning:
        """What only XL reads: pooled texts, and six numbers an image."""
        text_BD = conditioning["text_embeds"]
        height, width = (side * self.upsampling for side in latents_BCHW.shape[-2:])
        return {"text_embeds": text_BD, "time_ids": self._time_ids(height, width).expand(len(text_BD), -1)}

    def _make_time_ids(self, height: int, width: int) -> Tensor:
        """Original size, crop and target size: as in diffusers, of an image neither resized nor cropped.

        Kept, because to copy numbers to a GPU is to wait for it.
        """
        return torch.tensor([height, width, 0, 0, height, width], dtype=self.dtype, device=self.device)

    @torch.inference_mode()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Images as uint8 BHW3, rounded as diffusers rounds."""
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
    """Load a checkpoint from its safetensors, its LoRAs fused.

    Args:
        model: from :func:`sega_bench.sega.checkpoints.locate.describe`.
        device: default :func:`default_device`.
        dtype: of the networks: ``float32``, ``float16``, ``bfloat16`` or ``float64``. XL's VAE overflows in
            float16 and then runs in float32, as in diffusers.
        compile: the UNet, with ``torch.compile``: a minute or more before the first image, then faster.
    """
    checkpoint = model.checkpoint
    assert checkpoint is not None, "a dry run's model cannot be loaded"
    layout = checkpoint.layout
    device = device or default_device()
    updates = checkpoint.updates() if checkpoint.loras else []
    networks = {}
    for name, part in checkpoint.parts.items():
        own_dtype: torch.dtype = getattr(torch, dtype or default_dtype(device))
        overflows = name == "vae" and layout.is_xl and part.config.get("force_upcast", True)
        if overflows and own_dtype == torch.float16:
            own_dtype = torch.float32
        networks[name] = part.load(device, own_dtype, updates).to(memory_format=torch.channels_last)
    unet = networks["unet"]
    return StableDiffusion(
        checkpoint.load_tokenizers(),
        [networks[name] for name in layout.text_encoders],
        unet,
        networks["vae"],
        force_zeros_for_empty_prompt=layout.force_zeros_for_empty_prompt,
        run_unet=faster(unet, compile=compile),
    )


def faster(unet: Any, *, compile: bool = False) -> Callable[..., Any]:
    """What returns the same in less time; on a CPU ``unet`` itself is changed too."""
    is_on_cpu = unet.device.type == "cpu"
    if is_on_cpu and unet.dtype == torch.float32:
        (onednn.use_for_compiled if compile else onednn.use_for)(unet)
    if compile:
        return Compiled(unet)
    return Recorded(unet) if is_on_cpu else unet


def cell_of(model: Model, *, dtype: str | None = None, scheduler: str | None = None, **settings: Any) -> Cell:
    """A cell of this model: what follows from the checkpoint is filled in, ``settings`` are Cell's fields."""
    dtype = dtype or default_dtype(default_device())
    name, config = model.scheduler_for(scheduler)
    size = {"height": model.size, "width": model.size}
    return Cell(model=model.id, dtype=dtype, scheduler=name, scheduler_config=config, **{**size, **settings})

"""What the engine asks of a text-to-image diffusion model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

Conditioning = Mapping[str, Tensor]
"""What the UNet reads of one text (no batch dimension) or of a batch, by diffusers' keyword names."""


class Denoiser(Protocol):
    """The networks of a text-to-image diffusion model; on a CPU called from several threads at once."""

    device: torch.device
    latent_dtype: torch.dtype
    """Of latents, guidance and scheduler; the networks may run in less."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """C H W of the latents of an image of that size in pixels."""
        ...

    def encode(self, text: str) -> Conditioning:
        """What the UNet reads of a text. Called often with the same text: remember it."""
        ...

    def truncation(self, text: str) -> str | None:
        """One line that says what of a text the model does not read; None if it reads all of it."""
        ...

    def predict(self, latents_BCHW: Tensor, timestep_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output (noise or velocity), BCHW in ``latent_dtype``; every row at its own timestep."""
        ...

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Images as uint8 BHW3."""
        ...

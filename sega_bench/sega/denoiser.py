"""The interface between the engine and a text-to-image diffusion model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

Conditioning = Mapping[str, Tensor]
"""The UNet's inputs for one text (no batch dimension) or for a batch, by diffusers' keyword names."""


class Denoiser(Protocol):
    """The networks of a text-to-image diffusion model. On a CPU several threads call it concurrently."""

    device: torch.device
    latent_dtype: torch.dtype
    """The dtype of latents, guidance and scheduler; the networks may use a lower precision."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape (C, H, W) of the latents of an image of that size in pixels."""
        ...

    def encode(self, text: str) -> Conditioning:
        """Encode a text. The engine repeats texts, so cache the result."""
        ...

    def truncation(self, text: str) -> str | None:
        """A line that says which part of a text the model does not read; None if it reads all of it."""
        ...

    def predict(self, latents_BCHW: Tensor, timestep_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output (noise or velocity), BCHW in ``latent_dtype``; every row has its own timestep."""
        ...

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Decode latents to images, uint8 BHW3."""
        ...

"""Fake networks: fast, exact under any batching, and with counters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sega_bench.sega.denoiser import Conditioning


class FakeDenoiser:
    """A contractive denoiser whose estimates depend on latents, timestep and text, row by row.

    All operators are elementwise, so results do not depend on the batch: any difference between two runs is
    the engine's.
    """

    device = torch.device("cpu")
    latent_dtype = torch.float64

    def __init__(self, before: Callable[[Tensor], None] = lambda latents: None) -> None:
        self.before = before
        self.evaluated = 0
        self.batches: list[int] = []
        self.encoded: list[str] = []

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return 2, height // 8, width // 8

    def encode(self, text: str) -> Conditioning:
        self.encoded.append(text)
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return {"pattern": torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 1, 1)))}

    def truncation(self, text: str) -> str | None:
        return None

    def predict(self, latents_BCHW: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        self.before(latents_BCHW)
        self.batches.append(len(latents_BCHW))
        height, width = latents_BCHW.shape[-2:]
        ramp_HW = torch.linspace(-1, 1, height * width, dtype=torch.float64).reshape(height, width)
        phase_BCHW = conditioning["pattern"] * (1 + ramp_HW) + 0.3 * latents_BCHW
        return 0.2 * latents_BCHW + phase_BCHW.sin() * (0.5 + timestep.double().reshape(-1, 1, 1, 1) / 2000)

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        image_BCHW = (latents_BCHW.tanh() / 2 + 0.5).mul(255).round().to(torch.uint8)
        image_BHWC = image_BCHW.repeat_interleave(8, 2).repeat_interleave(8, 3).permute(0, 2, 3, 1)
        return torch.cat([image_BHWC, image_BHWC[..., :1]], dim=-1)

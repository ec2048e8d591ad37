"""The engine's latents before they are decoded."""

from __future__ import annotations

import torch

from sega_bench.cell import Cell
from sega_bench.sega.batching import Batching
from sega_bench.sega.models import StableDiffusion
from sega_bench.sega.wave import generate


class LatentDecoder:
    """A loaded model that collects latents instead of decoding them."""

    def __init__(self, model: StableDiffusion) -> None:
        self.model, self.latents = model, []

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        self.latents.append(latents_BCHW.clone())
        return torch.zeros(len(latents_BCHW), 1, 1, 3, dtype=torch.uint8)


def engine_latents(model: StableDiffusion, cell: Cell) -> torch.Tensor:
    """The cell's latents, generated together with its reference so that it forks."""
    decoder = LatentDecoder(model)
    list(generate(decoder, [cell.reference(), cell] if cell.edits else [cell], Batching(micro=4, decode=4)))
    (latents_BCHW,) = decoder.latents
    return latents_BCHW[-1:]  # the cell's row is the last, and padding repeats it

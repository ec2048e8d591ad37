"""Scores: what an edit did to an image, as numbers that name their backbone, weights and preprocessing.

`check` and `build` are here, `score` is in :mod:`sega_bench.scores.scoring`. Nothing heavy is imported
before `build`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .settings import ScoreSettings, check

if TYPE_CHECKING:
    import torch

    from .scoring import Scorer

__all__ = ["ScoreSettings", "build", "check"]


def build(settings: ScoreSettings, device: torch.device) -> tuple[Scorer, ...]:
    """The scorers that the settings name, loaded onto the device.

    Raises:
        UserError: a name is wrong, or weights cannot be had.
    """
    from .loading import load_clip, load_lpips
    from .pixels import PixelScorer

    check(settings)
    scorers: tuple[Scorer, ...] = (PixelScorer(device), load_clip(settings, device))
    if settings.perceptual in ("clip", "none"):  # the CLIP scorer has it from the same pass, or nobody
        return scorers
    return (*scorers, load_lpips(settings.perceptual, device))

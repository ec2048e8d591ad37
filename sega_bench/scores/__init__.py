"""Scorers measure what an edit did to an image, and name their backbone, weights and preprocessing.

`check` and `build` are here; `score` is in :mod:`sega_bench.scores.scoring`. `build` imports torch and the
networks' libraries; nothing before it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .settings import ScoreSettings, check, score_names

if TYPE_CHECKING:
    import torch

    from sega_bench.sega.checkpoints.checkpoint import SafetyChecker

    from .scoring import Scorer

__all__ = ["ScoreSettings", "build", "check", "provenance", "score_names"]


def build(
    settings: ScoreSettings, device: torch.device, safety_checker: SafetyChecker | None = None
) -> tuple[Scorer, ...]:
    """Load the scorers that the settings name.

    Args:
        settings: already checked by `check`.
        device: of the scorers.
        safety_checker: the checkpoint's, which adds the score `nsfw`; None: not scored.

    Raises:
        UserError: weights are not available.
    """
    from .loading import load_clip, load_lpips
    from .pixels import PixelScorer
    from .safety import load_safety_checker

    scorers: list[Scorer] = [PixelScorer(device), load_clip(settings, device)]
    if settings.perceptual not in ("clip", "none"):  # for "clip", the CLIP scorer computes it in its own pass
        scorers.append(load_lpips(settings.perceptual, device))
    if settings.attributes is not None:
        from .attributes import load_attributes

        scorers.append(load_attributes(device))
    if settings.dino is not None:
        from .dino import load_dino

        scorers.append(load_dino(settings.dino, device))
    if safety_checker is not None:
        scorers.append(load_safety_checker(safety_checker, device))
    return tuple(scorers)


def provenance(scorers: Sequence[Scorer]) -> dict[str, dict[str, str]]:
    """The origin of all scores of a sweep, by family: backbone, weights id, preprocessing."""
    from .locality import PROVENANCE

    families = [scorer.provenance for scorer in scorers] + [PROVENANCE]
    return {name: dict(source) for family in families for name, source in family.items()}

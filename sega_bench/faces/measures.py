"""Measures of an edit for the model card."""

from __future__ import annotations

from dataclasses import dataclass

from sega_bench.stats.intervals import wilson


@dataclass(frozen=True)
class Share:
    """A proportion with its counts."""

    hits: int
    of: int

    @property
    def value(self) -> float:
        """The proportion; NaN if there are no observations."""
        return self.hits / self.of if self.of else float("nan")

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval; (0, 1) if there are no observations."""
        return wilson(self.hits, self.of) if self.of else (0.0, 1.0)


@dataclass(frozen=True)
class EditEffect:
    """The effect of one edit on a set of images, for one concept.

    Args:
        before, after: share of images in which the classifier finds the concept.
        gained: share of the images without the concept that have it after the edit.
        kept: agreement on the yes/no attributes that were not edited.
        colors: agreement on hair colour and background.
        clip_gain: change of the cosine to the concept's text: mean, and its bootstrap interval.
        changed: share of pixels that changed by more than 16 of 255.
    """

    before: Share
    after: Share
    gained: Share
    kept: Share
    colors: Share
    clip_gain: tuple[float, float, float]
    changed: float

"""What the evaluation measures of an edit, as the model card shows it."""

from __future__ import annotations

from dataclasses import dataclass

from sega_bench.stats.intervals import wilson


@dataclass(frozen=True)
class Share:
    """A proportion with the counts behind it."""

    hits: int
    of: int

    @property
    def value(self) -> float:
        """The proportion; NaN of nothing."""
        return self.hits / self.of if self.of else float("nan")

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval; of nothing, all that it may be."""
        return wilson(self.hits, self.of) if self.of else (0.0, 1.0)


@dataclass(frozen=True)
class Outcome:
    """What one edit did to a set of pictures, for one concept.

    `gained`: of the pictures that lacked the concept, those that have it after the edit. `kept`: agreement
    on the yes/no attributes that were not edited; `colors`: agreement on hair colour and background.
    `clip_gain`: change of the cosine to the concept's text, with a bootstrap interval. `changed`: share of
    pixels that moved by more than 16 of 255.
    """

    before: Share
    after: Share
    gained: Share
    kept: Share
    colors: Share
    clip_gain: tuple[float, float, float]
    changed: float

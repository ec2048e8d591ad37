"""Success of an edit, from the concepts that its reference and its image show; any classifier will do."""

from __future__ import annotations

import math
from collections.abc import Sequence


def success(
    name: str, wanted: Sequence[bool], before: Sequence[bool], after: Sequence[bool]
) -> dict[str, float]:
    """Success of each of K concepts, `name_1..K`, and their mean, `name`.

    A concept's success is 1 if the edited image is as wanted and 0 if not. It is NaN, and left out of the
    mean, if the reference is as wanted already: leaving an image alone is no success of the edit.

    Args:
        name: of the score.
        wanted: for each concept, True if the image should show it, False (a reversed edit) if not.
        before: whether the reference shows each concept.
        after: whether the edited image shows each concept.
    """
    successes = [
        math.nan if was == goal else float(now == goal)
        for goal, was, now in zip(wanted, before, after, strict=True)
    ]
    defined = [value for value in successes if not math.isnan(value)]
    mean = sum(defined) / len(defined) if defined else math.nan
    return {name: mean} | {f"{name}_{k}": value for k, value in enumerate(successes, start=1)}

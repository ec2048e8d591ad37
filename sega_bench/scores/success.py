"""Did the edit do what was asked? The rule, whoever judges what a picture shows."""

from __future__ import annotations

import math
from collections.abc import Sequence


def success(
    name: str, wanted: Sequence[bool], before: Sequence[bool], after: Sequence[bool]
) -> dict[str, float]:
    """`name_1..K`: 1 where the edited picture is as wanted, 0 where it is not; `name` their mean.

    NaN where the reference was so already: the edit had nothing to do, and what it left alone is not its
    success.

    Args:
        name: of the score.
        wanted: for each of K concepts, whether it is to be shown or, reversed, not to be.
        before: which of them the reference shows.
        after: which of them the edited picture shows.
    """
    each = [
        math.nan if was == goal else float(now == goal)
        for goal, was, now in zip(wanted, before, after, strict=True)
    ]
    judged = [value for value in each if not math.isnan(value)]
    mean = sum(judged) / len(judged) if judged else math.nan
    return {name: mean} | {f"{name}_{k}": value for k, value in enumerate(each, start=1)}

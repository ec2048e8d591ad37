"""How sure a proportion is."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""The standard normal's 97.5 % quantile."""


def wilson(successes: float, n: float) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927), never outside 0..1; NaN of nothing.

    Successes may be a fraction: of trials that are each the share of several things that belong together.
    """
    if n == 0:
        return math.nan, math.nan
    z2 = Z_95**2
    centre = (successes + z2 / 2) / (n + z2)
    half = Z_95 / (n + z2) * math.sqrt(successes * (n - successes) / n + z2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)

"""How a summary's rows are grouped and what each group is described by."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

ALL = "all"
"""``concepts`` of a summary's pooled rows. Elsewhere the column is a JSON list, never this word."""

STATISTICS = ("mean", "sd", "low", "high", "n")
COUNTS = ("n", "n_not_scored", "n_failed", "n_to_do")
ENDS = ("", "_low", "_high")


def concept_sets(edited: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """All edited rows, then those of each concept set."""
    yield ALL, edited
    codes, names = pd.factorize(edited["concepts"])
    for code, concepts in enumerate(names):
        yield str(concepts), edited[codes == code]

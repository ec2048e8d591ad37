"""The best setting of a sweep's concept sets: the knee of the front, or what the folder's study found."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from sega_bench.analysis.groups import ALL
from sega_bench.analysis.values import point, point_of

Found = Mapping[str, Any] | None
"""What a study found (:meth:`sega_bench.store.Store.answers`): empty while it has not, None of a sweep."""

Place = Mapping[str, Hashable]
"""The values of some settings, as :func:`sega_bench.analysis.values.point` has them."""


def place(answers: Mapping[str, Any], concepts: str) -> Place | None:
    """The setting that a study found best for a concept set, or for all; None if there is none.

    Args:
        answers: what it found.
        concepts: the set as JSON, or "all"; where a study has one set, these are the same.
    """
    is_only = len(answers.get("concepts", ())) == 1
    texts = None if concepts == ALL or is_only else json.loads(concepts)
    for one in answers.get("best", ()):
        if one["concepts"] == texts:
            return {name: point(value) for name, value in one["settings"].items()}
    return None


def at(rows: Iterable[Mapping[Any, Any]], wanted: Place | None) -> int | None:
    """The number of the first row that has these values, of the settings that it has; None if none has."""
    if wanted is None:
        return None
    return next((i for i, row in enumerate(rows) if _agrees(row, wanted)), None)


def _agrees(row: Mapping[Any, Any], wanted: Place) -> bool:
    return all(point_of(row, name) == value for name, value in wanted.items() if name in row)

"""The best setting of a sweep's concept sets: the knee of the front, or what the folder's study found."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from sega_bench.analysis.groups import ALL
from sega_bench.analysis.values import row_value, setting_value

StudyAnswers = Mapping[str, Any] | None
"""A study's answers (:meth:`sega_bench.store.Store.answers`): empty until it finishes, None for a sweep."""

SettingValues = Mapping[str, Hashable]
"""Values by setting, made comparable by :func:`sega_bench.analysis.values.setting_value`."""


def recommended_setting(answers: Mapping[str, Any], concepts: str) -> SettingValues | None:
    """The setting that a study recommends for a concept set, or for all; None if it recommends none.

    Args:
        answers: the study's answers.
        concepts: the set as JSON, or "all"; a study of a single set has one answer for both.
    """
    is_only = len(answers.get("concepts", ())) == 1
    texts = None if concepts == ALL or is_only else json.loads(concepts)
    for one in answers.get("best", ()):
        if one["concepts"] == texts:
            return {name: setting_value(value) for name, value in one["settings"].items()}
    return None


def find_row(rows: Iterable[Mapping[Any, Any]], wanted: SettingValues | None) -> int | None:
    """The index of the first row with these values, compared over the settings that the row has."""
    if wanted is None:
        return None
    return next((i for i, row in enumerate(rows) if _agrees(row, wanted)), None)


def _agrees(row: Mapping[Any, Any], wanted: SettingValues) -> bool:
    return all(row_value(row, name) == value for name, value in wanted.items() if name in row)

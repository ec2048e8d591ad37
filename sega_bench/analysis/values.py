"""A sweep's values made comparable and written: 5 equals 5.0, lists are tuples, NaN is None."""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from sega_bench.analysis.labels import concept_labels, format_value
from sega_bench.cell import EDIT_SETTINGS, READS, collapse

_Item = TypeVar("_Item")


def ordered_values(given: Sequence[Any], points: Iterable[Hashable]) -> list[Hashable]:
    """An axis' values in configured order, including those without a row, then any others."""
    return list(dict.fromkeys(map(setting_value, given)) | dict.fromkeys(points))


def setting_value(value: Any) -> Hashable:
    """A setting's value as it is compared: numbers are floats, lists are tuples, NaN is None."""
    if isinstance(value, list):
        collapsed = collapse([setting_value(item) for item in value])
        return tuple(collapsed) if isinstance(collapsed, list) else collapsed
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if value is None or isinstance(value, str):
        return value
    return None if pd.isna(value) else float(value)


def row_value(row: Mapping[Any, Any], name: str) -> Hashable:
    """The comparable value of a row's setting, which is JSON text where concepts differ."""
    value = row[name]
    return setting_value(json.loads(value) if name in EDIT_SETTINGS and isinstance(value, str) else value)


def label_concepts(edited: Sequence[Mapping[str, Any]], settings: Sequence[str]) -> list[str]:
    """A label for each row's concepts; where texts are equal, with the settings in which they differ.

    A setting that the row's method does not read is not part of the label.
    """
    values: dict[tuple[str, str], set[Hashable]] = {}
    read = [[name for name in settings if name in READS[row["method"]]] for row in edited]
    for row, names in zip(edited, read, strict=True):
        for name in names:
            values.setdefault((row["concepts"], name), set()).add(row_value(row, name))
    texts = concept_labels({row["concepts"] for row in edited})
    labels = []
    for row, names in zip(edited, read, strict=True):
        own = [name for name in names if len(values[row["concepts"], name]) > 1]
        named = "".join(f", {name} {format_values(row_value(row, name))}" for name in own)
        labels.append(texts[row["concepts"]] + named)
    return labels


def concept_label_column(frame: pd.DataFrame, axes: Collection[str]) -> pd.Series[Any]:
    """Each row's concept label (:func:`label_concepts`); null for a reference."""
    own = [name for name in EDIT_SETTINGS if name not in axes]
    numbers = frame.groupby(["concepts", *own], sort=False, dropna=False).ngroup().to_numpy()
    firsts = np.unique(numbers, return_index=True)[1]
    kinds = frame.iloc[firsts].to_dict("records")
    edited = [{str(k): v for k, v in kind.items()} for kind in kinds if not kind["is_reference"]]
    labels = iter(label_concepts(edited, own))
    each = [None if kind["is_reference"] else next(labels) for kind in kinds]
    return pd.Series([each[number] for number in numbers], index=frame.index, dtype="object")


def format_values(value: Hashable) -> str:
    """A comparable value as text."""
    return ", ".join(map(format_value, value)) if isinstance(value, tuple) else format_value(value)


def evenly_spaced(items: Sequence[_Item], most: int) -> Sequence[_Item]:
    """All items, or ``most`` of them evenly spaced, including the first and the last."""
    if len(items) <= most:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]

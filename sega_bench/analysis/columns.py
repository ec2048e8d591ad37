"""Gather rows by column while they are read, so that a table never exists as one dict per row as well.

A setting has few distinct values however many rows there are: it is kept as indices into a list of them.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from sega_bench.cell import EDIT_SETTINGS, collapse
from sega_bench.store import EXECUTION_COLUMNS, OUTCOME_COLUMNS, SETTING_COLUMNS, columns

Row = Mapping[str, Any]

_DTYPES = {"is_reference": "bool", "reverse_editing_direction": "boolean"}
_DTYPES |= dict.fromkeys(["seed", "num_inference_steps", "height", "width", "unet_evals"], "Int64")
_DTYPES |= dict.fromkeys(["edit_warmup_steps", "edit_cooldown_steps"], "Int64")
_DTYPES |= dict.fromkeys(["key", "reference_key", "model", "prompt", "negative_prompt", "scheduler"], "str")
_DTYPES |= dict.fromkeys(
    ["replay", "method", *OUTCOME_COLUMNS, "worker", "device", "dtype", "versions"], "str"
)
"""Every other column is float64."""

_UNLIKE = ("key", "image", "image_sha256")
"""Texts that differ in nearly every row."""

_AT_ONCE = 1000
_KNOWN = frozenset((*SETTING_COLUMNS, *OUTCOME_COLUMNS, *EXECUTION_COLUMNS))


def to_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """The store's rows, read one at a time, as a table with the documented columns and dtypes."""
    gathered = _Columns()
    for row in rows:
        gathered.add(row)
    frame = gathered.frame()
    frame.loc[~frame["is_reference"] & frame["method"].isna(), "method"] = (
        "sega"  # older folders lack the column
    )
    return frame


class _Columns:
    """Columns that grow row by row; rows need not have the same names."""

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}
        self._waiting: list[Row] = []
        self._count = 0

    def add(self, row: Row) -> None:
        self._waiting.append(row)
        if len(self._waiting) == _AT_ONCE:
            self._gather()

    def _gather(self) -> None:
        rows, self._waiting = self._waiting, []
        for name in dict.fromkeys(name for row in rows for name in row):
            if name not in self._columns:
                self._columns[name] = _new(name)
                self._columns[name].extend([None] * self._count)
        for name, column in self._columns.items():
            values = [row.get(name) for row in rows]
            if isinstance(column, _Numbers) and any(isinstance(value, list) for value in values):
                self._columns[name] = column = column.listed()
            column.extend(values)
        self._count += len(rows)

    def frame(self) -> pd.DataFrame:
        """The table. Gathered values are released column by column while it is built."""
        self._gather()
        scores = [name for name in self._columns if name not in _KNOWN]
        nothing = range(self._count)
        made = {}
        for name in columns(scores):
            column = self._columns.pop(name, None)
            made[name] = column.series(name) if column else _typed(name, [None for _ in nothing])
        return pd.DataFrame(made, copy=False)


class _Column(Protocol):
    def extend(self, values: Sequence[Any]) -> None: ...

    def series(self, name: str) -> pd.Series[Any]: ...


def _new(name: str) -> _Column:
    if name in _UNLIKE:
        return _Texts()
    return _Few() if name in _KNOWN and name != "seconds" else _Numbers()


class _Texts:
    def __init__(self) -> None:
        self._parts: list[pa.Array] = []

    def extend(self, values: Sequence[Any]) -> None:
        self._parts.append(pa.array(map(_encodable, values), pa.large_string()))

    def series(self, name: str) -> pd.Series[Any]:
        return pd.Series(pa.chunked_array(self._parts, pa.large_string()).combine_chunks().to_pandas())


class _Numbers:
    def __init__(self) -> None:
        self._values = array("d")  # one growing block: many small ones would fragment the heap

    def extend(self, values: Sequence[Any]) -> None:
        self._values.frombytes(np.array(values, dtype=np.float64).tobytes())  # None becomes NaN

    def listed(self) -> _Few:
        """A copy in which values may be lists."""
        few = _Few()
        few.extend([None if np.isnan(value) else value for value in self._values])
        return few

    def series(self, name: str) -> pd.Series[Any]:
        return pd.Series(np.frombuffer(self._values, dtype=np.float64), copy=False)


class _Few:
    def __init__(self) -> None:
        self._values: list[Any] = []
        self._places: dict[tuple[type, Any], int] = {}  # True, 1 and 1.0 are equal, but not the same
        self._parts: list[NDArray[Any]] = []

    def extend(self, values: Sequence[Any]) -> None:
        known = self._places
        places = []
        for value in values:
            kind = value.__class__
            label = (kind, json.dumps(value)) if kind is list else (kind, value)
            if label not in known:
                known[label] = len(known)
                self._values.append(value)
            places.append(known[label])
        self._parts.append(np.array(places, dtype=np.min_scalar_type(len(known))))

    def series(self, name: str) -> pd.Series[Any]:
        places = np.concatenate([np.empty(0, dtype=np.uint8), *self._parts])
        return _typed(name, self._values).take(places).reset_index(drop=True)


def _typed(name: str, values: list[Any]) -> pd.Series[Any]:
    """A column's values in its dtype; JSON texts if any of them is a list."""
    if name in EDIT_SETTINGS:
        values = [collapse(value) for value in values]
    dtype = _DTYPES.get(name, "float64")
    if name == "concepts" or any(isinstance(value, list) for value in values):
        values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
        dtype = "str"
    if dtype == "str":
        values = list(map(_encodable, values))
    return pd.Series(values, dtype=dtype)


def _encodable(text: str | None) -> str | None:
    """The text without lone surrogates (from a mangled command line), which Parquet cannot encode."""
    return text and text.encode("utf-8", "replace").decode()

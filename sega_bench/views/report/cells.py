"""The sweep's rows as the page reads them: by column, with texts and settings as indices into value lists."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from sega_bench.analysis.values import concept_label_column, ordered_values, row_value
from sega_bench.cell import EDIT_SETTINGS
from sega_bench.store import EXECUTION_COLUMNS, OUTCOME_COLUMNS, SETTING_COLUMNS

_ALWAYS = ("prompt", "seed", "concepts", "concept", "status", "error")
"""Columns that the page needs even if every row agrees."""

_OF_EDITS = (*EDIT_SETTINGS, "edit_momentum_scale", "edit_mom_beta", "method", "replay")
_LARGEST_INTEGER = 2**53
"""The largest integer that JavaScript represents exactly; larger ones are sent as text."""


class Cells:
    """All rows of a table: the values that all share, and the rest in parts.

    Args:
        frame: as :func:`sega_bench.analysis.summary.load` gives it.
        axes: the plan's.
        images: keys of the images that can be shown.

    Attributes:
        constants: the settings that are the same in every row (of an edit's, in every edited row).
        values: for each other setting or text its values; a row's part holds places in this list, -1 for
            null. Those of an axis are in the order in which they were given, null among them if it was.
        scores: the columns of numbers. A score that is a text is one of ``values``.
    """

    def __init__(self, frame: pd.DataFrame, axes: Mapping[str, Sequence[Any]], images: set[str]) -> None:
        self._frame, self._images = frame, images
        self.constants: dict[str, Any] = {}
        self.values: dict[str, list[Hashable]] = {}
        self._codes: dict[str, np.ndarray[Any, Any]] = {}
        known = {*SETTING_COLUMNS, *OUTCOME_COLUMNS, *EXECUTION_COLUMNS}
        taken = [name for name in frame.columns if name not in known and frame[name].notna().any()]
        texts = [name for name in taken if not pd.api.types.is_numeric_dtype(frame[name])]
        self.scores = [*(name for name in taken if name not in texts), "unet_evals", "seconds"]
        edited = ~frame["is_reference"]
        for name in SETTING_COLUMNS[3:]:
            column = frame[name].where(edited) if name == "concepts" else frame[name]
            self._add(name, column, axes.get(name), edited if name in _OF_EDITS else slice(None))
        self._add("concept", concept_label_column(frame, axes), None, slice(None))
        for name in ("status", "error", *texts):
            self._add(name, frame[name], None, slice(None))

    def _add(self, name: str, column: pd.Series[Any], axis: Sequence[Any] | None, where: Any) -> None:
        numbers, uniques = pd.factorize(column, use_na_sentinel=True)
        points = [_parsed(name, value) for value in uniques]
        values = ordered_values(axis or (), points)
        at = {value: i for i, value in enumerate(values)}
        places = [at[value] for value in points] + [at.get(None, -1)]  # -1 is the last: null
        codes = np.array(places, dtype=np.min_scalar_type(-len(values) - 1))[numbers]
        if axis is None and name not in _ALWAYS and len(set(codes[where])) <= 1:
            code = codes[where][0] if len(codes[where]) else -1
            self.constants[name] = _sent(values[code]) if code >= 0 else None
        else:
            self.values[name] = [_sent(value) for value in values]
            self._codes[name] = codes

    def places(self, name: str, column: pd.Series[Any]) -> list[int]:
        """The indices of another table's setting values in :attr:`values`; -1 for null."""
        at = {value: i for i, value in enumerate(self.values[name])}
        known = (_sent(_parsed(name, value)) if _is_known(value) else None for value in column)
        return [at.get(value, -1) for value in known]

    def parts(self, size: int) -> Iterator[dict[str, Any]]:
        """The rows in parts of ``size``: columns by name, with what the page needs to find an image.

        ``reference`` is the reference's row, -1 if it never ran. ``image`` is the key of the image, null if
        there is none to show.
        """
        frame = self._frame
        numbers = {frame["key"].iloc[i]: int(i) for i in np.flatnonzero(frame["is_reference"])}
        for start in range(0, len(frame), size):
            rows = frame.iloc[start : start + size]
            stems = [PurePosixPath(name).stem if isinstance(name, str) else None for name in rows["image"]]
            part: dict[str, Any] = {
                "key": list(rows["key"]),
                "reference": [numbers.get(key, -1) for key in rows["reference_key"]],
                "image": [stem if stem in self._images else None for stem in stems],
            }
            part |= {name: codes[start : start + size].tolist() for name, codes in self._codes.items()}
            part |= {name: [rounded(value) for value in rows[name]] for name in self.scores}
            yield part


def rounded(value: Any) -> float | None:
    """A number to five significant digits, more than its precision; None for NaN."""
    return None if pd.isna(value) else float(f"{float(value):.5g}")


def _parsed(name: str, value: Any) -> Hashable:
    if name == "concepts":
        return tuple(json.loads(value))
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    return row_value({name: value}, name)


def _is_known(value: Any) -> bool:
    return not (value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)))


def _sent(value: Hashable) -> Hashable:
    """The value as JSON can carry it; see :data:`_LARGEST_INTEGER`."""
    if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        return str(value)
    return value

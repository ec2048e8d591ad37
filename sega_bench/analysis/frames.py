"""The sweep's folder as a data frame, one row for each cell, and what tells one state of it from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from sega_bench.analysis.columns import to_frame
from sega_bench.errors import UserError
from sega_bench.store import Store
from sega_bench.system import gc_control

_Row = dict[str, Any]


@gc_control.kept()
def load(folder: str | Path) -> pd.DataFrame:
    """The rows of the present plan's cells, in the plan's order; cells that were never run are absent.

    A setting that each concept has for itself is a plain value where every row's concepts agree. If any row
    needs a list, the whole column is JSON text; ``concepts`` is JSON text always. ``attrs`` holds the sweep's
    ``name``, where its ``scores`` come from, and its ``folder``.

    Raises:
        UserError: the folder holds no sweep, or one of another version.
    """
    plan, rows = _read(Store(Path(folder)))
    return _frame(plan, rows, folder)


@gc_control.kept()
def digest(store: Store) -> str:
    """What a folder's views are made of, the plan, its cells' rows and a study's answers, as 64 hex digits.

    A view that carries the digest of its folder, shows it as it is.

    Raises:
        UserError: the folder holds no sweep, or one of another version.
    """
    seen = _Seen(*_read(store), store.answers())
    for _ in seen:
        pass
    return seen.digest


@gc_control.kept()
def load_with_digest(store: Store) -> tuple[pd.DataFrame, str]:
    """:func:`load` and :func:`digest` in one reading."""
    plan, rows = _read(store)
    seen = _Seen(plan, rows, store.answers())
    return _frame(plan, seen, store.root), seen.digest


def _read(store: Store) -> tuple[dict[str, Any], Iterator[_Row]]:
    """The plan, and the present rows of its cells."""
    plan = store.read_plan()
    if plan is None:
        raise UserError(
            f"{store.root} holds no sweep (no plan.json): name a folder such as outputs/thresholds"
        )
    return plan, store.present(plan["keys"])


def _frame(plan: dict[str, Any], rows: Iterable[_Row], folder: str | Path) -> pd.DataFrame:
    frame = to_frame(rows)
    frame.attrs = {"name": plan["name"], "scores": plan["scores"], "folder": str(folder)}
    return frame


class _Seen:
    """Passes rows on, and has their digest once all of them went through."""

    def __init__(self, plan: dict[str, Any], rows: Iterator[_Row], answers: dict[str, Any] | None) -> None:
        self._rows, self._hash = rows, hashlib.sha256(json.dumps(plan).encode())
        self._hash.update(json.dumps(answers).encode() if answers else b"")

    def __iter__(self) -> Iterator[_Row]:
        for row in self._rows:
            self._hash.update(json.dumps(row).encode())
            yield row

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

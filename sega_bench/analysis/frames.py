"""The sweep's folder as a data frame, one row per cell, and the digest that identifies its state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from sega_bench.analysis.best import StudyAnswers
from sega_bench.analysis.columns import to_frame
from sega_bench.errors import UserError
from sega_bench.store import Store
from sega_bench.system import gc_control

_Row = dict[str, Any]


@gc_control.disabled()
def load(folder: str | Path) -> pd.DataFrame:
    """One row for each cell of the present plan, in the plan's order; cells that never ran are absent.

    A per-concept setting is a plain value where the concepts of every row agree. If any row needs a list, the
    whole column is JSON text; ``concepts`` always is. ``attrs`` holds the sweep's ``name``, the provenance of
    its ``scores``, and its ``folder``.

    Raises:
        UserError: the folder holds no sweep, or one written by another version.
    """
    store = Store(Path(folder))
    plan = _plan(store)
    return _to_frame(plan, store.rows_for(plan["keys"]), folder)


@gc_control.disabled()
def read(store: Store) -> tuple[dict[str, Any], pd.DataFrame, str, StudyAnswers]:
    """A folder's plan, its rows (:func:`load`), the :func:`digest` of both, and a study's answers.

    Raises:
        UserError: as :func:`load`.
    """
    plan = _plan(store)
    answers = store.read_answers()
    rows = _HashedRows(plan, store.rows_for(plan["keys"]), answers)
    frame = _to_frame(plan, rows, store.root)  # reads all rows: only then is their digest known
    return plan, frame, rows.digest, answers


@gc_control.disabled()
def digest(store: Store) -> str:
    """Identifies what a folder's views show: the plan, its cells' rows and a study's answers; 64 hex digits.

    A view that carries the digest of its folder is up to date.

    Raises:
        UserError: as :func:`load`.
    """
    plan = _plan(store)
    rows = _HashedRows(plan, store.rows_for(plan["keys"]), store.read_answers())
    for _ in rows:
        pass
    return rows.digest


def _plan(store: Store) -> dict[str, Any]:
    plan = store.read_plan()
    if plan is None:
        raise UserError(
            f"{store.root} holds no sweep (no plan.json): name a folder such as outputs/thresholds"
        )
    return plan


def _to_frame(plan: dict[str, Any], rows: Iterable[_Row], folder: str | Path) -> pd.DataFrame:
    frame = to_frame(rows)
    frame.attrs = {"name": plan["name"], "scores": plan["scores"], "folder": str(folder)}
    return frame


class _HashedRows:
    """Passes rows on; ``digest`` is valid once all of them went through."""

    def __init__(self, plan: dict[str, Any], rows: Iterator[_Row], answers: StudyAnswers) -> None:
        self._rows, self._hash = rows, hashlib.sha256(json.dumps(plan).encode())
        self._hash.update(json.dumps(answers).encode() if answers else b"")

    def __iter__(self) -> Iterator[_Row]:
        for row in self._rows:
            self._hash.update(json.dumps(row).encode())
            yield row

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

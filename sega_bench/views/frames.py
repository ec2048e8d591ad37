"""The sweep's folder as a data frame, one row for each cell, and the tables' files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sega_bench import garbage
from sega_bench.cell import EDIT_SETTINGS
from sega_bench.errors import UserError
from sega_bench.store import EXECUTION_COLUMNS, OUTCOME_COLUMNS, SETTING_COLUMNS, Store, columns

_DTYPES = {"is_reference": "bool", "reverse_editing_direction": "boolean"}
_DTYPES |= dict.fromkeys(["seed", "num_inference_steps", "height", "width", "unet_evals"], "Int64")
_DTYPES |= dict.fromkeys(["edit_warmup_steps", "edit_cooldown_steps"], "Int64")
_DTYPES |= dict.fromkeys(["key", "reference_key", "model", "prompt", "negative_prompt", "scheduler"], "str")
_DTYPES |= dict.fromkeys(
    ["replay", "method", *OUTCOME_COLUMNS, "worker", "device", "dtype", "versions"], "str"
)
"""Every other column is float64."""


@garbage.kept()
def load(folder: str | Path) -> pd.DataFrame:
    """The rows of the present plan's cells, in the plan's order; cells that were never run are absent.

    A setting that each concept has for itself is a plain value where every row's concepts agree. If any row
    needs a list, the whole column is JSON text; ``concepts`` is JSON text always. ``attrs`` holds the sweep's
    ``name``, where its ``scores`` come from, and its ``folder``.

    Raises:
        UserError: the folder holds no sweep, or one of another version.
    """
    plan, rows = _read(Store(Path(folder)))
    frame = to_frame(rows)
    frame.attrs = {"name": plan["name"], "scores": plan["scores"], "folder": str(folder)}
    return frame


def _read(store: Store) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The plan, and the present rows of its cells."""
    plan = store.read_plan()
    if plan is None:
        raise UserError(
            f"{store.root} holds no sweep (no plan.json): name a folder such as outputs/thresholds"
        )
    rows = {row["key"]: row for row in store.rows()[0]}
    return plan, [rows[key] for key in plan["keys"] if key in rows]


@garbage.kept()
def digest(store: Store) -> str:
    """What a folder's views are made of, the plan and its cells' rows, as 64 hex digits.

    A view that carries the digest of its folder, shows it as it is.

    Raises:
        UserError: the folder holds no sweep, or one of another version.
    """
    return hashlib.sha256(json.dumps(_read(store)).encode()).hexdigest()


def shown(store: Store) -> str | None:
    """The digest that the folder's tables carry; None if one of them is not as it was written."""
    try:
        carried = pd.read_parquet(store.results_parquet).attrs
        is_whole = carried.get("csv") == _digest_of_csv(store)
    except (OSError, ValueError):  # it is not there, or is no table
        return None
    return str(carried["digest"]) if is_whole and "digest" in carried else None


def _digest_of_csv(store: Store) -> str:
    files = (store.results_csv, store.summary_csv, store.claims_csv)
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def to_frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The store's rows as a table with the contract's columns, one dtype each."""
    known = {*SETTING_COLUMNS, *OUTCOME_COLUMNS, *EXECUTION_COLUMNS}
    scores = [name for row in rows for name in row if name not in known]
    frame = pd.DataFrame({name: _column(name, [row.get(name) for row in rows]) for name in columns(scores)})
    frame.loc[~frame["is_reference"] & frame["method"].isna(), "method"] = "sega"  # the column is the younger
    return frame


def _column(name: str, values: list[Any]) -> pd.Series[Any]:
    if name in EDIT_SETTINGS:
        values = [_agreed(value) for value in values]
    dtype = _DTYPES.get(name, "float64")
    if name == "concepts" or any(isinstance(value, list) for value in values):
        values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
        dtype = "str"
    if dtype == "str":
        # A lone surrogate (a mangled command line) has no UTF-8, and Parquet would refuse the table for it.
        values = [value and value.encode("utf-8", "replace").decode() for value in values]
    return pd.Series(values, dtype=dtype)


def _agreed(value: Any) -> Any:
    """One value for all concepts where they agree, else their list."""
    if isinstance(value, list) and all(item == value[0] for item in value):
        return value[0]
    return value


def inert(table: pd.DataFrame) -> pd.DataFrame:
    """Without anything that a spreadsheet executes; Excel and its like do so in quotes too."""
    texts = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    return table.assign(**{str(name): table[name].map(_inert_text, na_action="ignore") for name in texts})


def _inert_text(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_results(
    store: Store,
    frame: pd.DataFrame,
    summary: pd.DataFrame,
    claims: pd.DataFrame,
    digest: str | None = None,
) -> None:
    """Write results.csv, summary.csv, claims.csv and results.parquet (``attrs`` in its schema's metadata).

    In the CSV files a text that a spreadsheet would take for a formula, such as ``=1+1``, has an apostrophe
    before it.

    Args:
        store: the folder.
        frame: as :func:`load` gives it.
        summary: as :func:`sega_bench.views.tables.summarise` gives it.
        claims: as :func:`sega_bench.views.claims.claims` gives it.
        digest: of what they show, for :func:`shown`; the last file that is written carries it.
    """
    files = ((store.results_csv, frame), (store.summary_csv, summary), (store.claims_csv, claims))
    for path, table in files:
        # Quoted texts, because a bare carriage return in a prompt would end a CSV row.
        text = inert(table).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        store.write_text(path, text)
    carrier = frame.copy(deep=False)
    tables = {"digest": digest, "csv": _digest_of_csv(store)}
    told = {name: value for name, value in frame.attrs.items() if name != "folder"}  # it may be moved
    carrier.attrs = told | (tables if digest else {})
    parquet = io.BytesIO()
    carrier.to_parquet(parquet, index=False)
    store.write_bytes(store.results_parquet, parquet.getvalue())

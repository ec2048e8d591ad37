"""The tables' files: results, summary and claims, and whether they are as they were written.

Written and checked in parts, so that a long table is not there a second time as text.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sega_bench.store import Store

_ROWS_OF_TEXT = 1_000
_ROWS_OF_GROUP = 10_000
"""In results.parquet."""

_BYTES_AT_ONCE = 1 << 20
_ATTRIBUTES = b"PANDAS_ATTRS"
"""Where pandas keeps a frame's ``attrs`` in a schema's metadata."""


def shown(store: Store) -> str | None:
    """The digest that the folder's tables carry; None if one of them is not as it was written."""
    try:
        with pq.ParquetFile(store.results_parquet) as file:
            carried = json.loads((file.schema_arrow.metadata or {}).get(_ATTRIBUTES, b"{}"))
            for group in range(file.num_row_groups):  # or it does not tell that it is damaged
                file.read_row_group(group)
        is_whole = carried.get("csv") == _digest_of_csv(store)
    except (OSError, ValueError):  # it is not there, or is no table
        return None
    return str(carried["digest"]) if is_whole and "digest" in carried else None


def _digest_of_csv(store: Store) -> str:
    found = hashlib.sha256()
    for path in (store.results_csv, store.summary_csv, store.claims_csv):
        with open(path, "rb") as file:
            while data := file.read(_BYTES_AT_ONCE):
                found.update(data)
    return found.hexdigest()


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
        frame: as :func:`sega_bench.analysis.summary.load` gives it.
        summary: as :func:`sega_bench.analysis.summary.summarise` gives it.
        claims: as :func:`sega_bench.analysis.claims.claims` gives it.
        digest: of what they show, for :func:`shown`; the last file that is written carries it.
    """
    files = ((store.results_csv, frame), (store.summary_csv, summary), (store.claims_csv, claims))
    for path, table in files:
        _write_csv(store, path, table)
    tables = {"digest": digest, "csv": _digest_of_csv(store)}
    told = {name: value for name, value in frame.attrs.items() if name != "folder"}  # it may be moved
    _write_parquet(store, frame, told | (tables if digest else {}))


def _write_csv(store: Store, path: Path, table: pd.DataFrame) -> None:
    with store.replacing(path) as file:
        for i, part in enumerate(_parts(table, _ROWS_OF_TEXT)):
            # Quoted texts, because a bare carriage return in a prompt would end a CSV row.
            text = inert(part).to_csv(
                index=False, header=i == 0, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"
            )
            file.write(text.encode())


def _write_parquet(store: Store, frame: pd.DataFrame, attrs: dict[Hashable, Any]) -> None:
    carrier = frame.iloc[:0]
    carrier.attrs = attrs
    schema = pa.Schema.from_pandas(carrier, preserve_index=False)
    schema = schema.with_metadata({**(schema.metadata or {}), _ATTRIBUTES: json.dumps(attrs).encode()})
    with store.replacing(store.results_parquet) as file, pq.ParquetWriter(file, schema) as writer:
        for part in _parts(frame, _ROWS_OF_GROUP):
            writer.write_table(pa.Table.from_pandas(part, schema, preserve_index=False))


def _parts(table: pd.DataFrame, size: int) -> Iterator[pd.DataFrame]:
    """So many rows at a time; of no rows one part, for the names of its columns."""
    for start in range(0, max(1, len(table)), size):
        yield table.iloc[start : start + size]

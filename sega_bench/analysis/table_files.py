"""The table files of a folder: results, summary and claims, written and checked for damage.

Both work in parts, so that a long table is never held a second time as text.
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

from sega_bench.analysis.results import Results
from sega_bench.store import Store

_ROWS_OF_TEXT = 1_000
_ROWS_OF_GROUP = 10_000
"""In results.parquet."""

_BYTES_AT_ONCE = 1 << 20
_ATTRIBUTES = b"PANDAS_ATTRS"
"""Where pandas keeps a frame's ``attrs`` in a schema's metadata."""


def read_digest(store: Store) -> str | None:
    """The digest that the folder's tables carry; None if any of them is missing or was changed."""
    try:
        with pq.ParquetFile(store.results_parquet) as file:
            carried = json.loads((file.schema_arrow.metadata or {}).get(_ATTRIBUTES, b"{}"))
            for group in range(file.num_row_groups):  # the only way to notice a damaged group
                file.read_row_group(group)
        is_whole = carried.get("csv") == _digest_of_csv(store)
    except (OSError, ValueError):  # missing, or not a Parquet file
        return None
    return str(carried["digest"]) if is_whole and "digest" in carried else None


def _digest_of_csv(store: Store) -> str:
    hashed = hashlib.sha256()
    for path in (store.results_csv, store.summary_csv, store.claims_csv):
        with open(path, "rb") as file:
            while data := file.read(_BYTES_AT_ONCE):
                hashed.update(data)
    return hashed.hexdigest()


def inert(table: pd.DataFrame) -> pd.DataFrame:
    """The table without texts that a spreadsheet would execute; Excel executes quoted ones too."""
    texts = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    return table.assign(**{str(name): table[name].map(_inert_text, na_action="ignore") for name in texts})


def _inert_text(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_tables(results: Results) -> None:
    """Write results.csv, summary.csv, claims.csv and results.parquet.

    results.parquet is written last: its schema's metadata carries the digest (:func:`read_digest`) and the
    hash of the CSV files. In the CSV files an apostrophe precedes a text that a spreadsheet would take for a
    formula, such as ``=1+1``.
    """
    store, frame = results.store, results.frame
    files = {
        store.results_csv: frame,
        store.summary_csv: results.summary,
        store.claims_csv: results.claims,
    }
    for path, table in files.items():
        _write_csv(store, path, table)
    attrs = {name: value for name, value in frame.attrs.items() if name != "folder"}  # folders are moved
    _write_parquet(store, frame, attrs | {"digest": results.digest, "csv": _digest_of_csv(store)})


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
    """Slices of ``size`` rows; an empty table is one slice, for its header."""
    for start in range(0, max(1, len(table)), size):
        yield table.iloc[start : start + size]

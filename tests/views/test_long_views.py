"""A long sweep's views: the memory they need grows by the table, not by objects for each cell."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from unittest import mock

import pandas as pd
import pyarrow as pa
from PIL import Image
from support import sweeps

from sega_bench.analysis import frames, table_files
from sega_bench.analysis.results import Results
from sega_bench.store import Store
from sega_bench.views import write_all
from sega_bench.views.image_grid import write

SIZES = (4_000, 8_000)
"""Both have seeds enough for the simulation of simultaneous bounds to have its full, constant size."""

BYTES_A_CELL = 1_800
"""The table has 800 of them. A cell's row as a dict has 4,000."""


def write_views(store: Store) -> None:
    write_all.write_views(Results.read(store))


def peak(store: Store) -> int:
    """The most bytes that Python, NumPy and Arrow had at once while the views were made."""
    default = pa.default_memory_pool()
    arrow = pa.proxy_memory_pool(default)
    pa.set_memory_pool(arrow)
    tracemalloc.start()
    try:
        write_views(store)
        return tracemalloc.get_traced_memory()[1] + (arrow.max_memory() or 0)
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(default)


def test_memory_grows_by_the_table_alone(tmp_path: Path) -> None:
    small, large = (sweeps.large(tmp_path / str(size), size) for size in SIZES)
    blank = Image.new("RGB", (1, 1))  # how many sheets are drawn, and how large, does not depend on the cells
    with mock.patch.object(write, "draw", return_value=blank):
        peaks = [peak(store) for store in (small, large)]
    cells = [len((store.read_plan() or {})["keys"]) for store in (small, large)]
    assert (peaks[1] - peaks[0]) / (cells[1] - cells[0]) < BYTES_A_CELL
    assert table_files.read_digest(large) == frames.digest(large)
    pd.testing.assert_frame_equal(pd.read_parquet(large.results_parquet), frames.load(large.root))

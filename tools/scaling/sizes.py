"""Measure what a cell costs beside its UNet evaluations, with the rows and images of a finished sweep."""

from __future__ import annotations

import io
import os
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

from sega_bench.analysis import frames
from sega_bench.analysis.results import Results
from sega_bench.config import compose
from sega_bench.errors import UserError
from sega_bench.execution import resume
from sega_bench.planning import manifest, planner
from sega_bench.planning.planner import Plan
from sega_bench.sega.shards import split_into_shards
from sega_bench.sega.wave import count_timesteps
from sega_bench.store import Store
from sega_bench.store.records import settings
from sega_bench.views.report.building import write_report

SEEDS = (25, 100)
"""Numbers of seeds with which the plan is measured; the cost of a cell is the slope between the two."""

_WORKERS = 8


@dataclass(frozen=True)
class Cost:
    """Cost of one step of a run, per cell.

    Args:
        seconds: processor time.
        bytes: peak memory.
    """

    seconds: float
    bytes: float


@dataclass(frozen=True)
class Sizes:
    """Mean costs per cell.

    Args:
        unet_eval_seconds: time per UNet evaluation, scores and files included, from the records.
        image_bytes, record_bytes, parquet_bytes, plan_bytes: on disk.
        page_bytes: data that the report's page loads.
        costs: of planning, sharding, resuming and reading the table.
        measured_at: the two numbers of cells with which they were measured.
    """

    unet_eval_seconds: float
    image_bytes: float
    record_bytes: float
    parquet_bytes: float
    plan_bytes: float
    page_bytes: float
    costs: Mapping[str, Cost]
    measured_at: tuple[int, ...]


def measure(overrides: Sequence[str]) -> Sizes:
    """Plan a sweep with few and with more seeds, and resume it from folders in which all cells are done.

    Args:
        overrides: words of the sweep's command line; its folder holds the finished sweep.

    Raises:
        UserError: that folder is missing or holds no finished cell.
    """
    finished, rows = _finished(planner.plan(compose(*overrides)))
    few, many = (_Measured.at(overrides, count, finished, rows) for count in SEEDS)
    difference = many.cells - few.cells
    spent = [(row["seconds"], row["unet_evals"]) for row in rows]
    return Sizes(
        unet_eval_seconds=sum(s for s, _ in spent) / sum(n for _, n in spent),
        image_bytes=sum(os.path.getsize(finished.image_file(row["image"])) for row in rows) / len(rows),
        record_bytes=(many.records - few.records) / difference,
        parquet_bytes=(many.parquet - few.parquet) / difference,
        plan_bytes=(many.plan - few.plan) / difference,
        page_bytes=(many.page - few.page) / difference,
        costs={
            name: Cost((cost.seconds - few.costs[name].seconds) / difference, cost.bytes / many.cells)
            for name, cost in many.costs.items()
        },
        measured_at=(few.cells, many.cells),
    )


def _finished(plan: Plan) -> tuple[Store, list[dict[str, Any]]]:
    store = Store(Path(plan.config.output_dir) / plan.name)
    rows = [row for row in store.rows()[0] if row["status"] == "done"]
    if not rows or store.read_plan() is None:
        raise UserError(f"{store.root} holds no finished sweep: run it first, with the same words")
    return store, rows


@dataclass(frozen=True)
class _Measured:
    """A whole sweep: its number of cells, the bytes of its files and the costs of its steps."""

    cells: int
    records: int
    parquet: int
    plan: int
    page: int
    costs: Mapping[str, Cost]

    @classmethod
    def at(cls, overrides: Sequence[str], seeds: int, finished: Store, rows: Sequence[Any]) -> _Measured:
        config = compose(*overrides, f"seeds={seeds}")
        plan = planner.plan(config)
        limit = config.engine.wave_rows
        with TemporaryDirectory(dir=finished.root.parent) as folder:
            store = Store(Path(folder))
            _fill(store, plan, finished, rows)
            frame, table = frames.load(store.root), io.BytesIO()
            frame.to_parquet(table, index=False)
            write_report(Results.read(store))
            costs = {
                "plan": _cost(lambda: [cell.key for cell in planner.plan(config).cells]),
                "shards": _cost(lambda: split_into_shards(plan.cells, _WORKERS, limit, count_timesteps)),
                "resume": _cost(lambda: resume.compare(plan.cells, store, retry_failed=False)),
                "table": _cost(lambda: frames.load(store.root)),
            }
            return cls(
                cells=len(plan.cells),
                records=_bytes_in(store.records_dir),
                parquet=table.tell(),
                plan=os.path.getsize(store.plan_path),
                page=_bytes_in(store.report_dir / "data"),
                costs=costs,
            )


def _fill(store: Store, plan: Plan, finished: Store, rows: Sequence[dict[str, Any]]) -> None:
    """Write all cells of a plan, each with a row and an image of the finished sweep."""
    store.prepare()
    store.write_plan(manifest.document(plan, {}, (finished.read_plan() or {})["scores"]))
    copies = []
    for number, cell in enumerate(plan.cells):
        row = rows[number % len(rows)]
        path = store.image_path(cell.key)
        path.parent.mkdir(exist_ok=True)
        os.link(finished.image_file(row["image"]), path)
        image = path.relative_to(store.root).as_posix()
        copies.append({**_varied(row, cell.key), **settings(cell), "image": image})
    store.append_rows("0", copies)


def _varied(row: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A row with its own numbers and hash: equal values would compress to almost nothing in Parquet."""
    random = Random(key)
    varied = {
        name: value * random.uniform(0.99, 1.0) if isinstance(value, float) else value
        for name, value in row.items()
    }
    return {**varied, "image_sha256": random.randbytes(32).hex()}


def _bytes_in(folder: Path) -> int:
    return sum(os.path.getsize(path) for path in folder.iterdir())


def _cost(function: Callable[[], object]) -> Cost:
    start = process_time()
    function()
    seconds = process_time() - start
    # A second call: tracing memory slows the first one down several times.
    tracemalloc.start()
    try:
        function()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return Cost(seconds, peak)

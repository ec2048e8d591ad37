"""What a cell costs beside its evaluations, measured on a finished sweep's own rows and pictures."""

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
from sega_bench.planning import manifest
from sega_bench.planning.planner import Plan, plan
from sega_bench.sega.shards import shards
from sega_bench.sega.wave import count_timesteps
from sega_bench.store import Store
from sega_bench.store.records import settings
from sega_bench.views.report.building import write_report

SEEDS = (25, 100)
"""How many seeds the plan is measured with; what a cell costs is the slope between the two."""

_DEALT_TO = 8


@dataclass(frozen=True)
class Cost:
    """What one step of the work costs a cell.

    Args:
        seconds: of processor time.
        bytes: of memory, at the most.
    """

    seconds: float
    bytes: float


@dataclass(frozen=True)
class Sizes:
    """What a cell costs, in the mean.

    Args:
        unet_eval_seconds: of an evaluation, scores and files included, as its rows say.
        image_bytes, record_bytes, parquet_bytes, plan_bytes: on disk.
        page_bytes: of the report, which its page loads.
        costs: of planning, dealing out, looking what is there, and reading the table.
        measured_at: numbers of cells.
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
    """Plan a sweep with few and with more seeds, and resume it from folders in which all of it is done.

    Args:
        overrides: of the sweep's command line; its folder holds it, finished.

    Raises:
        UserError: that folder is missing or holds nothing that is done.
    """
    finished, rows = _finished(plan(compose(*overrides)))
    few, many = (_Measured.at(overrides, count, finished, rows) for count in SEEDS)
    more = many.cells - few.cells
    spent = [(row["seconds"], row["unet_evals"]) for row in rows]
    return Sizes(
        unet_eval_seconds=sum(s for s, _ in spent) / sum(n for _, n in spent),
        image_bytes=sum(os.path.getsize(finished.image_file(row["image"])) for row in rows) / len(rows),
        record_bytes=(many.records - few.records) / more,
        parquet_bytes=(many.parquet - few.parquet) / more,
        plan_bytes=(many.plan - few.plan) / more,
        page_bytes=(many.page - few.page) / more,
        costs={
            name: Cost((cost.seconds - few.costs[name].seconds) / more, cost.bytes / many.cells)
            for name, cost in many.costs.items()
        },
        measured_at=(few.cells, many.cells),
    )


def _finished(made: Plan) -> tuple[Store, list[dict[str, Any]]]:
    store = Store(Path(made.config.output_dir) / made.name)
    rows = [row for row in store.rows()[0] if row["status"] == "done"]
    if not rows or store.read_plan() is None:
        raise UserError(f"{store.root} holds no finished sweep: run it first, by the same words")
    return store, rows


@dataclass(frozen=True)
class _Measured:
    """A whole sweep: how many cells, the bytes of its files, what its steps cost."""

    cells: int
    records: int
    parquet: int
    plan: int
    page: int
    costs: Mapping[str, Cost]

    @classmethod
    def at(cls, overrides: Sequence[str], seeds: int, finished: Store, rows: Sequence[Any]) -> _Measured:
        config = compose(*overrides, f"seeds={seeds}")
        made = plan(config)
        limit = config.engine.wave_rows
        with TemporaryDirectory(dir=finished.root.parent) as folder:
            store = Store(Path(folder))
            _fill(store, made, finished, rows)
            frame, table = frames.load(store.root), io.BytesIO()
            frame.to_parquet(table, index=False)
            write_report(Results.read(store))
            costs = {
                "plan": _cost(lambda: [cell.key for cell in plan(config).cells]),
                "shards": _cost(lambda: shards(made.cells, _DEALT_TO, limit, count_timesteps)),
                "resume": _cost(lambda: resume.compare(made.cells, store, retry_failed=False)),
                "table": _cost(lambda: frames.load(store.root)),
            }
            return cls(
                cells=len(made.cells),
                records=_bytes_in(store.records_dir),
                parquet=table.tell(),
                plan=os.path.getsize(store.plan_path),
                page=_bytes_in(store.report_dir / "data"),
                costs=costs,
            )


def _fill(store: Store, made: Plan, finished: Store, rows: Sequence[dict[str, Any]]) -> None:
    """All cells of a plan, each with a row and a picture of the finished sweep."""
    store.prepare()
    store.write_plan(manifest.document(made, {}, (finished.read_plan() or {})["scores"]))
    lent = []
    for number, cell in enumerate(made.cells):
        row = rows[number % len(rows)]
        path = store.image_path(cell.key)
        path.parent.mkdir(exist_ok=True)
        os.link(finished.image_file(row["image"]), path)
        image = path.relative_to(store.root).as_posix()
        lent.append({**_unlike(row, cell.key), **settings(cell), "image": image})
    store.append_rows("0", lent)


def _unlike(row: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A row with numbers and a hash of its own, for what is all the same is stored in next to no space."""
    random = Random(key)
    other = {name: x * random.uniform(0.99, 1.0) if isinstance(x, float) else x for name, x in row.items()}
    return {**other, "image_sha256": random.randbytes(32).hex()}


def _bytes_in(folder: Path) -> int:
    return sum(os.path.getsize(path) for path in folder.iterdir())


def _cost(function: Callable[[], object]) -> Cost:
    start = process_time()
    function()
    seconds = process_time() - start
    tracemalloc.start()
    try:
        function()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return Cost(seconds, peak)

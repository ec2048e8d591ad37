"""``python -m tools.scaling``: a sweep on 1 to 512 workers, on paper, as tables and as a JSON file."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from sega_bench.config import compose
from sega_bench.errors import UserError, check_count, mistakes_in_one_line
from sega_bench.planning.planner import Plan, plan
from tools.scaling import sizes
from tools.scaling.faults import Faults
from tools.scaling.limits import FOLDERS, Limit, limits
from tools.scaling.sizes import Sizes
from tools.scaling.strong import Scaling, Sweep, scale

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

WORTH_IT = 0.9
"""Less efficiency than this is told."""

_DAY = 24 * 3600

console = Console(width=None if Console().is_terminal else 110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Deal a large sweep out to more and more workers, draw what befalls them, say what breaks first."""
    asked = _parser().parse_args(arguments)
    with mistakes_in_one_line():
        _run(asked)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.scaling", description=main.__doc__)
    add = parser.add_argument
    add("overrides", nargs="+", help="the words of a sweep that is finished, such as +sweep=thresholds")
    add("--cells", type=int, default=1_000_000, help="by so many seeds as that takes (1,000,000)")
    add("--workers", type=int, nargs="+", default=WORKERS, help="how many, in turn (1 2 4 ... 512)")
    add("--seconds-per-evaluation", type=float, help="else those of the finished sweep")
    add("--benchmark", type=Path, help="a JSON file of sega_bench.benchmark to take them from")
    add("--image-bytes", type=float, help="else those of the finished sweep")
    add("--failures-a-day", type=float, default=0.03, help="of a worker, killed at once (0.03)")
    add("--preemptions-a-day", type=float, default=1.0, help="of a worker, killed after the grace (1)")
    add("--grace-seconds", type=float, default=60.0, help="(60)")
    add(
        "--restart-seconds",
        type=float,
        default=180.0,
        help="from a process's end to its successor's work (180)",
    )
    add("--start-seconds", type=float, default=60.0, help="until the first one is at work (60)")
    add("--memory-gb", type=float, default=16.0, help="of the machine that launches (16)")
    add("--draws", type=int, default=20, help="of the whole course of events (20)")
    add("--seed", type=int, default=0, help="of those (0)")
    add("--out", type=Path, default=Path("outputs/scaling.json"), help="the JSON file")
    return parser


def _run(asked: argparse.Namespace) -> None:
    _check(asked)
    made = plan(compose(*asked.overrides, "seeds=1"))
    times = math.ceil(asked.cells / len(made.cells))
    sweep = Sweep.repeated(made.cells, times, made.config.engine.wave_rows)
    measured = _measured(asked)
    faults = _faults(asked)
    _check_that_waves_end(sweep, measured.unet_eval_seconds, faults)
    _print_what_is_asked(asked, made, times, sweep, measured)
    scalings = [
        scale(sweep, workers, measured.unet_eval_seconds, faults, asked.draws, asked.seed)
        for workers in asked.workers
    ]
    cells = times * len(made.cells)
    files = {
        "images": cells,
        "in the fullest folder of images": _fullest_folder(cells, asked.seed),
        "records": max(asked.workers),
    }
    found = limits(measured, cells, asked.memory_gb * 1e9)
    _print_scalings(scalings)
    _tell_where_it_ends(scalings)
    _print_disk(measured, cells, files)
    _print_limits(found)
    _write(
        asked.out,
        {
            "asked": {name: value for name, value in vars(asked).items() if name not in ("out", "benchmark")},
            "cells": cells,
            "unet_evals": sweep.unet_evals,
            "scaling": [asdict(one) for one in scalings],
            "sizes": asdict(measured),
            "files": files,
            "limits": [asdict(limit) for limit in found],
        },
    )


def _faults(asked: argparse.Namespace) -> Faults:
    return Faults(
        failures=asked.failures_a_day / _DAY,
        preemptions=asked.preemptions_a_day / _DAY,
        grace_seconds=asked.grace_seconds,
        restart_seconds=asked.restart_seconds,
        start_seconds=asked.start_seconds,
    )


def _print_what_is_asked(
    asked: argparse.Namespace, made: Plan, times: int, sweep: Sweep, measured: Sizes
) -> None:
    cells, each = len(made.cells), 1000 * measured.unet_eval_seconds
    console.print(
        f"{made.name}: {times * cells:,} cells, {sweep.unet_evals:,} UNet evaluations of {each:.3g} ms: "
        f"the {cells} cells of one seed, planned and then counted {times:,} times",
        f"a worker fails {asked.failures_a_day:g} and is pre-empted {asked.preemptions_a_day:g} times a day; "
        f"a successor is at work after {asked.restart_seconds:g} s",
        "",
        sep="\n",
        highlight=False,
    )


def _write(path: Path, document: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {path}", highlight=False)


def _check(asked: argparse.Namespace) -> None:
    check_count("--cells", asked.cells, 100_000_000)
    check_count("--draws", asked.draws, 10_000)
    for workers in asked.workers:
        check_count("--workers", workers, 100_000)
    for name, value in vars(asked).items():
        if isinstance(value, float) and not (0 <= value < math.inf):
            raise UserError(f"--{name.replace('_', '-')} is {value}, but it must be 0 or more")
    if asked.seconds_per_evaluation == 0:
        raise UserError("--seconds-per-evaluation is 0, but an evaluation takes time")


def _check_that_waves_end(sweep: Sweep, seconds: float, faults: Faults) -> None:
    longest = seconds * max(wave.unet_evals for wave in sweep.waves)
    if (faults.failures + faults.preemptions) * longest > 5:
        raise UserError(
            f"--failures-a-day, --preemptions-a-day: a wave takes {longest:,.0f} s and would hardly ever end "
            "without being killed: give engine.wave_rows=8"
        )


def _measured(asked: argparse.Namespace) -> Sizes:
    """What the finished sweep says, and instead what was given."""
    found = sizes.measure(asked.overrides)
    if asked.benchmark is not None:
        found = replace(found, unet_eval_seconds=_benchmarked(asked.benchmark))
    if asked.seconds_per_evaluation is not None:
        found = replace(found, unet_eval_seconds=asked.seconds_per_evaluation)
    return found if asked.image_bytes is None else replace(found, image_bytes=asked.image_bytes)


def _benchmarked(path: Path) -> float:
    """Seconds of a whole run an evaluation, scores and files included."""
    try:
        floor = json.loads(path.read_bytes())["floor"]
        return float(median(floor["runs"]) / floor["unet_evals"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"--benchmark is {path}, which has no floor: python -m sega_bench benchmark --parts floor"
        ) from None


def _fullest_folder(cells: int, seed: int) -> int:
    """Keys are hashes, so that each image is in any of the folders with the same chance."""
    return int(np.random.default_rng(seed).multinomial(cells, [1 / FOLDERS] * FOLDERS).max())


def _print_scalings(scalings: Iterable[Scaling]) -> None:
    _print_table(
        "Strong scaling",
        (
            "workers",
            "hours",
            "efficiency",
            "without faults",
            "tail",
            "made twice",
            "killed in",
            "failures",
            "pre-emptions",
            "3 failures",
        ),
        (
            (
                f"{one.workers}",
                f"{one.hours:,.2f}",
                f"{one.efficiency:.1%}",
                f"{one.efficiency_without_faults:.1%}",
                f"{one.tail:.3f}",
                f"{one.repeated:.2%}",
                f"{one.lost:.3%}",
                f"{one.failures:,.1f}",
                f"{one.preemptions:,.0f}",
                f"{one.thrice:,.1f}",
            )
            for one in scalings
        ),
    )


def _tell_where_it_ends(scalings: Iterable[Scaling]) -> None:
    if few := [one for one in scalings if one.efficiency < WORTH_IT]:
        one = min(few, key=lambda one: one.workers)
        console.print(
            f"below {WORTH_IT:.0%} from {one.workers} workers on, which takes {60 * one.hours:,.0f} minutes: "
            "take fewer workers, or more cells, or a shorter restart",
            "",
            sep="\n",
            highlight=False,
        )


def _print_disk(measured: Sizes, cells: int, files: dict[str, int]) -> None:
    each = {
        "images": measured.image_bytes,
        "records": measured.record_bytes,
        "results.parquet": measured.parquet_bytes,
        "plan.json": measured.plan_bytes,
        "report/data": measured.page_bytes,
    }
    _print_table(
        "On disk",
        ("what", "bytes a cell", "GB"),
        ((name, f"{size:,.0f}", f"{size * cells / 1e9:,.2f}") for name, size in each.items()),
    )
    _print_table("Files", ("where", "files"), ((name, f"{count:,}") for name, count in files.items()))


def _print_limits(found: Iterable[Limit]) -> None:
    _print_table(
        "What breaks first",
        ("what", "here", "fine", "until cells", "remedy"),
        ((one.what, _short(one.value), _short(one.most), f"{one.cells:,}", one.remedy) for one in found),
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position and column != "remedy" else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table, "")


if __name__ == "__main__":
    main()

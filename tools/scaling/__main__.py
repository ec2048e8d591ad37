"""``python -m tools.scaling``: estimate a sweep on 1 to 512 workers, as tables and a JSON file."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import numpy as np

from sega_bench.benchmark.tables import console, print_table
from sega_bench.config import compose
from sega_bench.errors import UserError, check_count, exit_on_user_error
from sega_bench.planning import planner
from sega_bench.planning.planner import Plan
from tools.scaling import sizes
from tools.scaling.faults import Faults
from tools.scaling.limits import FOLDERS, Limit, limits
from tools.scaling.sizes import Sizes
from tools.scaling.strong import Scaling, Sweep, scale

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

EFFICIENT = 0.9
"""The command names the number of workers from which efficiency is lower."""

_DAY = 24 * 3600


def main(arguments: Sequence[str] | None = None) -> None:
    """Shard a large sweep over more and more workers, simulate their faults, and name the first limits."""
    args = _parser().parse_args(arguments)
    with exit_on_user_error():
        _run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.scaling", description=main.__doc__)
    add = parser.add_argument
    add("overrides", nargs="+", help="the command line of a finished sweep, such as +sweep=thresholds")
    add("--cells", type=int, default=1_000_000, help="the size, reached by more seeds (1,000,000)")
    add("--workers", type=int, nargs="+", default=WORKERS, help="numbers of workers (1 2 4 ... 512)")
    add("--seconds-per-evaluation", type=float, help="default: the finished sweep's")
    add("--benchmark", type=Path, help="a JSON file of the benchmark to take the seconds from")
    add("--image-bytes", type=float, help="default: the finished sweep's")
    add("--failures-a-day", type=float, default=0.03, help="of one worker, killed without grace (0.03)")
    add("--preemptions-a-day", type=float, default=1.0, help="of one worker, killed after the grace (1)")
    add("--grace-seconds", type=float, default=60.0, help="from the pre-emption signal to the kill (60)")
    add(
        "--restart-seconds",
        type=float,
        default=180.0,
        help="from the end of a process to its successor's first wave (180)",
    )
    add("--start-seconds", type=float, default=60.0, help="until a worker's first wave (60)")
    add("--memory-gb", type=float, default=16.0, help="of the launching machine (16)")
    add("--draws", type=int, default=20, help="number of simulations (20)")
    add("--seed", type=int, default=0, help="of the simulations (0)")
    add("--out", type=Path, default=Path("outputs/scaling.json"), help="the JSON file")
    return parser


def _run(args: argparse.Namespace) -> None:
    _check(args)
    plan = planner.plan(compose(*args.overrides, "seeds=1"))
    times = math.ceil(args.cells / len(plan.cells))
    sweep = Sweep.repeated(plan.cells, times, plan.config.engine.wave_rows)
    measured = _measured(args)
    faults = _faults(args)
    _check_that_waves_end(sweep, measured.unet_eval_seconds, faults)
    _print_task(args, plan, times, sweep, measured)
    scalings = [
        scale(sweep, workers, measured.unet_eval_seconds, faults, args.draws, args.seed)
        for workers in args.workers
    ]
    cells = times * len(plan.cells)
    files = {
        "images": cells,
        "in the fullest folder of images": _fullest_folder(cells, args.seed),
        "records": max(args.workers),
    }
    reached = limits(measured, cells, args.memory_gb * 1e9)
    _print_scalings(scalings)
    _print_inefficient_workers(scalings)
    _print_disk(measured, cells, files)
    _print_limits(reached)
    _write(
        args.out,
        {
            "asked": {name: value for name, value in vars(args).items() if name not in ("out", "benchmark")},
            "cells": cells,
            "unet_evals": sweep.unet_evals,
            "scaling": [asdict(scaling) for scaling in scalings],
            "sizes": asdict(measured),
            "files": files,
            "limits": [asdict(limit) for limit in reached],
        },
    )


def _faults(args: argparse.Namespace) -> Faults:
    return Faults(
        failures=args.failures_a_day / _DAY,
        preemptions=args.preemptions_a_day / _DAY,
        grace_seconds=args.grace_seconds,
        restart_seconds=args.restart_seconds,
        start_seconds=args.start_seconds,
    )


def _print_task(args: argparse.Namespace, plan: Plan, times: int, sweep: Sweep, measured: Sizes) -> None:
    cells, ms = len(plan.cells), 1000 * measured.unet_eval_seconds
    console.print(
        f"{plan.name}: {times * cells:,} cells, {sweep.unet_evals:,} UNet evaluations of {ms:.3g} ms: "
        f"the {cells} cells of one seed, planned and then counted {times:,} times",
        f"a worker fails {args.failures_a_day:g} and is pre-empted {args.preemptions_a_day:g} times a day; "
        f"its successor starts after {args.restart_seconds:g} s",
        "",
        sep="\n",
        highlight=False,
    )


def _write(path: Path, document: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {path}", highlight=False)


def _check(args: argparse.Namespace) -> None:
    check_count("--cells", args.cells, 100_000_000)
    check_count("--draws", args.draws, 10_000)
    for workers in args.workers:
        check_count("--workers", workers, 100_000)
    for name, value in vars(args).items():
        if isinstance(value, float) and not (0 <= value < math.inf):
            raise UserError(f"--{name.replace('_', '-')} is {value}, but it must be 0 or more")
    if args.seconds_per_evaluation == 0:
        raise UserError("--seconds-per-evaluation is 0, but an evaluation takes time")


def _check_that_waves_end(sweep: Sweep, seconds: float, faults: Faults) -> None:
    longest = seconds * max(wave.unet_evals for wave in sweep.waves)
    if (faults.failures + faults.preemptions) * longest > 5:
        raise UserError(
            f"--failures-a-day, --preemptions-a-day: a wave takes {longest:,.0f} s and would almost always "
            "be killed before it ends: set engine.wave_rows=8"
        )


def _measured(args: argparse.Namespace) -> Sizes:
    """The finished sweep's sizes, with those replaced that the command line gives."""
    measured = sizes.measure(args.overrides)
    if args.benchmark is not None:
        measured = replace(measured, unet_eval_seconds=_benchmarked(args.benchmark))
    if args.seconds_per_evaluation is not None:
        measured = replace(measured, unet_eval_seconds=args.seconds_per_evaluation)
    return measured if args.image_bytes is None else replace(measured, image_bytes=args.image_bytes)


def _benchmarked(path: Path) -> float:
    """Seconds per UNet evaluation of a whole run, scores and files included."""
    try:
        floor = json.loads(path.read_bytes())["floor"]
        return float(median(floor["runs"]) / floor["unet_evals"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"--benchmark is {path}, which has no floor: python -m sega_bench benchmark --parts floor"
        ) from None


def _fullest_folder(cells: int, seed: int) -> int:
    """The largest number of images in one folder; keys are hashes and spread evenly over the folders."""
    return int(np.random.default_rng(seed).multinomial(cells, [1 / FOLDERS] * FOLDERS).max())


def _print_scalings(scalings: Iterable[Scaling]) -> None:
    print_table(
        "Strong scaling",
        (
            "workers",
            "hours",
            "efficiency",
            "without faults",
            "tail",
            "repeated",
            "lost",
            "failures",
            "pre-emptions",
            "3 failures",
        ),
        (
            (
                f"{scaling.workers}",
                f"{scaling.hours:,.2f}",
                f"{scaling.efficiency:.1%}",
                f"{scaling.efficiency_without_faults:.1%}",
                f"{scaling.tail:.3f}",
                f"{scaling.repeated:.2%}",
                f"{scaling.lost:.3%}",
                f"{scaling.failures:,.1f}",
                f"{scaling.preemptions:,.0f}",
                f"{scaling.thrice:,.1f}",
            )
            for scaling in scalings
        ),
    )


def _print_inefficient_workers(scalings: Iterable[Scaling]) -> None:
    if inefficient := [scaling for scaling in scalings if scaling.efficiency < EFFICIENT]:
        scaling = min(inefficient, key=lambda scaling: scaling.workers)
        console.print(
            f"efficiency is below {EFFICIENT:.0%} from {scaling.workers} workers on, which take "
            f"{60 * scaling.hours:,.0f} minutes: use fewer workers, more cells or a shorter restart",
            "",
            sep="\n",
            highlight=False,
        )


def _print_disk(measured: Sizes, cells: int, files: dict[str, int]) -> None:
    bytes_per_cell = {
        "images": measured.image_bytes,
        "records": measured.record_bytes,
        "results.parquet": measured.parquet_bytes,
        "plan.json": measured.plan_bytes,
        "report/data": measured.page_bytes,
    }
    print_table(
        "On disk",
        ("what", "bytes a cell", "GB"),
        ((name, f"{size:,.0f}", f"{size * cells / 1e9:,.2f}") for name, size in bytes_per_cell.items()),
    )
    print_table("Files", ("where", "files"), ((name, f"{count:,}") for name, count in files.items()))


def _print_limits(reached: Iterable[Limit]) -> None:
    print_table(
        "First limits",
        ("what", "here", "limit", "reached at cells", "remedy"),
        (
            (limit.what, _short(limit.value), _short(limit.most), f"{limit.cells:,}", limit.remedy)
            for limit in reached
        ),
        texts=("remedy",),
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


if __name__ == "__main__":
    main()

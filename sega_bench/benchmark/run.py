"""The benchmark's parts in turn: measured on this machine, printed as tables, written to a JSON file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sega_bench.benchmark import against_diffusers, floor, forwards, study_cost
from sega_bench.benchmark.clock import machine
from sega_bench.config import compose, options
from sega_bench.planning.planner import plan
from sega_bench.sega.models import resolve_device

PARTS = ("counts", "sweep", "floor", "forwards", "study")
BATCHES = (1, 2, 4, 8, 16, 32, 64)

console = Console(width=None if Console().is_terminal else 110)


def run(asked: argparse.Namespace) -> None:
    """Measure the requested parts, print their tables and write the JSON file."""
    if asked.threads:
        torch.set_num_threads(asked.threads)
    overrides = [f"engine.threads={torch.get_num_threads()}", *asked.overrides]
    device = resolve_device(compose("prompts=[x]", *overrides).engine.device)
    found: dict[str, Any] = {"machine": machine(device), "overrides": overrides}
    console.print(*(f"{key}: {value}" for key, value in found["machine"].items()), sep="\n", highlight=False)
    for part in asked.parts:
        found[part] = _MEASURE[part](overrides, asked)
    found["load_average_after"] = machine(device)["load_average"]
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {asked.out}", highlight=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the benchmark's arguments."""
    parser.add_argument(
        "overrides", nargs="*", help="of the configuration, as in model=sd15 engine.device=cuda"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS[:-1], help="what to measure (all but study)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="of everything that is timed (5)")
    parser.add_argument("--processes", type=int, default=5, help="cells that get a process of their own (5)")
    parser.add_argument("--compile", action="store_true", help="measure engine.compile=true as well")
    parser.add_argument("--quick", action="store_true", help="once, and less of everything: does it work?")
    parser.add_argument("--threads", type=int, help="torch's on the CPU, for all sides")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmark.json"), help="the JSON file")


_SWEEPS = [name for name in options("sweep") if name != "i2p"]
"""Those that are whole: the prompts of i2p are the user's."""


def _counts(overrides: Sequence[str], asked: argparse.Namespace) -> dict[str, Any]:
    counts = {name: plan(compose(f"+sweep={name}", *overrides)).counts() for name in _SWEEPS}
    _print_table(
        "UNet evaluations of the shipped sweeps",
        ("sweep", "cells", "here", "diffusers", "ratio"),
        (
            (
                name,
                f"{of['cells']:,}",
                f"{of['unet_evals']:,}",
                f"{of['unet_evals_diffusers']:,}",
                f"{of['unet_evals_diffusers'] / of['unet_evals']:.2f}",
            )
            for name, of in counts.items()
        ),
    )
    return counts


def _sweep(overrides: Sequence[str], asked: argparse.Namespace) -> dict[str, Any]:
    few = (
        "seeds=1",
        "axes.edit_threshold=[0.9]",
        "sampling.num_inference_steps=8",
        "edit.edit_warmup_steps=2",
    )
    comparison = against_diffusers.compare(
        [*overrides, *(few if asked.quick else ())],
        repeats=1 if asked.quick else asked.repeats,
        processes=2 if asked.quick else asked.processes,
        compiled=asked.compile,
    )
    _print_table(
        f"One sweep: {comparison.cells} cells, {comparison.unet_evals:,} UNet evaluations, "
        f"{comparison.unet_evals_diffusers:,} in diffusers",
        ("what", "seconds (median)"),
        [
            *((f"images: {name}", f"{timing.median:.2f}") for name, timing in comparison.images.items()),
            *((f"with loading, scores, files: {n}", f"{t.median:.2f}") for n, t in comparison.whole.items()),
            *(
                (f"python -m sega_bench, {cells} cells, from start to end", f"{command:.2f}")
                for cells, command in comparison.commands.items()
            ),
            (
                "a process for one cell",
                f"{sum(comparison.process_a_cell) / len(comparison.process_a_cell):.2f}",
            ),
            ("compiling", "-" if comparison.compile_seconds is None else f"{comparison.compile_seconds:.1f}"),
        ],
    )
    _print_table(
        "How many times as long the others took",
        ("against", "ratio"),
        ((name, f"{value:.2f}") for name, value in comparison.ratios().items()),
    )
    console.print(
        f"pictures differ by {comparison.mean_difference:.4f} of 255 in the mean, "
        f"{comparison.max_difference} at most",
        highlight=False,
    )
    return asdict(comparison) | {"ratios": comparison.ratios()}


def _floor(overrides: Sequence[str], asked: argparse.Namespace) -> dict[str, Any]:
    few = ("seeds=1", "axes.edit_threshold=[0.9]")
    measured = floor.measure(
        [*overrides, *(few if asked.quick else ())],
        batches=(8,) if asked.quick else (8, 16, 32, 64),
        repeats=1 if asked.quick else min(3, asked.repeats),
    )
    _print_table(
        f"A run of {measured.cells} cells, {measured.unet_evals:,} UNet evaluations, against its floor",
        ("what", "seconds"),
        [
            ("the run, from its first step to its last file", f"{measured.ratio * measured.seconds:.2f}"),
            (f"UNet alone, micro-batches of {measured.micro}", f"{measured.unet:.2f}"),
            ("VAE alone", f"{measured.vae:.2f}"),
            ("scorers alone", f"{measured.scorers:.2f}"),
            ("run / floor", f"{measured.ratio:.3f}"),
        ],
    )
    return asdict(measured) | {"ratio": measured.ratio}


def _forwards(overrides: Sequence[str], asked: argparse.Namespace) -> list[dict[str, Any]]:
    measured = forwards.measure(
        overrides,
        batches=(2, 8) if asked.quick else BATCHES,
        compiled_batches=() if not asked.compile else (8,) if asked.quick else (8, 16, 32),
        repeats=1 if asked.quick else asked.repeats,
    )
    _print_table(
        "One evaluation of the UNet",
        ("way", "precision", "batch", "ms", "share of peak", "MB", "first pass, s"),
        (
            (
                one.way,
                one.dtype,
                str(one.batch),
                f"{one.milliseconds:.2f}",
                f"{one.utilisation:.0%}",
                "-" if one.peak_mb is None else f"{one.peak_mb:.1f}",
                f"{one.first_seconds:.2f}",
            )
            for one in sorted(measured, key=lambda one: (one.dtype, one.way, one.batch))
        ),
    )
    return [asdict(one) for one in measured]


def _study(overrides: Sequence[str], asked: argparse.Namespace) -> dict[str, Any]:
    few = ("study.trials=4", "study.batch=2", "seeds=1", "sampling.num_inference_steps=13")
    measured = study_cost.measure(
        [*overrides, *(few if asked.quick else ())], 1 if asked.quick else asked.repeats
    )
    _print_table(
        f"{measured.settings} trials on all prompts x seeds, {measured.cells:,} cells, and a sweep of them",
        ("what", "seconds (median)", "UNet evaluations"),
        (
            (name, f"{timing.median:.2f}", f"{measured.unet_evals[name]:,}")
            for name, timing in measured.timings.items()
        ),
    )
    console.print(f"a trial takes {measured.ratio:.3f} times a setting of the sweep", highlight=False)
    return asdict(measured) | {"ratio": measured.ratio}


_MEASURE = {"counts": _counts, "sweep": _sweep, "floor": _floor, "forwards": _forwards, "study": _study}


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table, "")

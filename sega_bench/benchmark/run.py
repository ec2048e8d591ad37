"""Measure the benchmark's parts on this machine, print them as tables and write them to a JSON file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sega_bench.benchmark import against_diffusers, floor, forwards, oracle, study_cost
from sega_bench.benchmark.clock import machine
from sega_bench.benchmark.tables import console, print_table
from sega_bench.config import compose, options
from sega_bench.errors import UserError
from sega_bench.planning.planner import plan
from sega_bench.sega.models import resolve_device

PARTS = ("counts", "sweep", "floor", "forwards", "study")
BATCHES = (1, 2, 4, 8, 16, 32, 64)
_SWEEPS = [name for name in options("sweep") if name != "i2p"]
"""The shipped sweeps that plan without further settings: i2p needs a prompt file of the user's."""


def run(args: argparse.Namespace) -> None:
    """Measure the requested parts, print their tables and write the JSON file.

    Raises:
        UserError: the part ``sweep`` is requested, and diffusers has no SEGA pipeline to compare with.
    """
    _check_parts(args.parts)
    if args.threads:
        torch.set_num_threads(args.threads)
    overrides = [f"engine.threads={torch.get_num_threads()}", *args.overrides]
    device = resolve_device(compose("prompts=[x]", *overrides).engine.device)
    results: dict[str, Any] = {"machine": machine(device), "overrides": overrides}
    console.print(
        *(f"{key}: {value}" for key, value in results["machine"].items()), sep="\n", highlight=False
    )
    for part in args.parts:
        results[part] = _MEASURE[part](overrides, args)
    results["load_average_after"] = machine(device)["load_average"]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {args.out}", highlight=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the benchmark's arguments."""
    parser.add_argument(
        "overrides", nargs="*", help="words of the configuration, such as model=sd15 engine.device=cuda"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS[:-1], help="what to measure (all but study)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="how often everything is timed (5)")
    parser.add_argument("--processes", type=int, default=5, help="cells that run in their own process (5)")
    parser.add_argument("--compile", action="store_true", help="measure engine.compile=true as well")
    parser.add_argument("--quick", action="store_true", help="a smaller version, once, to see that it works")
    parser.add_argument("--threads", type=int, help="PyTorch's CPU threads, for all sides")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmark.json"), help="the JSON file")


def _check_parts(parts: Sequence[str]) -> None:
    if "sweep" in parts and not oracle.is_available():
        raise UserError(f"{oracle.MISSING}, with which --parts sweep compares: leave sweep out of --parts")


def _counts(overrides: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    counts = {name: plan(compose(f"+sweep={name}", *overrides)).counts() for name in _SWEEPS}
    print_table(
        "UNet evaluations of the shipped sweeps",
        ("sweep", "cells", "here", "diffusers", "ratio"),
        (
            (
                name,
                f"{count['cells']:,}",
                f"{count['unet_evals']:,}",
                f"{count['unet_evals_diffusers']:,}",
                f"{count['unet_evals_diffusers'] / count['unet_evals']:.2f}",
            )
            for name, count in counts.items()
        ),
    )
    return counts


def _sweep(overrides: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    smaller = (
        "seeds=1",
        "axes.edit_threshold=[0.9]",
        "sampling.num_inference_steps=8",
        "edit.edit_warmup_steps=2",
    )
    comparison = against_diffusers.compare(
        [*overrides, *(smaller if args.quick else ())],
        repeats=1 if args.quick else args.repeats,
        processes=2 if args.quick else args.processes,
        compiled=args.compile,
    )
    print_table(
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
    print_table(
        "Time of the others, divided by this engine's",
        ("other", "ratio"),
        ((name, f"{value:.2f}") for name, value in comparison.ratios().items()),
    )
    console.print(
        f"the images differ by {comparison.mean_difference:.4f} of 255 on average, "
        f"{comparison.max_difference} at most",
        highlight=False,
    )
    return asdict(comparison) | {"ratios": comparison.ratios()}


def _floor(overrides: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    smaller = ("seeds=1", "axes.edit_threshold=[0.9]")
    measured = floor.measure(
        [*overrides, *(smaller if args.quick else ())],
        batches=(8,) if args.quick else (8, 16, 32, 64),
        repeats=1 if args.quick else min(3, args.repeats),
    )
    print_table(
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


def _forwards(overrides: Sequence[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    measured = forwards.measure(
        overrides,
        batches=(2, 8) if args.quick else BATCHES,
        compiled_batches=() if not args.compile else (8,) if args.quick else (8, 16, 32),
        repeats=1 if args.quick else args.repeats,
    )
    print_table(
        "One evaluation of the UNet",
        ("way", "precision", "batch", "ms", "share of peak", "MB", "first pass, s"),
        (
            (
                forward.way,
                forward.dtype,
                str(forward.batch),
                f"{forward.milliseconds:.2f}",
                f"{forward.utilisation:.0%}",
                "-" if forward.peak_mb is None else f"{forward.peak_mb:.1f}",
                f"{forward.first_seconds:.2f}",
            )
            for forward in sorted(measured, key=lambda forward: (forward.dtype, forward.way, forward.batch))
        ),
    )
    return [asdict(forward) for forward in measured]


def _study(overrides: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    smaller = ("study.trials=4", "study.batch=2", "seeds=1", "sampling.num_inference_steps=13")
    measured = study_cost.measure(
        [*overrides, *(smaller if args.quick else ())], 1 if args.quick else args.repeats
    )
    print_table(
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

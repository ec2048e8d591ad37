"""Measure this engine on this machine: against a loop over diffusers' pipeline, and against its own floor.

All figures are ratios within one run. Settings choose model and device: model=sd15 engine.device=cuda.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    from sega_bench.benchmark import run as benchmark

    benchmark.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, write the JSON file."""
    from sega_bench.benchmark import run as benchmark

    benchmark.run(args)
    return 0

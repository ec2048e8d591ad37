"""Log a finished sweep to Weights & Biases again, from its folder alone."""

from __future__ import annotations

import argparse
import logging
from dataclasses import asdict

from sega_bench.analysis.results import Results
from sega_bench.cli.subcommand import add_folder
from sega_bench.config import WandbConfig
from sega_bench.store import lock
from sega_bench.tracking.login import resolve_mode
from sega_bench.tracking.reporter import Reporter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    add_folder(parser)
    parser.add_argument("--mode", default="auto", choices=["auto", "online", "offline"])
    parser.add_argument("--project", help="default: the sweep's")
    parser.add_argument("--entity", help="default: the sweep's")


def run(args: argparse.Namespace) -> int:
    """Log the results; print the run's address, or the command that uploads it."""
    logging.basicConfig(format="%(message)s")
    results = Results.read(args.folder)
    with lock.held(results.store):  # a sweep in progress writes to the same run
        print(_log(args, results) or f"W&B: {results.store.wandb_dir}")
    return 0


def _log(args: argparse.Namespace, results: Results) -> str | None:
    settings = asdict(WandbConfig()) | results.plan["settings"].get("wandb", {})
    reporter = Reporter(
        results.store,
        results.plan,
        resolve_mode(args.mode),
        project=args.project or settings["project"],
        entity=args.entity or settings["entity"],
        already=int((results.frame["status"] == "done").sum()),
    )
    return reporter.finish(results)

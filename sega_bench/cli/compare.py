"""Compare a study with the sweep that it replaces: the area under both fronts, and what each cost.

Both must be made of the same model, prompts, seeds and concepts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sega_bench.analysis.results import Results
from sega_bench.cli.subcommand import add_folder
from sega_bench.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    add_folder(parser, "a study's folder")
    parser.add_argument("sweep", type=Path, help="the folder of a sweep over the same prompts and concepts")


def run(args: argparse.Namespace) -> int:
    """Print the comparison."""
    print(comparison(Results.read(args.folder), Results.read(args.sweep)))
    return 0


def comparison(study: Results, sweep: Results) -> str:
    """The areas under both fronts of CLIP gain against preservation, and their UNet evaluations.

    Raises:
        UserError: the two do not share model, prompts, seeds and concepts.
    """
    for name in ("model", "prompt", "seed", "concepts"):
        if set(study.frame[name]) != set(sweep.frame[name]):
            raise UserError(
                f"{sweep.store.root}: its {name} differs from that of {study.store.root}: "
                "compare like with like"
            )
    # A study's dropped trials are not in its frame, but they were paid for.
    spent = int(sum(row["unet_evals"] or 0 for row in study.store.rows()[0]))
    costs = spent, int(sweep.frame["unet_evals"].sum())
    areas = _front_area(study), _front_area(sweep)
    if areas[1] <= 0:
        raise UserError(f"{sweep.store.root}: no setting gains anything, so there is no area to compare with")
    return (
        f"area under the front: {areas[0]:.4f} of the study, {areas[1]:.4f} of the sweep, "
        f"{areas[0] / areas[1]:.1%}\n"
        f"UNet evaluations: {costs[0]:,} of the study, {costs[1]:,} of the sweep, {costs[0] / costs[1]:.1%}"
    )


def _front_area(results: Results) -> float:
    return float(results.pooled["front_area"].iloc[0])

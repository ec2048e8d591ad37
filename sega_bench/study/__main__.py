"""A study against the sweep that it replaces: ``python -m sega_bench.study outputs/pareto outputs/grid``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sega_bench.analysis.frames import load
from sega_bench.analysis.groups import ALL
from sega_bench.analysis.summary import summarise
from sega_bench.errors import UserError, mistakes_in_one_line
from sega_bench.store import Store


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it; exits with 2 where the folders can't be compared."""
    parser = argparse.ArgumentParser(prog="python -m sega_bench.study", description=__doc__)
    parser.add_argument("study", type=Path, help="a study's folder, such as outputs/pareto")
    parser.add_argument("sweep", type=Path, help="that of a sweep over the same prompts, seeds and concepts")
    asked = parser.parse_args(arguments)
    with mistakes_in_one_line():
        print(compared(asked.study, asked.sweep))


def compared(study: Path, sweep: Path) -> str:
    """The areas under both fronts of CLIP gain against preservation, and the UNet evaluations they took.

    Raises:
        UserError: a folder holds no such thing, or they were made of other prompts, seeds or concepts.
    """
    found, crossed = load(study), load(sweep)
    for name in ("model", "prompt", "seed", "concepts"):
        if set(found[name]) != set(crossed[name]):
            raise UserError(f"{sweep}: its {name} is not that of {study}: compare like with like")
    spent = int(sum(row["unet_evals"] or 0 for row in Store(study).rows()[0]))
    costs = spent, int(crossed["unet_evals"].sum())
    areas = _area(found, study), _area(crossed, sweep)
    if areas[1] <= 0:
        raise UserError(f"{sweep}: none of its settings gains anything, so there is no area to compare with")
    return (
        f"area under the front: {areas[0]:.4f} of the study, {areas[1]:.4f} of the sweep, "
        f"{areas[0] / areas[1]:.1%}\n"
        f"UNet evaluations: {costs[0]:,} of the study, {costs[1]:,} of the sweep, {costs[0] / costs[1]:.1%}"
    )


def _area(frame: pd.DataFrame, folder: Path) -> float:
    summary = summarise(frame, list((Store(folder).read_plan() or {})["axes"]))
    return float(summary.loc[summary["concepts"] == ALL, "front_area"].iloc[0])


if __name__ == "__main__":
    main()

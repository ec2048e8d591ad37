"""Draw a sweep's image sheets again from its folder alone, or those of two axes of your choice."""

from __future__ import annotations

import argparse

from sega_bench.analysis.results import Results
from sega_bench.cli.subcommand import add_folder
from sega_bench.views.image_grid.write import write_grids


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    add_folder(parser)
    parser.add_argument("--x", help="the axis of the columns: one of the sweep's, concept, seed or prompt")
    parser.add_argument("--y", help="the axis of the rows")
    parser.add_argument(
        "--limit", type=int, default=24, help="the most sheets to draw (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Draw the sheets and print their paths."""
    for path in write_grids(Results.read(args.folder), x=args.x, y=args.y, limit=args.limit):
        print(path)
    return 0

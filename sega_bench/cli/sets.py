"""Compare sets of images by KID and CMMD: each setting's edited images with unedited ones.

Writes sets.csv. --reference compares with a folder of images, such as photographs, instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sega_bench.analysis.results import Results
from sega_bench.cli.subcommand import add_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    add_folder(parser)
    parser.add_argument(
        "settings",
        nargs="*",
        help="scores.clip_model=NAME and the like, engine.device=NAME (default: the sweep's)",
    )
    parser.add_argument(
        "--reference", type=Path, help="a folder of images (default: the sweep's unedited ones)"
    )


def run(args: argparse.Namespace) -> int:
    """Write sets.csv and print it."""
    from sega_bench.rescoring.sets import write_sets

    table = write_sets(Results.read(args.folder), args.settings, args.reference)
    print(table.to_string(index=False))
    return 0

"""Draw a sweep's figures (SVG and PDF) and its LaTeX table from its folder alone.

They are written to figures/ of that folder. Needs matplotlib: pip install 'sega-bench[figures]'.
"""

from __future__ import annotations

import argparse

from sega_bench.analysis.results import Results
from sega_bench.cli.subcommand import add_folder
from sega_bench.views.paper.figures import write_figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    add_folder(parser)


def run(args: argparse.Namespace) -> int:
    """Write the files and print their paths."""
    for path in write_figures(Results.read(args.folder)):
        print(path)
    return 0

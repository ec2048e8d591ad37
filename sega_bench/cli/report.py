"""Build a sweep's report page again from its folder alone, without the model."""

from __future__ import annotations

import argparse

from sega_bench.analysis.results import Results
from sega_bench.cli.subcommand import add_folder
from sega_bench.views.report.building import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    add_folder(parser)


def run(args: argparse.Namespace) -> int:
    """Build the page and print its path."""
    print(write_report(Results.read(args.folder)))
    return 0

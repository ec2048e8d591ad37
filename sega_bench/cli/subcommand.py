"""What every sub-command has in common: its Protocol, its parser, and the folder argument."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Protocol

from sega_bench.errors import UserError

PROGRAM = "python -m sega_bench"


class Subcommand(Protocol):
    """A module of this package that implements one sub-command. Its docstring's first line is its help."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the sub-command's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit code. A :class:`~sega_bench.errors.UserError` becomes exit code 2."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are a :class:`UserError` instead of usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        raise UserError(f"{message}; {self.prog} --help lists its arguments")


def parse(name: str, command: Subcommand, words: Sequence[str]) -> argparse.Namespace:
    """A sub-command's arguments.

    Raises:
        UserError: an argument is missing, unknown or malformed.
        SystemExit: the user asked for ``--help``, which has been printed.
    """
    parser = parser_of(name, command)
    return parser.parse_args(words)


def parser_of(name: str, command: Subcommand) -> argparse.ArgumentParser:
    """The parser of a sub-command; its help starts with the module's docstring."""
    parser = OneLineParser(
        prog=f"{PROGRAM} {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    return parser


def add_folder(parser: argparse.ArgumentParser, help_text: str = "a sweep's folder") -> None:
    """Declare the positional ``folder``."""
    parser.add_argument("folder", type=Path, help=f"{help_text}, such as outputs/thresholds")

"""The sub-commands by name. Each is a module of this package that is imported when it is called."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import cast

from sega_bench.cli.subcommand import Subcommand, parse
from sega_bench.errors import UserError, nearest

SUBCOMMANDS = {
    "report": "build the page report/index.html again",
    "figures": "draw vector figures and a LaTeX table for a paper",
    "grids": "draw the image sheets again, or those of two other axes",
    "wandb": "log the sweep to Weights & Biases again",
    "score": "score the stored images again, with the same or other scorers",
    "sets": "compare sets of images by KID and CMMD",
    "verify": "check that every stored byte is intact, and drop what is not",
    "compare": "compare a study with the sweep that it replaces",
    "study": "print what a study recommends",
    "benchmark": "measure this machine against a loop over diffusers' pipeline",
    "completion": "print a tab-completion script for bash, zsh or fish",
}
"""Each sub-command with its line in ``--help``."""


def is_subcommand(words: Sequence[str]) -> bool:
    """Whether the command line calls a sub-command: its first word is no setting and no flag of Hydra's."""
    return bool(words) and "=" not in words[0] and not words[0].startswith(("+", "~", "-"))


def run(words: Sequence[str]) -> int:
    """Run a sub-command; returns its exit code.

    Args:
        words: the sub-command's name and its arguments.

    Raises:
        UserError: there is no such sub-command, two were given, or its arguments are wrong.
    """
    name, arguments = words[0], words[1:]
    if name not in SUBCOMMANDS:
        raise UserError(_unknown(name))
    if (
        name != "completion"
        and arguments
        and arguments[0] in SUBCOMMANDS
        and not os.path.exists(arguments[0])
    ):
        raise UserError(f"{name} {arguments[0]}: one sub-command at a time, followed by its folder")
    command = load(name)
    return command.run(parse(name, command, arguments))


def load(name: str) -> Subcommand:
    """The module of a sub-command."""
    return cast(Subcommand, import_module(f"sega_bench.cli.{name}"))


def _unknown(name: str) -> str:
    from sega_bench.config import options

    for group in ("sweep", "study"):
        if name in options(group):
            return f"{name!r} is a {group}: a setting is written key=value, as in +{group}={name}"
    known = ", ".join(SUBCOMMANDS)
    return (
        f"{name!r} is no sub-command: {nearest(name, SUBCOMMANDS)}there are {known}; "
        "a setting is written key=value, as in seeds=4"
    )

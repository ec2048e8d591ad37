"""Calls the command line in the test's process."""

import sys

import pytest

from sega_bench.cli import subcommands, sweep
from sega_bench.cli.main import main
from sega_bench.errors import exit_on_user_error


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the command line in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["sega_bench", *words])
    monkeypatch.setattr(sweep, "quieten_libraries", lambda: None)
    try:
        main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def subcommand(*words: object) -> int:
    """Run a sub-command in this process; returns its exit code."""
    try:
        with exit_on_user_error():
            return subcommands.run([str(word) for word in words])
    except SystemExit as exit_:
        return int(exit_.code or 0)

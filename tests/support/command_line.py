"""The command line, called in the process of the test."""

import sys

import pytest

from sega_bench import __main__
from sega_bench.cli import sweep


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["sega_bench", *words])
    monkeypatch.setattr(sweep, "quieten_libraries", lambda: None)
    try:
        __main__.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0

"""W&B's runs on disk, read back; and tests that have no account."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import wandb


@contextmanager
def without_account(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No account, no settings of whoever runs the tests, and no SDK left running."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    yield
    wandb.teardown()
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_SILENT"):
        os.environ.pop(name, None)


def read(folder: Path) -> list[dict[str, Any]]:
    """The run's records, read by the SDK's own reader."""
    (run,) = folder.glob("*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def updates(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The run's summary in the end."""
    merged: dict[str, Any] = {}
    for record in records:
        if record["type"] == "summary":
            merged |= record["summary"]["update"]
    return merged

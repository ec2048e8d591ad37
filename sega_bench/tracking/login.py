"""Check the login to Weights & Biases and its server, without importing its SDK."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from sega_bench.config import WANDB_MODES
from sega_bench.errors import UserError

Mode = Literal["online", "offline", "disabled"]

ASK_SECONDS = 2.0
"""A server that does not answer within this time counts as gone."""


def resolve_mode(mode: str) -> Mode:
    """Resolve ``auto``: ``WANDB_MODE`` if set, otherwise online if logged in and offline if not.

    Raises:
        UserError: there is no such mode.
    """
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if is_logged_in() else "offline")
    if mode in WANDB_MODES and mode != "auto":
        return mode  # type: ignore[return-value]
    raise UserError(f"wandb.mode: there is no mode {mode!r}; use {', '.join(WANDB_MODES)}")


def is_logged_in() -> bool:
    """Whether there are credentials in the environment or the netrc file; contacts no server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(_server()).hostname
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if path and host and netrc.netrc(Path(path).expanduser()).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError, RuntimeError):  # RuntimeError: no home folder
            continue
    return False


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def is_there() -> bool:
    """Whether W&B's server answers without an internal error."""
    try:
        with urlopen(_server(), timeout=ASK_SECONDS):
            return True
    except HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False

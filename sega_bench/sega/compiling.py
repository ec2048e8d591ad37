"""Run a network through ``torch.compile`` with batches of fixed sizes, from several threads."""

from __future__ import annotations

import os
import shutil
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from sega_bench.errors import UserError


class Compiled:
    """A UNet compiled once per shape, by the first thread that calls it with that shape.

    Args:
        network: diffusers' UNet.
    """

    def __init__(self, network: Any) -> None:
        self._call: Any = torch.compile(network, dynamic=False)
        self._compiled: set[torch.Size] = set()
        self._lock = Lock()

    def __call__(self, sample_BCHW: Tensor, *rest: Any, **named: Any) -> Any:
        """The network's output."""
        if sample_BCHW.shape in self._compiled:
            return self._call(sample_BCHW, *rest, **named)
        with self._lock:  # compiling is not thread-safe, and other threads would compile the same shape
            output = self._call(sample_BCHW, *rest, **named)
            self._compiled.add(sample_BCHW.shape)
            return output


def require_compiler() -> None:
    """Check that ``torch.compile`` finds a C++ compiler.

    Raises:
        UserError: it does not.
    """
    compiler = os.environ.get("CXX", "g++")
    if not any(shutil.which(name) for name in (compiler, "clang++", "cl")):
        raise UserError(
            f"engine.compile=true needs a C++ compiler, but there is no {compiler} here: install one, for "
            "example with apt-get install g++, or leave engine.compile out"
        )

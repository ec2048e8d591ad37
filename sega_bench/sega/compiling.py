"""A network through ``torch.compile``, for batches of fixed sizes and several threads."""

from __future__ import annotations

import os
import shutil
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from sega_bench.errors import UserError


class Compiled:
    """A UNet that is compiled once for every batch size, by the first thread that brings one.

    Args:
        network: diffusers' UNet.
    """

    def __init__(self, network: Any) -> None:
        self._call: Any = torch.compile(network, dynamic=False)
        self._known: set[torch.Size] = set()
        self._lock = Lock()

    def __call__(self, sample_BCHW: Tensor, *rest: Any, **named: Any) -> Any:
        """What the network returns."""
        if sample_BCHW.shape in self._known:
            return self._call(sample_BCHW, *rest, **named)
        with self._lock:
            output = self._call(sample_BCHW, *rest, **named)
            self._known.add(sample_BCHW.shape)
            return output


def check() -> None:
    """See that there is what ``torch.compile`` needs.

    Raises:
        UserError: there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if not any(shutil.which(name) for name in (compiler, "clang++", "cl")):
        raise UserError(
            f"engine.compile=true needs a C++ compiler, but there is no {compiler} here: install one, for "
            "example with apt-get install g++, or leave engine.compile out"
        )

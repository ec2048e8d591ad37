"""Diffusers' deprecated SEGA pipeline on a loaded model, for as long as diffusers has it."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from sega_bench.benchmark import oracle
from sega_bench.cell import Cell

needs_live_oracle = pytest.mark.skipif(not oracle.is_available(), reason=oracle.MISSING)
"""For tests that run the pipeline; :mod:`support.frozen_oracle` holds its frozen latents."""


def latents(pipeline: Any, cell: Cell) -> Tensor:
    """The cell's final latents, CHW.

    A replay takes two runs: its source's, and its reference's with the guidance of the first.
    """
    if cell.replay is None:
        return oracle.make_latents(pipeline, cell)[0]
    with _float64_buffers():
        oracle.make_latents(pipeline, cell.source())
        return oracle.make_latents(pipeline, cell.reference(), sem_guidance=pipeline.sem_guidance)[0]


def _float64_buffers() -> Any:
    """Let ``torch.zeros`` make float64: the pipeline stores ``sem_guidance`` in float32, which rounds it."""
    zeros = torch.zeros
    return mock.patch("torch.zeros", lambda *size, **kind: partial(zeros, dtype=torch.float64)(*size, **kind))

"""Runs small sweeps as the command does, from plan to views, with fake networks that take no time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from sega_bench.cell import Cell
from sega_bench.cli import sweep
from sega_bench.config import compose
from sega_bench.execution import jobs, runner
from sega_bench.planning.planner import Plan, plan
from sega_bench.scores.scoring import Features, edited_only
from sega_bench.store import Store
from support.fakes import FakeDenoiser
from support.small_sweep import overrides

NAME = "small-local"


class FakeScorer:
    """Scores ``clip_concept_delta`` and ``lpips`` from the mean colour of the image."""

    provenance: Mapping[str, Mapping[str, str]] = {
        name: {"name": name, "backbone": "none", "weights": "none"} for name in ("clip", "lpips")
    }

    def features(self, image_BHWC: torch.Tensor) -> Features:
        return (image_BHWC.double().mean(dim=(1, 2, 3)) / 255,)

    def compare(self, cells: Sequence[Cell], edited: Features, reference: Features) -> list[dict[str, float]]:
        change_B = edited[0] - reference[0]
        return edited_only(cells, clip_concept_delta=change_B, lpips=change_B.square())


@cache
def _plan(words: tuple[str, ...]) -> Plan:
    return plan(compose(*overrides(Path("nowhere"), "sampling.height=16", "sampling.width=16", *words)))


def small_plan(output_dir: Path, *words: str) -> Plan:
    """A plan of two thresholds of one concept on two seeds: six cells of 16 x 16 pixels."""
    cached = _plan(words)
    return replace(cached, config=replace(cached.config, output_dir=str(output_dir)))


@contextmanager
def fake_networks(before: Callable[[torch.Tensor], None] = lambda latents: None) -> Iterator[None]:
    """Replace every network inside the block; ``before`` is called with each batch for the UNet."""
    with (
        mock.patch.object(runner, "load", return_value=FakeDenoiser(before)),
        mock.patch.object(runner.scores, "build", return_value=(FakeScorer(),)),
    ):
        yield


def run_sweep(
    output_dir: Path, *words: str, before: Callable[[torch.Tensor], None] = lambda latents: None
) -> int:
    """Run a small sweep to its views; returns the number of cells that failed or lack scores."""
    with fake_networks(before), jobs.locked(small_plan(output_dir, *words)) as job:
        return sweep.run_job(job)


def store(output_dir: Path) -> Store:
    return Store(output_dir / NAME)


def results(output_dir: Path) -> dict[str, tuple[Any, ...]]:
    """By key: the recorded hash of the image, the hash of the pixels on disk, and the scores."""
    by_key = {}
    for row in store(output_dir).rows()[0]:
        pixels = np.ascontiguousarray(store(output_dir).read_image(row["image"]))
        score = [row[name] for name in ("clip_concept_delta", "lpips", "error")]
        by_key[row["key"]] = (row["image_sha256"], hashlib.sha256(pixels).hexdigest(), *score)
    return by_key

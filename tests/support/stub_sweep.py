"""The command's own way through a sweep, from plan to views, with stand-ins for the networks: no wait."""

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
    """Gain and price of an edit, from the mean colour of its picture."""

    provenance: Mapping[str, Mapping[str, str]] = {
        name: {"name": name, "backbone": "none", "weights": "none"} for name in ("clip", "lpips")
    }

    def features(self, image_BHWC: torch.Tensor) -> Features:
        return (image_BHWC.double().mean(dim=(1, 2, 3)) / 255,)

    def compare(self, cells: Sequence[Cell], edited: Features, reference: Features) -> list[dict[str, float]]:
        change_B = edited[0] - reference[0]
        return edited_only(cells, clip_concept_delta=change_B, lpips=change_B.square())


@cache
def _planned(words: tuple[str, ...]) -> Plan:
    return plan(compose(*overrides(Path("nowhere"), "sampling.height=16", "sampling.width=16", *words)))


def planned(output_dir: Path, *words: str) -> Plan:
    """The plan of two thresholds of one concept on two seeds, six cells of 16 x 16 pixels."""
    made = _planned(words)
    return replace(made, config=replace(made.config, output_dir=str(output_dir)))


@contextmanager
def stand_ins(before: Callable[[torch.Tensor], None] = lambda latents: None) -> Iterator[None]:
    """Instead of every network; ``before`` is called with whatever goes through the UNet."""
    with (
        mock.patch.object(runner, "load", return_value=FakeDenoiser(before)),
        mock.patch.object(runner.scores, "build", return_value=(FakeScorer(),)),
    ):
        yield


def work(output_dir: Path, *words: str, before: Callable[[torch.Tensor], None] = lambda latents: None) -> int:
    """What the command does with a plan, views and all; the number of failed cells."""
    with stand_ins(before), jobs.locked(planned(output_dir, *words)) as job:
        return sweep.run_job(job)


def store(output_dir: Path) -> Store:
    return Store(output_dir / NAME)


def results(output_dir: Path) -> dict[str, tuple[Any, ...]]:
    """What a sweep comes to: by key, its image's hash, that of the pixels on disk, and the scores."""
    found = {}
    for row in store(output_dir).rows()[0]:
        pixels = np.ascontiguousarray(store(output_dir).read_image(row["image"]))
        score = [row[name] for name in ("clip_concept_delta", "lpips", "error")]
        found[row["key"]] = (row["image_sha256"], hashlib.sha256(pixels).hexdigest(), *score)
    return found

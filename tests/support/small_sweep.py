"""A sweep of six cells through the real pipeline, on tiny random networks; it takes a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sega_bench.cell import Cell
from sega_bench.config import Config, compose
from sega_bench.execution import generator, runner
from sega_bench.sega.batching import Batching
from sega_bench.sega.denoiser import Denoiser
from sega_bench.sega.schedule import Wave
from sega_bench.sega.wave import Outcome, run_waves
from sega_bench.store import Record, Store
from support import tiny_sd
from support.tiny_clip import clip_folder


def overrides(output_dir: Path, *more: str) -> list[str]:
    """Overrides for two thresholds of one concept on two seeds: four edits and two references."""
    return [
        "model=local",
        f"model.path={tiny_sd.folder()}",
        "scores=faces",
        f"scores.clip_model=local-dir:{clip_folder('vit')}",
        "name=small",
        f"output_dir={output_dir}",
        "prompts=[a face]",
        "concepts=[glasses]",
        "seeds=2",
        "sampling.num_inference_steps=4",
        "edit.edit_warmup_steps=1",
        "+axes.edit_threshold=[0.5,0.9]",
        "engine.micro_batch_size=4",
        "wandb.mode=disabled",
        *more,
    ]


def small(output_dir: Path, *more: str) -> Config:
    """The composed configuration of the sweep."""
    return compose(*overrides(output_dir, *more))


def run(output_dir: Path, *more: str) -> list[Record]:
    """Run the sweep in this process."""
    return list(runner.run(small(output_dir, *more)))


def store(output_dir: Path) -> Store:
    """The sweep's folder."""
    return Store(output_dir / "small-local")


def rows(output_dir: Path) -> dict[str, dict[str, Any]]:
    """The sweep's current rows by key."""
    return {row["key"]: row for row in store(output_dir).rows()[0]}


def hashes(output_dir: Path) -> dict[str, str]:
    """The hashes of the sweep's images by key."""
    return {key: row["image_sha256"] for key, row in rows(output_dir).items()}


def done_keys(output_dir: Path) -> set[str]:
    """Keys of the cells whose image is complete."""
    return store(output_dir).done_keys(rows(output_dir).values())


def refuse_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test fail if a model is loaded."""

    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(runner, "load", load)


def poison(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[Cell], bool]) -> None:
    """Let every wave that contains a bad cell raise."""

    def poisoned(
        denoiser: Denoiser, waves: Iterable[Wave], batching: Batching, on: Callable[[int], None]
    ) -> Iterator[list[Outcome] | Exception]:
        for wave in waves:
            if any(is_bad(cell) for cell in wave.cells):
                yield ValueError("the model choked\non two lines")
            else:
                yield from run_waves(denoiser, [wave], batching, on)

    monkeypatch.setattr(generator, "run_waves", poisoned)

"""The frozen latents belong to the settings of the parity tests, and are written as they are read."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import frozen_oracle, without_oracle
from support.frozen_oracle import Case

from sega_bench.errors import UserError
from tools import freeze_oracle


def without_model(case: Case) -> Case:
    return Case(case.prediction_type, tuple(replace(cell, model="") for cell in case.cells))


def test_the_frozen_cells_are_the_present_settings_and_schedulers() -> None:
    """If this fails, a setting has changed: freeze the latents anew with --draw."""
    chosen = itertools.takewhile(
        lambda named: not named[0].startswith("random/"), freeze_oracle.chosen_cases()
    )
    expected = {name: without_model(case) for name, case in chosen}
    frozen = {name: case for name, case in frozen_oracle.cases().items() if not name.startswith("random/")}
    assert frozen == expected


def test_cells_and_latents_are_read_as_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, latents = frozen_oracle.cases(), frozen_oracle.all_latents()
    versions, cells_json = frozen_oracle.document()["versions"], frozen_oracle.FOLDER / "cells.json"
    monkeypatch.setattr(frozen_oracle, "FOLDER", tmp_path)
    frozen_oracle.write(cases, latents, versions)
    assert (tmp_path / "cells.json").read_bytes() == cells_json.read_bytes()
    assert set(load_file(tmp_path / "latents.safetensors")) == {*latents, "noise"}
    assert torch.equal(frozen_oracle.frozen_noise(), frozen_oracle.noise())


def test_freezing_without_the_pipeline_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    without_oracle.remove_pipeline(monkeypatch)
    freeze_oracle.pipeline.cache_clear()
    written: list[object] = []
    monkeypatch.setattr(frozen_oracle, "write", lambda *args: written.append(args))
    with pytest.raises(UserError, match="has no SemanticStableDiffusionPipeline"):
        freeze_oracle.freeze(draw=False)
    assert not written

"""A folder written by an earlier release is resumed, extended and shown by this one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.command_line import call
from support.small_sweep import refuse_to_load

from sega_bench.analysis.results import Results
from sega_bench.store import Store

FOLDER = Path(__file__).parents[1] / "fixtures" / "folder_0_1"
"""plan.json, records and images of ``+sweep=smoke sampling.num_inference_steps=20``, written by 0.1.0."""

WORDS = (
    "+sweep=smoke",
    "prompts=['a photo of the face of a woman']",
    "concepts=['glasses, wearing glasses']",
    "axes.edit_threshold=[0.75,0.9,0.99]",
    "sampling.num_inference_steps=20",
    "engine.device=cpu",
    "wandb.mode=disabled",
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    shutil.copytree(FOLDER, tmp_path / "smoke")
    return Store(tmp_path / "smoke")


def test_a_complete_older_folder_needs_no_work(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_load(monkeypatch)
    rows = store.rows()[0]
    assert call(monkeypatch, *WORDS, "seeds=[3]", f"output_dir={store.root.parent}") == 0
    assert store.rows()[0] == rows
    assert (store.report_dir / "index.html").exists()
    assert len(Results.read(store).frame) == 4


def test_extending_an_older_folder_generates_only_new_cells_and_keeps_its_images(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {row["key"]: row["image_sha256"] for row in store.rows()[0]}
    assert call(monkeypatch, *WORDS, "seeds=[3,4]", f"output_dir={store.root.parent}") == 0
    after = {row["key"]: row["image_sha256"] for row in store.rows()[0]}
    assert after.items() > before.items()
    assert len(after) == 8
    fresh = tmp_path / "fresh"
    assert call(monkeypatch, *WORDS, "seeds=[3]", "engine.threads=1", f"output_dir={fresh}") == 0
    assert {row["key"] for row in Store(fresh / "smoke").rows()[0]} == before.keys()


def test_an_older_folders_keys_are_those_of_its_plan(store: Store) -> None:
    plan = json.loads((FOLDER / "plan.json").read_text())
    assert sorted(plan["keys"]) == sorted(row["key"] for row in store.rows()[0])

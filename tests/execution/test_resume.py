"""Resuming on tiny networks: a command generates exactly the cells that its folder lacks."""

import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_sd
from support.small_sweep import hashes, poison, refuse_to_load, rows, run, small, store

import sega_bench
from sega_bench.errors import UserError
from sega_bench.execution import jobs, runner
from sega_bench.execution.resume import REFERENCE_FAILED
from sega_bench.planning.planner import plan
from sega_bench.store import Record
from sega_bench.store.journal import Journal


def evaluations(output_dir: Path, *more: str) -> tuple[int, list[Record]]:
    """Run the sweep; returns its UNet evaluations and its new records."""
    counts: list[int] = []
    records = list(runner.execute(jobs.prepare(plan(small(output_dir, *more))), counts.append))
    return sum(counts), records


def image_files(output_dir: Path) -> dict[str, tuple[int, int]]:
    """Each image's inode and modification time, which change when the file is replaced."""
    paths = store(output_dir).images_dir.rglob("*.png")
    return {path.stem: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def scores(output_dir: Path) -> dict[str, dict[str, object]]:
    names = ("clip_prompt", "clip_concept_delta", "lpips", "ssim", "error")
    return {key: {name: row[name] for name in names} for key, row in rows(output_dir).items()}


def document(output_dir: Path) -> dict[str, object]:
    return dict(json.loads(store(output_dir).plan_path.read_text()))


# --- a reference that failed ---


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of a sweep whose references failed, so that its four edits lack scores, and of a fresh one."""
    with monkeypatch.context() as patch:
        poison(patch, lambda cell: cell.is_reference)
        run(tmp_path / "failed")
    assert run(tmp_path / "failed") == []  # without retry_failed, neither the references nor the edits
    run(tmp_path / "fresh")
    return tmp_path


def test_retrying_a_failed_reference_scores_its_edits(waiting: Path) -> None:
    before, images = rows(waiting / "failed"), image_files(waiting / "failed")
    count, records = evaluations(waiting / "failed", "retry_failed=true")
    assert len(records) == 6
    assert count == sum(record.unet_evals for record in records if record.cell.is_reference)
    assert images.items() <= image_files(waiting / "failed").items()
    assert scores(waiting / "failed") == scores(waiting / "fresh")
    for key, row in rows(waiting / "failed").items():
        if not row["is_reference"]:  # the row still counts the image's own cost
            names = ("image_sha256", "unet_evals", "seconds")
            assert [row[name] for name in names] == [before[key][name] for name in names]
    assert run(waiting / "failed", "retry_failed=true") == []


def test_a_retry_stopped_after_the_references_resumes_with_the_scores(waiting: Path) -> None:
    records: Iterator[Record] = runner.run(small(waiting / "failed", "retry_failed=true"))
    assert all(record.cell.is_reference for record in islice(records, 2))
    del records
    count, rest = evaluations(waiting / "failed")
    assert (count, len(rest)) == (0, 4)
    assert scores(waiting / "failed") == scores(waiting / "fresh")


def test_a_reference_that_fails_again_leaves_its_edits_unscored(
    waiting: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda cell: cell.is_reference)
    run(waiting / "failed", "retry_failed=true")
    edited = [row for row in rows(waiting / "failed").values() if not row["is_reference"]]
    assert [(row["status"], row["error"]) for row in edited] == [("done", REFERENCE_FAILED)] * 4


# --- a cell equal to its reference ---


@pytest.mark.parametrize("added", ["+axes.edit_guidance_scale=[0,5]", "+axes.edit_warmup_steps=[1,4]"])
def test_a_cell_equal_to_its_stored_reference_takes_no_evaluation(tmp_path: Path, added: str) -> None:
    run(tmp_path)
    images = image_files(tmp_path)
    count, records = evaluations(tmp_path, added)
    assert (count, len(records)) == (0, 4)
    assert image_files(tmp_path) == images
    for record in records:
        assert record.image == rows(tmp_path)[record.cell.reference().key]["image"]
        assert (record.unet_evals, record.scores["mse"], record.error) == (0, 0.0, None)
    assert run(tmp_path, added) == []


def test_a_cell_equal_to_a_new_reference_is_generated_in_its_wave(tmp_path: Path) -> None:
    run(tmp_path)
    _, records = evaluations(tmp_path, "+axes.edit_guidance_scale=[0,5]", "seeds=3")
    assert sum(record.unet_evals for record in records if record.cell.seed == 2) > 0
    assert all(record.unet_evals == 0 for record in records if record.cell.seed < 2)
    assert sega_bench.load(store(tmp_path).root)["lpips"].notna().sum() == 3 * 4


# --- settings that change an image's last bits ---

SIZES = ("engine.micro_batch_size=3", "engine.decode_batch_size=3", "engine.threads=1")
UNSET_SIZES = ("engine.micro_batch_size=null",)


def test_a_resume_reuses_the_sizes_and_threads_of_the_first_run(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    run(tmp_path / "grown", *SIZES)
    engine = document(tmp_path / "grown")["engine"]
    run(tmp_path / "grown", *UNSET_SIZES, "seeds=3")
    assert document(tmp_path / "grown")["engine"] == engine
    run(tmp_path / "fresh", *SIZES, "seeds=3")
    assert hashes(tmp_path / "grown") == hashes(tmp_path / "fresh")
    assert torch.get_num_threads() == 2


def test_requested_sizes_override_the_recorded_ones_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, *SIZES)
    with caplog.at_level(logging.WARNING, "sega_bench"):
        run(tmp_path, *UNSET_SIZES, "engine.decode_batch_size=2", "engine.threads=2", "seeds=3")
    (message,) = caplog.messages
    assert message.startswith("decode_batch_size is 2 and was 3, threads is 2 and was 1: new images")
    assert jobs.prepare(plan(small(tmp_path, *UNSET_SIZES))).batching.decode == 2


# --- damaged and lost images ---


@pytest.mark.parametrize(
    "damage", [lambda png: png[:40], lambda png: png[:-20] + b"\x00" * 20, lambda png: b""]
)
def test_a_damaged_reference_is_regenerated_before_edits_are_scored_against_it(
    tmp_path: Path, damage: object
) -> None:
    assert callable(damage)
    records = run(tmp_path, "seeds=1")
    (reference,) = [record for record in records if record.cell.is_reference]
    path = store(tmp_path).root / str(reference.image)
    path.write_bytes(damage(path.read_bytes()))
    grown = ("seeds=1", "axes.edit_threshold=[0.5,0.7,0.9]")
    assert {record.cell.is_reference for record in run(tmp_path, *grown)} == {True, False}
    run(tmp_path / "fresh", *grown)
    assert hashes(tmp_path) == hashes(tmp_path / "fresh")
    assert scores(tmp_path) == scores(tmp_path / "fresh")


def test_a_damaged_image_is_regenerated_before_it_is_scored(waiting: Path) -> None:
    key, row = next((key, row) for key, row in rows(waiting / "failed").items() if not row["is_reference"])
    (store(waiting / "failed").root / row["image"]).write_bytes(b"no picture")
    run(waiting / "failed", "retry_failed=true")
    assert hashes(waiting / "failed") == hashes(waiting / "fresh")
    assert scores(waiting / "failed")[key] == scores(waiting / "fresh")[key]


def test_a_lost_image_that_cannot_be_regenerated_is_a_failed_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = next(record for record in run(tmp_path) if not record.cell.is_reference)
    (store(tmp_path).root / str(lost.image)).unlink()
    with monkeypatch.context() as patch:
        poison(patch, lambda cell: cell == lost.cell)
        assert [record.status for record in run(tmp_path)] == ["failed"]
    assert rows(tmp_path)[lost.cell.key]["status"] == "failed"
    assert run(tmp_path) == []
    assert [record.status for record in run(tmp_path, "retry_failed=true")] == ["done"]
    assert set(sega_bench.load(store(tmp_path).root)["status"]) == {"done"}


# --- plan.json ---


def test_plan_json_follows_the_axes_even_if_no_cell_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    before = document(tmp_path)
    refuse_to_load(monkeypatch)
    one_more = "+axes.edit_guidance_scale=[5]"
    assert jobs.prepare(plan(small(tmp_path, one_more))).needs_update
    assert run(tmp_path, one_more) == []
    after = document(tmp_path)
    assert after["axes"] == {"edit_threshold": [0.5, 0.9], "edit_guidance_scale": [5]}
    assert [after[name] for name in ("keys", "engine", "scores")] == [
        before[name] for name in ("keys", "engine", "scores")
    ]
    assert not jobs.prepare(plan(small(tmp_path, one_more))).needs_update


def test_plan_json_does_not_change_with_settings_that_change_no_result(tmp_path: Path) -> None:
    run(tmp_path)
    text = store(tmp_path).plan_path.read_text()
    assert (
        run(tmp_path, "retry_failed=true", "fail_fast=true", "engine.threads=1", "wandb.mode=offline") == []
    )
    assert store(tmp_path).plan_path.read_text() == text


def test_plan_json_names_a_prompt_file_without_its_folder(tmp_path: Path) -> None:
    (tmp_path / "faces.txt").write_text("a face\n")
    run(tmp_path / "out", f"prompts={tmp_path / 'faces.txt'}")
    text = store(tmp_path / "out").plan_path.read_text()
    assert str(tmp_path) not in text
    assert document(tmp_path / "out")["settings"]["prompts"] == "faces.txt"  # type: ignore[index]


def test_a_model_folder_may_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_sd.folder(), tmp_path / "one")
    run(tmp_path, f"model.path={tmp_path / 'one'}")
    (tmp_path / "one").rename(tmp_path / "other")
    refuse_to_load(monkeypatch)
    assert run(tmp_path, f"model.path={tmp_path / 'other'}") == []


def test_a_lost_plan_json_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    before = document(tmp_path)
    store(tmp_path).plan_path.unlink()
    refuse_to_load(monkeypatch)
    assert run(tmp_path) == []
    assert document(tmp_path) == before


def test_the_records_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    reads, lines = [], Journal.lines
    monkeypatch.setattr(Journal, "lines", lambda self: reads.append(self) or lines(self))
    jobs.prepare(plan(small(tmp_path, "seeds=3")))
    assert len(reads) == 1


# --- other weights, devices and versions than in the first run ---


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sd.folder(), tmp_path / "model"))


@pytest.mark.parametrize("looks", ["newer", "as before", "as before, moved"])
def test_other_weights_under_the_same_path_are_refused(tmp_path: Path, own_model: Path, looks: str) -> None:
    words = (f"model.path={own_model}",)
    before = {record.cell.key for record in run(tmp_path, *words)}
    (weights,) = (own_model / "unet").glob("*.safetensors")
    tensors, stat = load_file(weights), weights.stat()
    name = next(iter(tensors))
    other = tmp_path / "other.safetensors" if looks.endswith("moved") else weights
    save_file(tensors | {name: tensors[name] + 1}, other, metadata={"format": "pt"})
    if looks.startswith("as before"):  # as after cp -p, rsync -t or tar
        os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert other.stat().st_size == stat.st_size
    other.replace(weights)
    text = store(tmp_path).plan_path.read_text()
    with pytest.raises(UserError, match=r"the model was .*@\w+ and is .*@\w+\): give this one another name="):
        run(tmp_path, *words, "seeds=3")
    assert store(tmp_path).plan_path.read_text() == text
    assert before.isdisjoint(cell.key for cell in plan(small(tmp_path, *words)).cells)


def test_weights_that_change_between_planning_and_loading_are_refused(
    tmp_path: Path, own_model: Path
) -> None:
    """A cluster worker may start long after planning, on a node where the path holds another model."""
    resolved = plan(small(tmp_path, f"model.path={own_model}"))
    (weights,) = (own_model / "unet").glob("*.safetensors")
    content = weights.read_bytes()
    with jobs.locked(resolved) as job:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=r"^model\.path is .* it is local@\w+ now and was local@\w+ when"):
            list(runner.execute(job))
        assert rows(tmp_path) == {}
        weights.write_bytes(content)
        assert len(list(runner.execute(job))) == 6


def test_another_device_library_or_scorer_batch_is_warned_of_and_recorded_per_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path)
    version = metadata.version
    monkeypatch.setattr(runner, "_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(metadata, "version", lambda name: "99" if name == "torch" else version(name))
    with caplog.at_level(logging.WARNING, "sega_bench"):
        assert run(tmp_path, "scores.batch_size=4") == []
        assert caplog.messages == []  # no cell is added, so nothing can differ
        run(tmp_path, "scores.batch_size=4", "seeds=3")
    (message,) = caplog.messages
    start = f"device is NVIDIA H100 and was {runner_device()}, torch is 99 and was {version('torch')}, "
    assert message.startswith(start + "scores.batch_size is 4 and was 16: new images and scores may differ")
    devices = {row["seed"]: (row["device"], "torch 99" in row["versions"]) for row in rows(tmp_path).values()}
    assert devices == {0: (runner_device(), False), 1: (runner_device(), False), 2: ("NVIDIA H100", True)}
    assert all(f"sega_bench {sega_bench.__version__}" in row["versions"] for row in rows(tmp_path).values())


def test_another_version_of_this_package_is_warned_of_and_recorded_per_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path)
    before = sega_bench.__version__
    monkeypatch.setattr("sega_bench.version.__version__", "99.0")
    with caplog.at_level(logging.WARNING, "sega_bench"):
        run(tmp_path, "seeds=3")
    (message,) = caplog.messages
    assert message.startswith(f"sega_bench is 99.0 and was {before}: new images and scores may differ")
    versions = {row["seed"]: row["versions"].split("; ")[0] for row in rows(tmp_path).values()}
    assert versions == {0: f"sega_bench {before}", 1: f"sega_bench {before}", 2: "sega_bench 99.0"}
    assert document(tmp_path)["code_version"] == "99.0"


GROWTH = {
    ("prompts=[a face, a man]",): 6,
    ("prompts=faces.txt",): 6,
    ("concepts=[glasses, smile]",): 4,
    ("concepts=[glasses, [glasses, smile]]",): 4,
    ("seeds=4",): 6,
    ("seeds=[0,1,7]",): 3,
    ("axes.edit_threshold=[0.5,0.7,0.9]",): 2,
    ("+axes.edit_guidance_scale=[5,3]",): 4,
    ("+axes.guidance_scale=[7,3]",): 6,
    ("+zip.edit_guidance_scale=[5,3]", "+zip.edit_weights=[1,2]"): 4,
    ("+axes.method=[sega,composable]",): 2,
    ("replay=[null, a man]",): 4,
}
"""Overrides that extend the sweep of six cells, and the number of cells that they add."""


@pytest.mark.parametrize("words", GROWTH, ids=lambda words: words[0].partition("=")[0].strip("+"))
def test_an_extended_sweep_generates_only_its_new_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("faces.txt").write_text("a face\na man\n")
    run(tmp_path)
    before = hashes(tmp_path)
    assert len(before) == 6
    extended = plan(small(tmp_path, *words))
    assert len(run(tmp_path, *words)) == GROWTH[words]
    after = hashes(tmp_path)
    assert before.items() <= after.items()
    assert set(after) == {cell.key for cell in extended.cells}
    assert document(tmp_path)["keys"] == [cell.key for cell in extended.cells]


def runner_device() -> str:
    return f"cpu {platform.machine()}"

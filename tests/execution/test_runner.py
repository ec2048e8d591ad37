import gc
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.small_sweep import done_keys, hashes, poison, refuse_to_load, run, small, store
from support.tiny_clip import write_clip

import sega_bench
from sega_bench.analysis import summary
from sega_bench.cell import Cell
from sega_bench.errors import UserError
from sega_bench.execution import jobs, runner
from sega_bench.planning.planner import plan
from sega_bench.store import Record


def test_every_cell_is_generated_scored_and_stored(tmp_path: Path) -> None:
    config = small(tmp_path)
    resolved = plan(config)
    records = {record.cell: record for record in runner.run(config)}
    assert set(records) == set(resolved.cells)
    assert sum(record.unet_evals for record in records.values()) == resolved.counts()["unet_evals"]
    for cell, record in records.items():
        assert (record.status, record.error) == ("done", None)
        file = store(tmp_path).root / str(record.image)
        assert hashlib.sha256(file.read_bytes()).hexdigest() == record.image_sha256
        assert np.asarray(Image.open(file)).shape == (32, 32, 3)
        assert record.scores["clip_prompt"] == pytest.approx(record.scores["clip_prompt"])
        if not cell.is_reference:
            assert {"clip_concept_delta", "clip_directional", "lpips", "ssim", "psnr"} <= set(record.scores)
    frame = sega_bench.load(store(tmp_path).root)
    assert len(frame) == 6
    assert frame["lpips"].notna().sum() == 4


def test_plan_json_holds_no_path_of_this_machine(tmp_path: Path) -> None:
    run(tmp_path)
    text = store(tmp_path).plan_path.read_text()
    document = json.loads(text)
    assert document["counts"]["cells"] == 6
    assert document["axes"] == {"edit_threshold": [0.5, 0.9]}
    assert document["engine"]["micro_batch_size"] == 4
    assert document["scores"]["clip"]["weights"].startswith("sha256:")
    assert str(tmp_path) not in text
    assert "/tmp" not in text


def test_the_same_command_again_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    refuse_to_load(monkeypatch)
    assert run(tmp_path) == []
    assert not jobs.prepare(plan(small(tmp_path))).needs_update


def test_the_garbage_collector_skips_the_plan_while_its_cells_are_generated(tmp_path: Path) -> None:
    resolved = plan(small(tmp_path))
    assert gc.get_freeze_count() == 0
    with jobs.locked(resolved) as job:
        records = runner.execute(job)
        next(records)
        tracked = {id(item) for item in gc.get_objects()}
        assert tracked.isdisjoint(map(id, resolved.cells))
        assert gc.isenabled()
        assert len(list(records)) == 5
    assert gc.get_freeze_count() == 0


def test_one_more_seed_generates_only_its_cells_and_the_same_images(tmp_path: Path) -> None:
    run(tmp_path / "grown")
    added = run(tmp_path / "grown", "seeds=3")
    assert {record.cell.seed for record in added} == {2}
    run(tmp_path / "fresh", "seeds=3")
    assert hashes(tmp_path / "grown") == hashes(tmp_path / "fresh")


def test_one_more_value_repeats_a_trunk_only_up_to_the_fork(tmp_path: Path) -> None:
    run(tmp_path)
    added = run(tmp_path, "axes.edit_threshold=[0.5,0.7,0.9]")
    assert len(added) == 2
    assert all(record.unet_evals == 3 * 3 + 1 * 3 for record in added)  # branch, and one trunk step of three
    assert all(record.scores["lpips"] > 0 for record in added)


def test_added_replays_run_their_sources_again_without_recording_them(tmp_path: Path) -> None:
    both = ("prompts=[a face,a cat]", "seeds=1")
    run(tmp_path / "grown", *both)
    before = hashes(tmp_path / "grown")
    added = run(tmp_path / "grown", *both, "replay=[null,a cat]")
    assert [(r.cell.prompt, r.cell.replay, r.status) for r in added] == [("a face", "a cat", "done")] * 2
    # One step on each trunk, with the concept where momentum is built; then two sources and two replays.
    assert sum(record.unet_evals for record in added) == (3 + 2) + 2 * 3 * 3 + 2 * 3 * 2
    assert all(record.scores["clip_concept_delta"] for record in added)

    run(tmp_path / "at once", *both, "replay=[null,a cat]")
    assert hashes(tmp_path / "grown") == hashes(tmp_path / "at once")
    assert before.items() < hashes(tmp_path / "grown").items()
    frame = sega_bench.load(tmp_path / "grown" / "small-local")
    assert frame["replay"].notna().sum() == 2
    assert set(frame[frame["replay"].notna()]["reference_key"]) == {added[0].cell.reference().key}


def test_a_smaller_sweep_keeps_the_other_stored_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    refuse_to_load(monkeypatch)
    assert jobs.prepare(plan(small(tmp_path, "seeds=1"))).needs_update
    assert run(tmp_path, "seeds=1") == []
    assert len(sega_bench.load(store(tmp_path).root)) == 3
    assert run(tmp_path) == []
    assert len(sega_bench.load(store(tmp_path).root)) == 6


def test_other_scorer_weights_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    other = write_clip(tmp_path / "other" / "vit", "vit", seed=1)
    with pytest.raises(UserError, match=r"clip was .* another name="):
        run(tmp_path, "seeds=3", f"scores.clip_model=local-dir:{other}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.dtype=float64", "engine.dtype was float32 and is float64"),
        ("sampling.guidance_scale=3", "sampling.guidance_scale was 7 and is 3"),
        ("edit.edit_momentum_scale=0.9", "edit.edit_momentum_scale was 0.3 and is 0.9"),
        ("scores.perceptual=none", "scores.perceptual was 'clip' and is 'none'"),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused(tmp_path: Path, override: str, message: str) -> None:
    run(tmp_path)
    with pytest.raises(UserError) as error:
        run(tmp_path, override)
    assert message in str(error.value)
    assert "another name=" in str(error.value)


def test_a_folder_of_another_plan_version_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    path = store(tmp_path).plan_path
    path.write_text(path.read_text().replace('"plan_version": 1', '"plan_version": 0'))
    with pytest.raises(UserError, match="version"):
        run(tmp_path)


def test_one_bad_cell_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_bad(cell: Cell) -> bool:
        return cell.seed == 1 and bool(cell.edits) and cell.edits[0].edit_threshold == 0.9

    with monkeypatch.context() as patch:
        poison(patch, is_bad)
        records = {record.cell: record for record in run(tmp_path)}
    failed = [record for record in records.values() if record.status == "failed"]
    assert [is_bad(record.cell) for record in failed] == [True]
    assert (failed[0].error, failed[0].image) == ("ValueError: the model choked", None)
    assert run(tmp_path) == []  # failures are retried only with retry_failed
    (again,) = run(tmp_path, "retry_failed=true")
    assert (again.status, again.cell) == ("done", failed[0].cell)
    run(tmp_path / "fresh")
    assert hashes(tmp_path) == hashes(tmp_path / "fresh")


def test_fail_fast_stops_at_the_first_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, lambda cell: True)
    with pytest.raises(ValueError, match="choked"):
        run(tmp_path, "fail_fast=true")


def test_an_edit_without_its_reference_has_only_the_scores_that_need_none_and_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {record.cell: record.scores for record in run(tmp_path / "whole")}
    poison(monkeypatch, lambda cell: cell.is_reference)
    records = run(tmp_path)
    edited = [record for record in records if not record.cell.is_reference]
    assert {record.status for record in edited} == {"done"}
    assert {record.error for record in edited} == {"not scored: its reference failed"}
    own_scores = ("clip_prompt", "clip_concept", "clip_concept_1", "guided_fraction")
    for record in edited:
        assert record.scores == {name: whole[record.cell][name] for name in own_scores}
    frame = sega_bench.load(store(tmp_path).root)
    assert summary.summarise(frame, ["edit_threshold"])["n_not_scored"].tolist() == [2, 2, 2, 2]


def test_a_lost_image_is_regenerated(tmp_path: Path) -> None:
    records = run(tmp_path)
    before = hashes(tmp_path)
    lost = next(record for record in records if not record.cell.is_reference)
    (store(tmp_path).root / str(lost.image)).unlink()
    assert [record.cell for record in run(tmp_path)] == [lost.cell]
    assert hashes(tmp_path) == before


def test_a_cell_equal_to_its_reference_shares_its_file(tmp_path: Path) -> None:
    records = run(tmp_path, "seeds=1", "axes.edit_threshold=[0.5]", "+axes.edit_guidance_scale=[0,5]")
    images = {
        record.cell.edits[0].edit_guidance_scale if record.cell.edits else None: record for record in records
    }
    assert images[0.0].image == images[None].image != images[5.0].image
    assert (images[0.0].unet_evals, images[0.0].scores["mse"]) == (0, 0.0)
    assert run(tmp_path, "seeds=1", "axes.edit_threshold=[0.5]", "+axes.edit_guidance_scale=[0,5]") == []


def test_a_truncated_text_is_noted(tmp_path: Path) -> None:
    records = run(tmp_path, f"prompts=[{'very ' * 30}long]", "seeds=1")
    assert all("was cut to" in str(record.error) for record in records)


def test_the_wave_size_does_not_change_the_images(tmp_path: Path) -> None:
    run(tmp_path / "one")
    small_waves = run(tmp_path / "many", "engine.wave_rows=2")
    assert hashes(tmp_path / "one") == hashes(tmp_path / "many")
    assert all(record.scores for record in small_waves)


def test_yielded_records_are_kept_when_the_reader_stops(tmp_path: Path) -> None:
    records: Iterable[Record] = runner.run(small(tmp_path, "engine.wave_rows=3"))
    first = next(iter(records))
    del records
    assert first.cell.key in done_keys(tmp_path)
    assert not list(store(tmp_path).root.rglob("*.tmp"))
    rest = run(tmp_path)
    assert first.cell not in {record.cell for record in rest}
    assert len(done_keys(tmp_path)) == 6

"""Scoring stored images again: with the same or other scorers, after a kill, and with damaged files."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from support import study_runs, sweeps
from support.command_line import subcommand
from support.small_sweep import rows, run, small, store
from support.strategies import with_method
from support.tiny_clip import clip_folder, write_clip

import sega_bench
from sega_bench.errors import UserError
from sega_bench.execution import jobs
from sega_bench.execution.resume import REFERENCE_FAILED
from sega_bench.planning.planner import plan
from sega_bench.rescoring import rescore
from sega_bench.store import SETTING_COLUMNS, Record, Store, cell_from_row
from sega_bench.study import answer_files
from sega_bench.study.study_run import StudyRun

CPU = torch.device("cpu")
OWN = {"clip_model": f"local-dir:{clip_folder('vit')}"}


def rescored(folder: Store, **overrides: Any) -> Counter[str]:
    settings = rescore.resolve_settings(folder, OWN | overrides)
    return sum(rescore.rescore(folder, settings, CPU), Counter())


def plan_json(folder: Store) -> dict[str, Any]:
    return folder.read_plan() or {}


@pytest.fixture
def sweep(tmp_path: Path) -> Store:
    """Six cells of two seeds; two of them equal their references."""
    run(tmp_path, "+axes.edit_guidance_scale=[0,5]", "axes.edit_threshold=[0.9]")
    return store(tmp_path)


def test_the_same_scorers_append_the_same_rows(sweep: Store) -> None:
    before, plan_before = sweep.rows()[0], plan_json(sweep)
    lines = (sweep.records_dir / "0.jsonl").read_bytes()
    assert rescored(sweep) == {"scored": 6}
    assert sweep.rows()[0] == before
    assert plan_json(sweep) == plan_before
    assert (sweep.records_dir / "0.jsonl").read_bytes().startswith(lines)
    assert not sweep.rescoring_path.exists()


def test_other_scorers_change_only_scores_and_provenance(sweep: Store, tmp_path: Path) -> None:
    before = sweep.rows()[0]
    other = write_clip(tmp_path / "other", "vit", seed=7)
    rescored(sweep, clip_model=f"local-dir:{other}", perceptual="none", attributes=None)
    after = sweep.rows()[0]
    for was, now in zip(before, after, strict=True):
        assert was["clip_prompt"] != now["clip_prompt"]
        assert now["lpips"] is None
        same = [
            *SETTING_COLUMNS,
            "image",
            "image_sha256",
            "mse",
            "locality",
            "unet_evals",
            "seconds",
            "worker",
        ]
        assert [was.get(name) for name in same] == [now.get(name) for name in same]
    assert plan_json(sweep)["scores"]["clip"]["backbone"] == "local-dir:other"
    assert plan_json(sweep)["settings"]["scores"]["perceptual"] == "none"
    assert "lpips" not in plan_json(sweep)["scores"]


def test_a_rescored_sweep_continues_only_with_the_new_scorers(tmp_path: Path) -> None:
    run(tmp_path)
    rescored(store(tmp_path), perceptual="none")
    with pytest.raises(UserError, match=r"scores\.perceptual was 'none' and is 'clip'"):
        run(tmp_path, "seeds=3")
    assert len(run(tmp_path, "seeds=3", "scores.perceptual=none")) == 3


def test_a_row_gives_its_cell_without_the_schedulers_configuration(sweep: Store) -> None:
    same = ("+axes.edit_guidance_scale=[0,5]", "axes.edit_threshold=[0.9]")
    cells = {cell.key: cell for cell in plan(small(sweep.root.parent, *same)).cells}
    for row in sweep.rows()[0]:
        assert cell_from_row(row).edits == cells[row["key"]].edits
        back = Record(cell_from_row(row), "done").row()
        for name in set(SETTING_COLUMNS) - {"key", "reference_key"}:
            assert back[name] == row[name]


@pytest.mark.parametrize("method", ["sega", "composable", "prompt", "negative"])
def test_rows_of_every_method_give_their_cell(method: str) -> None:
    (one,) = sweeps.cells({}, ["p"], [["a", "b"]], [3])[1:]
    cell = with_method(one, method)
    assert cell_from_row(Record(cell, "done").row()) == cell
    assert cell_from_row(Record(cell.reference(), "done").row()) == cell.reference()


# --- interruption ---


def test_after_a_kill_it_continues_without_scoring_a_cell_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescore, "CHUNK", 2)
    run(tmp_path)
    folder = store(tmp_path)
    settings = rescore.resolve_settings(folder, OWN | {"perceptual": "none"})
    stopped = rescore.rescore(folder, settings, CPU)
    assert [dict(next(stopped)) for _ in range(3)] == [{}, {"scored": 2}, {"scored": 2}]
    stopped.close()
    with pytest.raises(UserError, match=r"scoring .* again was interrupted.*python -m sega_bench score "):
        jobs.prepare(plan(small(tmp_path)))
    size = (folder.records_dir / "0.jsonl").stat().st_size
    assert list(rescore.rescore(folder, settings, CPU)) == [{"done before": 4}, {"scored": 2}]
    new = (folder.records_dir / "0.jsonl").read_bytes()[size:]
    assert new.count(b"\n") == 2, "what was scored before is not scored again"
    assert all(row["lpips"] is None and row["clip_prompt"] for row in folder.rows()[0])
    assert not folder.rescoring_path.exists()
    jobs.prepare(plan(small(tmp_path, "scores.perceptual=none")))


def test_a_kill_with_other_scorers_starts_from_the_first_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescore, "CHUNK", 2)
    run(tmp_path)
    before = rows(tmp_path)
    stopped = rescore.rescore(
        store(tmp_path), rescore.resolve_settings(store(tmp_path), OWN | {"perceptual": "none"}), CPU
    )
    next(stopped), next(stopped)
    stopped.close()
    assert rescored(store(tmp_path), perceptual="clip") == {"scored": 6}
    assert rows(tmp_path) == before


# --- damaged files and failed cells ---


def first_edit(folder: Store) -> dict[str, Any]:
    """The row of the first edited cell."""
    return next(row for row in folder.rows()[0] if row["edit_guidance_scale"] == [5.0])


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [remove, truncate, empty])
def test_an_unreadable_image_loses_only_its_own_scores(
    sweep: Store, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    lost = next(row for row in sweep.rows()[0] if row["edit_guidance_scale"] == [5.0])
    before = {row["key"]: row for row in sweep.rows()[0]}
    damage(sweep.root / lost["image"])
    with caplog.at_level(logging.WARNING, "sega_bench"):
        assert rescored(sweep) == {"scored": 5, "not scored": 1}
    after = {row["key"]: row for row in sweep.rows()[0]}
    row = after.pop(lost["key"])
    assert row["error"] == "not scored: its image is not there or cannot be read"
    assert row["status"] == "done"
    assert {row[name] for name in ("clip_prompt", "lpips", "mse")} == {None}
    assert [row[name] for name in SETTING_COLUMNS] == [lost[name] for name in SETTING_COLUMNS]
    assert after == {key: value for key, value in before.items() if key != lost["key"]}
    frame = sega_bench.load(sweep.root)
    assert frame["clip_prompt"].isna().sum() == 1


@pytest.mark.parametrize("damage", [remove, truncate])
def test_an_unreadable_reference_loses_the_scores_of_its_edits(
    sweep: Store, damage: Callable[[Path], None]
) -> None:
    reference = next(row for row in sweep.rows()[0] if row["is_reference"])
    damage(sweep.root / reference["image"])
    counts = rescored(sweep)
    after = sweep.rows()[0]
    own = [row for row in after if row["reference_key"] == reference["key"]]
    assert {str(row["error"]).startswith("not scored: ") for row in own} == {True}
    assert all(row["lpips"] is None for row in own)
    assert all(row["error"] is None for row in after if row not in own)
    assert counts == {"scored": 3, "not scored": 3}


def test_a_record_without_an_image_and_a_failed_one(sweep: Store) -> None:
    first, second = [row for row in sweep.rows()[0] if row["edit_guidance_scale"] == [5.0]]
    failed = next(row for row in sweep.rows()[0] if row["edit_guidance_scale"] == [0.0])
    sweep.append_rows("0", [{**first, "image": None}])
    sweep.append_rows("1", [{**failed, "status": "failed", "error": "it broke"}])  # its image is there: done
    assert rescored(sweep) == {"scored": 5, "not scored": 1}
    after = {row["key"]: row for row in sweep.rows()[0]}
    assert after[first["key"]]["error"] == "not scored: its image is not there or cannot be read"
    assert after[second["key"]]["error"] is None


def test_edits_of_a_failed_reference_are_not_scored_and_keep_other_notes(sweep: Store) -> None:
    reference = next(row for row in sweep.rows()[0] if row["is_reference"])
    (sweep.root / reference["image"]).unlink()
    sweep.append_rows("0", [{**reference, "status": "failed", "image": None, "error": "it broke"}])
    own = [row for row in sweep.rows()[0] if row["reference_key"] == reference["key"]]
    one = next(row for row in own if row["edit_guidance_scale"] == [5.0])
    sweep.append_rows("0", [{**one, "error": "not scored: lpips: no; a text was cut"}])
    assert rescored(sweep) == {"scored": 3, "not scored": 2, "failed": 1}
    after = {row["key"]: row for row in sweep.rows()[0]}
    assert after[reference["key"]]["error"] == "it broke"
    assert after[one["key"]]["error"] == f"{REFERENCE_FAILED}; a text was cut"


def test_the_note_about_a_missing_nsfw_score_stays(sweep: Store) -> None:
    """This score is not computed here, so retry_failed must still find the cell by its note."""
    one = next(row for row in sweep.rows()[0] if row["edit_guidance_scale"] == [5.0])
    sweep.append_rows("0", [{**one, "nsfw": None, "error": "not scored: nsfw: no memory; a text was cut"}])
    assert rescored(sweep) == {"scored": 5, "not scored": 1}
    after = {row["key"]: row for row in sweep.rows()[0]}
    assert after[one["key"]]["error"] == "not scored: nsfw: no memory; a text was cut"
    assert after[one["key"]]["clip_prompt"] is not None


def test_new_rows_go_to_the_files_of_the_old_ones(sweep: Store) -> None:
    """The latest line of a cell counts, in the order of the files: a line in an earlier file would not."""
    one = first_edit(sweep)
    sweep.append_rows("9", [{**one, "seconds": 99.0}])
    rescored(sweep, perceptual="none")
    after = {row["key"]: row for row in sweep.rows()[0]}
    assert (after[one["key"]]["seconds"], after[one["key"]]["lpips"]) == (99.0, None)
    assert (sweep.records_dir / "9.jsonl").read_text().count("\n") == 2


# --- the command line ---


def run_command(sweep: Store, *words: str) -> tuple[int, str]:
    """Exit code and output."""
    done = subprocess.run(
        [sys.executable, "-m", "sega_bench", "score", str(sweep.root), *words], capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_the_command_writes_scores_and_views(sweep: Store) -> None:
    code, output = run_command(
        sweep, f"scores.clip_model=local-dir:{clip_folder('vit')}", "scores.perceptual=none"
    )
    assert code == 0, output
    assert "6 scored" in output
    assert sega_bench.load(sweep.root)["lpips"].isna().all()
    assert sweep.results_csv.exists()
    assert any(sweep.grids_dir.glob("*.png"))
    (sweep.root / first_edit(sweep)["image"]).unlink()
    code, output = run_command(sweep, f"scores.clip_model=local-dir:{clip_folder('vit')}")
    assert (code, output.splitlines()[-1]) == (1, "1 of 6 cells lack scores; the column 'error' says why")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/nowhere"], "/nowhere holds no sweep"),
        (
            ["{}", "seeds=3"],
            "'seeds=3': here there are scores=..., scores.KEY=... and",
        ),
        (["{}", "scores.perceptual=lpips"], "scores.perceptual=lpips is not known"),
        (["{}", "scores.clip=x"], "unknown key 'scores.clip'"),
        (["{}"], "scores.clip_model: the folder of local-dir:vit is not kept in plan.json: give all of it"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    folder = sweeps.finished(tmp_path / "made", seeds=[0])
    document = plan_json(folder)
    document["settings"]["scores"] = OWN if len(words) > 1 else {"clip_model": "local-dir:vit"}
    folder.write_plan(document)
    assert subcommand("score", *(word.format(folder.root) for word in words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


# --- memory ---

MEASURE = """
import json, os, sys
from pathlib import Path
import torch
from sega_bench.rescoring import rescore
from sega_bench.store import Store
store = Store(Path(sys.argv[1]))
settings = rescore.resolve_settings(store, json.loads(sys.argv[2]))
used = []
for _ in rescore.rescore(store, settings, torch.device("cpu")):
    resident = int(Path("/proc/self/statm").read_text().split()[1])  # the peak would be that of loading
    used.append(resident * os.sysconf("SC_PAGE_SIZE"))
print(json.dumps(used))
"""


def memory_per_chunk(folder: Path, count: int) -> list[int]:
    """Resident memory, in bytes, after every chunk of ``count`` tiny images."""
    sweep = sweeps.finished(folder, axes={}, seeds=range(count // 3))
    document = plan_json(sweep)
    document["settings"]["scores"] = OWN
    sweep.write_plan(document)
    measure = [sys.executable, "-c", MEASURE, str(sweep.root), json.dumps(OWN)]
    done = subprocess.run(measure, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("count", [1200, pytest.param(6000, marks=pytest.mark.slow)])
def test_memory_is_flat(tmp_path: Path, count: int) -> None:
    """At most 300 bytes an image, whose pixels are 12 kB, plus 8 MB that an allocator may keep."""
    measured = memory_per_chunk(tmp_path, count)
    assert len(measured) > count // rescore.CHUNK
    assert median(measured[-5:]) - median(measured[3:8]) < 300 * count + 8e6


def test_rescoring_drops_a_studys_answers(tmp_path: Path) -> None:
    study = study_runs.small_study(tmp_path, "study.held_out.seeds=[7]")
    folder, before = study_runs.store(tmp_path), study_runs.run_study(study)
    answer_files.write(folder, before)
    words = (str(folder.root), f"scores.clip_model={OWN['clip_model']}", "engine.device=cpu")
    assert subcommand("score", *words) == 0
    assert folder.read_answers() == {}
    (held_out,) = folder.held_out_stores()
    provenances = [plan_json(store)["scores"] for store in (folder, held_out)]
    assert provenances[0] == provenances[1]
    assert provenances[0]["clip"]["weights"] != "none"  # the stand-in's, which scored before
    assert "recommends nothing yet" in (folder.report_dir / "data" / "sweep.js").read_text()
    after = StudyRun(study, folder).answers()
    assert after.best
    assert (after.estimates_TK != before.estimates_TK).all()

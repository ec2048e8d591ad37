"""Stored pictures scored again: the same numbers, others if asked, after a kill, and whatever is wrong."""

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
from sega_bench.store import SETTING_COLUMNS, Record, Store, cell_of
from sega_bench.study import answer_files
from sega_bench.study.study_run import Conduct

CPU = torch.device("cpu")
OWN = {"clip_model": f"local-dir:{clip_folder('vit')}"}


def again(folder: Store, **asked: Any) -> Counter[str]:
    settings = rescore.settings_of(folder, OWN | asked)
    return sum(rescore.rescore(folder, settings, CPU), Counter())


def document(folder: Store) -> dict[str, Any]:
    return folder.read_plan() or {}


@pytest.fixture
def made(tmp_path: Path) -> Store:
    """Six cells of two seeds, and two that equal their references."""
    run(tmp_path, "+axes.edit_guidance_scale=[0,5]", "axes.edit_threshold=[0.9]")
    return store(tmp_path)


def test_the_same_scorers_give_the_same_rows_behind_the_old_ones(made: Store) -> None:
    before, plan_before = made.rows()[0], document(made)
    lines = (made.records_dir / "0.jsonl").read_bytes()
    assert again(made) == {"scored": 6}
    assert made.rows()[0] == before
    assert document(made) == plan_before
    assert (made.records_dir / "0.jsonl").read_bytes().startswith(lines)
    assert not made.rescoring_path.exists()


def test_other_scorers_replace_scores_and_their_provenance_alone(made: Store, tmp_path: Path) -> None:
    before = made.rows()[0]
    other = write_clip(tmp_path / "other", "vit", seed=7)
    again(made, clip_model=f"local-dir:{other}", perceptual="none", attributes=None)
    after = made.rows()[0]
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
    assert document(made)["scores"]["clip"]["backbone"] == "local-dir:other"
    assert document(made)["settings"]["scores"]["perceptual"] == "none"
    assert "lpips" not in document(made)["scores"]


def test_afterwards_the_sweep_grows_with_the_new_scorers_and_not_with_the_old(tmp_path: Path) -> None:
    run(tmp_path)
    again(store(tmp_path), perceptual="none")
    with pytest.raises(UserError, match=r"scores\.perceptual was 'none' and is 'clip'"):
        run(tmp_path, "seeds=3")
    assert len(run(tmp_path, "seeds=3", "scores.perceptual=none")) == 3


def test_a_row_knows_its_cell_but_for_the_schedulers_configuration(made: Store) -> None:
    same = ("+axes.edit_guidance_scale=[0,5]", "axes.edit_threshold=[0.9]")
    cells = {cell.key: cell for cell in plan(small(made.root.parent, *same)).cells}
    for row in made.rows()[0]:
        assert cell_of(row).edits == cells[row["key"]].edits
        back = Record(cell_of(row), "done").row()
        for name in set(SETTING_COLUMNS) - {"key", "reference_key"}:
            assert back[name] == row[name]


@pytest.mark.parametrize("method", ["sega", "composable", "prompt", "negative"])
def test_rows_of_every_method_know_their_cell(method: str) -> None:
    (one,) = sweeps.cells({}, ["p"], [["a", "b"]], [3])[1:]
    cell = with_method(one, method)
    assert cell_of(Record(cell, "done").row()) == cell
    assert cell_of(Record(cell.reference(), "done").row()) == cell.reference()


# --- stopped ---


def test_after_a_kill_it_goes_on_and_ends_as_if_it_had_not_been_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescore, "CHUNK", 2)
    run(tmp_path)
    folder = store(tmp_path)
    settings = rescore.settings_of(folder, OWN | {"perceptual": "none"})
    stopped = rescore.rescore(folder, settings, CPU)
    assert [dict(next(stopped)) for _ in range(3)] == [{}, {"scored": 2}, {"scored": 2}]
    stopped.close()
    with pytest.raises(UserError, match=r"scoring .* again was interrupted.*python -m sega_bench\.scores"):
        jobs.prepare(plan(small(tmp_path)))
    size = (folder.records_dir / "0.jsonl").stat().st_size
    assert list(rescore.rescore(folder, settings, CPU)) == [{"done before": 4}, {"scored": 2}]
    new = (folder.records_dir / "0.jsonl").read_bytes()[size:]
    assert new.count(b"\n") == 2, "what was scored before is not scored again"
    assert all(row["lpips"] is None and row["clip_prompt"] for row in folder.rows()[0])
    assert not folder.rescoring_path.exists()
    jobs.prepare(plan(small(tmp_path, "scores.perceptual=none")))


def test_other_scorers_than_those_of_the_kill_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescore, "CHUNK", 2)
    run(tmp_path)
    before = rows(tmp_path)
    stopped = rescore.rescore(
        store(tmp_path), rescore.settings_of(store(tmp_path), OWN | {"perceptual": "none"}), CPU
    )
    next(stopped), next(stopped)
    stopped.close()
    assert again(store(tmp_path), perceptual="clip") == {"scored": 6}
    assert rows(tmp_path) == before


# --- what is wrong ---


def edited(folder: Store) -> dict[str, Any]:
    return next(row for row in folder.rows()[0] if row["edit_guidance_scale"] == [5.0])


def remove(path: Path) -> None:
    path.unlink()


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [remove, spoil, empty])
def test_an_image_that_cannot_be_read_costs_its_own_scores(
    made: Store, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    lost = next(row for row in made.rows()[0] if row["edit_guidance_scale"] == [5.0])
    before = {row["key"]: row for row in made.rows()[0]}
    damage(made.root / lost["image"])
    with caplog.at_level(logging.WARNING, "sega_bench"):
        assert again(made) == {"scored": 5, "not scored": 1}
    after = {row["key"]: row for row in made.rows()[0]}
    row = after.pop(lost["key"])
    assert row["error"] == "not scored: its image is not there or cannot be read"
    assert row["status"] == "done"
    assert {row[name] for name in ("clip_prompt", "lpips", "mse")} == {None}
    assert [row[name] for name in SETTING_COLUMNS] == [lost[name] for name in SETTING_COLUMNS]
    assert after == {key: value for key, value in before.items() if key != lost["key"]}
    frame = sega_bench.load(made.root)
    assert frame["clip_prompt"].isna().sum() == 1


@pytest.mark.parametrize("damage", [remove, spoil])
def test_a_reference_that_cannot_be_read_costs_the_scores_of_its_edits(
    made: Store, damage: Callable[[Path], None]
) -> None:
    reference = next(row for row in made.rows()[0] if row["is_reference"])
    damage(made.root / reference["image"])
    counts = again(made)
    after = made.rows()[0]
    own = [row for row in after if row["reference_key"] == reference["key"]]
    assert {str(row["error"]).startswith("not scored: ") for row in own} == {True}
    assert all(row["lpips"] is None for row in own)
    assert all(row["error"] is None for row in after if row not in own)
    assert counts == {"scored": 3, "not scored": 3}


def test_a_record_without_an_image_and_one_that_failed(made: Store) -> None:
    first, second = [row for row in made.rows()[0] if row["edit_guidance_scale"] == [5.0]]
    failed = next(row for row in made.rows()[0] if row["edit_guidance_scale"] == [0.0])
    made.append_rows("0", [{**first, "image": None}])
    made.append_rows("1", [{**failed, "status": "failed", "error": "it broke"}])  # its image is there: done
    assert again(made) == {"scored": 5, "not scored": 1}
    after = {row["key"]: row for row in made.rows()[0]}
    assert after[first["key"]]["error"] == "not scored: its image is not there or cannot be read"
    assert after[second["key"]]["error"] is None


def test_edits_of_a_reference_that_failed_wait_and_keep_what_else_is_told(made: Store) -> None:
    reference = next(row for row in made.rows()[0] if row["is_reference"])
    (made.root / reference["image"]).unlink()
    made.append_rows("0", [{**reference, "status": "failed", "image": None, "error": "it broke"}])
    own = [row for row in made.rows()[0] if row["reference_key"] == reference["key"]]
    one = next(row for row in own if row["edit_guidance_scale"] == [5.0])
    made.append_rows("0", [{**one, "error": "not scored: lpips: no; a text was cut"}])
    assert again(made) == {"scored": 3, "not scored": 2, "failed": 1}
    after = {row["key"]: row for row in made.rows()[0]}
    assert after[reference["key"]]["error"] == "it broke"
    assert after[one["key"]]["error"] == f"{REFERENCE_FAILED}; a text was cut"


def test_a_verdict_of_the_safety_checker_that_was_never_taken_stays_told(made: Store) -> None:
    """It is not taken here, so that what lacks it is still found by retry_failed."""
    one = next(row for row in made.rows()[0] if row["edit_guidance_scale"] == [5.0])
    made.append_rows("0", [{**one, "nsfw": None, "error": "not scored: nsfw: no memory; a text was cut"}])
    assert again(made) == {"scored": 5, "not scored": 1}
    after = {row["key"]: row for row in made.rows()[0]}
    assert after[one["key"]]["error"] == "not scored: nsfw: no memory; a text was cut"
    assert after[one["key"]]["clip_prompt"] is not None


def test_rows_of_several_workers_stay_in_their_files(made: Store) -> None:
    """The latest line of a cell counts, in the order of the files: a new one in an earlier file would not."""
    one = edited(made)
    made.append_rows("9", [{**one, "seconds": 99.0}])
    again(made, perceptual="none")
    after = {row["key"]: row for row in made.rows()[0]}
    assert (after[one["key"]]["seconds"], after[one["key"]]["lpips"]) == (99.0, None)
    assert (made.records_dir / "9.jsonl").read_text().count("\n") == 2


# --- the command line ---


def say(made: Store, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "sega_bench", "score", str(made.root), *words], capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_the_command_scores_and_makes_the_tables_again(made: Store) -> None:
    code, said = say(made, f"scores.clip_model=local-dir:{clip_folder('vit')}", "scores.perceptual=none")
    assert code == 0, said
    assert "6 scored" in said
    assert sega_bench.load(made.root)["lpips"].isna().all()
    assert made.results_csv.exists()
    assert any(made.grids_dir.glob("*.png"))
    (made.root / edited(made)["image"]).unlink()
    code, said = say(made, f"scores.clip_model=local-dir:{clip_folder('vit')}")
    assert (code, said.splitlines()[-1]) == (1, "1 of 6 cells lack scores; the column 'error' says why")


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
    plan_json = document(folder)
    plan_json["settings"]["scores"] = OWN if len(words) > 1 else {"clip_model": "local-dir:vit"}
    folder.write_plan(plan_json)
    assert subcommand("score", *(word.format(folder.root) for word in words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


# --- memory ---

MEASURE = """
import json, os, sys
from pathlib import Path
import torch
from sega_bench import rescoring
from sega_bench.store import Store
store = Store(Path(sys.argv[1]))
settings = rescoring.settings_of(store, json.loads(sys.argv[2]))
used = []
for _ in rescoring.rescore(store, settings, torch.device("cpu")):
    resident = int(Path("/proc/self/statm").read_text().split()[1])  # a peak would be that of loading
    used.append(resident * os.sysconf("SC_PAGE_SIZE"))
print(json.dumps(used))
"""


def used(folder: Path, count: int) -> list[int]:
    """Resident memory, in bytes, after every chunk of so many tiny pictures."""
    made = sweeps.finished(folder, axes={}, seeds=range(count // 3))
    plan_json = document(made)
    plan_json["settings"]["scores"] = OWN
    made.write_plan(plan_json)
    measure = [sys.executable, "-c", MEASURE, str(made.root), json.dumps(OWN)]
    done = subprocess.run(measure, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("count", [1200, pytest.param(6000, marks=pytest.mark.slow)])
def test_memory_is_flat(tmp_path: Path, count: int) -> None:
    """It grows by 300 bytes a picture, whose pixels alone are 12 kB, and 8 MB of what an allocator keeps."""
    measured = used(tmp_path, count)
    assert len(measured) > count // rescore.CHUNK
    assert median(measured[-5:]) - median(measured[3:8]) < 300 * count + 8e6


def test_a_studys_answers_are_forgotten_and_found_anew(tmp_path: Path) -> None:
    made = study_runs.study(tmp_path, "study.held_out.seeds=[7]")
    folder, before = study_runs.store(tmp_path), study_runs.conduct(made)
    answer_files.write(folder, before)
    words = (str(folder.root), f"scores.clip_model={OWN['clip_model']}", "engine.device=cpu")
    assert subcommand("score", *words) == 0
    assert folder.answers() == {}
    (apart,) = folder.held_out()
    provenances = [document(one)["scores"] for one in (folder, apart)]
    assert provenances[0] == provenances[1]
    assert provenances[0]["clip"]["weights"] != "none"  # of the stand-in, which scored before
    assert "recommends nothing yet" in (folder.report_dir / "data" / "sweep.js").read_text()
    after = Conduct(made, folder).answers()
    assert after.best
    assert (after.estimates_TK != before.estimates_TK).all()

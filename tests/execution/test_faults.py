"""Whole sweeps with failing scorers, hostile texts and failing disks, and what the command reports."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from support.stub_sweep import NAME, FakeScorer, fake_networks, results, run_sweep, small_plan

from sega_bench.cell import Cell
from sega_bench.cli import console, sweep
from sega_bench.errors import UserError
from sega_bench.execution import jobs
from sega_bench.scores.scoring import Features
from sega_bench.store import CellImage, Store
from sega_bench.views.console.summary import print_plan


def test_cells_without_scores_set_the_exit_code_and_the_error_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compare = FakeScorer.compare

    def fail(self: FakeScorer, cells: Sequence[Cell], *features: Features) -> list[dict[str, float]]:
        if any(cell.edits and cell.edits[0].edit_threshold == 0.9 and cell.seed == 1 for cell in cells):
            raise RuntimeError("out of noses")
        return compare(self, cells, *features)

    with monkeypatch.context() as patch:
        patch.setattr(FakeScorer, "compare", fail)
        assert run_sweep(tmp_path / "damaged") == 1
        message = "1 of 6 cells could not be scored; the reasons are in the column 'error'"
        assert message in capsys.readouterr().err
        assert run_sweep(tmp_path / "damaged") == 1  # the same command reports them again
    table = pd.read_csv(tmp_path / "damaged" / NAME / "results.csv")
    assert set(table["status"]) == {"done"}
    assert table["error"].dropna().tolist() == ["not scored: clip, lpips: RuntimeError: out of noses"]
    images = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "damaged" / NAME / "images").rglob("*.png")
    }
    assert run_sweep(tmp_path / "damaged", "retry_failed=true", "scores.batch_size=4") == 0
    assert {path: path.stat().st_mtime_ns for path in images} == images
    assert run_sweep(tmp_path / "fresh") == 0
    assert results(tmp_path / "damaged") == results(tmp_path / "fresh")


# --- hostile text ---

FORMULA = "=cmd|' /C calc'!A0"
REVERSED = "a \u202egnp.exe\u202c\u200f face"


def test_hostile_texts_are_escaped_in_tables_and_terminal_and_exact_in_the_store(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prompts = [FORMULA, "@SUM(1)", "+1", "-1", REVERSED]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    sweep_plan = small_plan(
        tmp_path, f"prompts={path}", "concepts=['=1+1']", f"+axes.negative_prompt=['','{REVERSED}']"
    )
    print_plan(console.console, sweep_plan, {})
    with fake_networks(), jobs.locked(sweep_plan) as job:
        assert sweep.run_job(job) == 0
    out, err = capfd.readouterr()
    assert "negative_prompt" in out
    for text in (out, err, (tmp_path / NAME / "run.log").read_text()):
        assert not {char for char in text if unicodedata.category(char)[0] == "C"} - {"\n", "\r"}
    with open(tmp_path / NAME / "results.csv", newline="", encoding="utf-8") as file:
        cells = {cell for row in csv.reader(file) for cell in row}
    with open(tmp_path / NAME / "summary.csv", newline="", encoding="utf-8") as file:
        cells |= {cell for row in csv.reader(file) for cell in row}
    assert {f"'{prompt}" for prompt in prompts[:4]} | {REVERSED} <= cells
    assert not [c for c in cells if c.startswith(("=", "+", "@", "\t", "\r")) or re.match(r"-[^\d]", c)]
    assert set(pd.read_parquet(tmp_path / NAME / "results.parquet")["prompt"]) == set(prompts)


@pytest.mark.parametrize("text", ["\x1b[31m", "a\0b", "x" * 10_000_000])
def test_a_prompt_file_is_checked_like_the_command_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "a face"}) + "\n" + json.dumps({"prompt": text}))
    with pytest.raises(UserError, match=r"prompts.jsonl line 2, column prompt") as raised:
        small_plan(tmp_path, f"prompts={path}")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1100


# --- a disk that fails ---


def test_a_slow_disk_keeps_at_most_one_waves_images_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Store.write_cell_image
    unwritten: list[int] = []

    def slowly(store: Store, cell: Cell, picture: CellImage) -> tuple[str, str]:
        unwritten.append(1)
        time.sleep(0.02)
        unwritten.pop()
        return write(store, cell, picture)

    backlog: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_cell_image", slowly)
        words = ("seeds=4", "engine.wave_rows=3")
        assert run_sweep(tmp_path / "slow", *words, before=lambda latents: backlog.extend(unwritten)) == 0
    assert backlog == []  # the next wave waits until the images are written
    assert run_sweep(tmp_path / "fresh", "seeds=4") == 0
    assert results(tmp_path / "slow") == results(tmp_path / "fresh")


def test_a_folder_that_turns_read_only_is_reported_in_one_line_and_the_sweep_can_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, unlink = os.replace, Path.unlink
    allowed = iter(range(9))  # files that can still be written

    def fail(*names: Path) -> None:
        if next(allowed, None) is None:
            raise OSError(errno.EROFS, "Read-only file system")
        replace(*names)

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "lock":
            raise OSError(errno.EROFS, "Read-only file system")
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(UserError, match=r"can't be written any more \(Read-only file system\)"):
            run_sweep(tmp_path / "damaged", "engine.wave_rows=3", "seeds=4")
    before = results(tmp_path / "damaged")
    assert 0 < len(before) < 12
    assert run_sweep(tmp_path / "damaged", "engine.wave_rows=3", "seeds=4") == 0
    assert run_sweep(tmp_path / "fresh", "seeds=4") == 0
    assert before.items() <= results(tmp_path / "damaged").items()
    assert results(tmp_path / "damaged") == results(tmp_path / "fresh")

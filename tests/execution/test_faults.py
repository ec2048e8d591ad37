"""What goes wrong in a sweep costs what it must, and the command says so."""

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
from sega_bench.store import Picture, Store
from sega_bench.views.console.summary import print_plan


def test_cells_that_lack_scores_are_told_by_the_exit_code_and_in_their_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compare = FakeScorer.compare

    def choke(self: FakeScorer, cells: Sequence[Cell], *features: Features) -> list[dict[str, float]]:
        if any(cell.edits and cell.edits[0].edit_threshold == 0.9 and cell.seed == 1 for cell in cells):
            raise RuntimeError("out of noses")
        return compare(self, cells, *features)

    with monkeypatch.context() as patch:
        patch.setattr(FakeScorer, "compare", choke)
        assert run_sweep(tmp_path / "hurt") == 1
        said = "1 of 6 cells could not be scored; the reasons are in the column 'error'"
        assert said in capsys.readouterr().err
        assert run_sweep(tmp_path / "hurt") == 1  # as long as it is so
    table = pd.read_csv(tmp_path / "hurt" / NAME / "results.csv")
    assert set(table["status"]) == {"done"}
    assert table["error"].dropna().tolist() == ["not scored: clip, lpips: RuntimeError: out of noses"]
    images = {path: path.stat().st_mtime_ns for path in (tmp_path / "hurt" / NAME / "images").rglob("*.png")}
    assert run_sweep(tmp_path / "hurt", "retry_failed=true", "scores.batch_size=4") == 0
    assert {path: path.stat().st_mtime_ns for path in images} == images
    assert run_sweep(tmp_path / "fresh") == 0
    assert results(tmp_path / "hurt") == results(tmp_path / "fresh")


# --- hostile text ---

FORMULA = "=cmd|' /C calc'!A0"
REVERSED = "a \u202egnp.exe\u202c\u200f face"


def test_hostile_texts_are_inert_in_tables_and_terminal_and_exact_in_the_store(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prompts = [FORMULA, "@SUM(1)", "+1", "-1", REVERSED]
    listed = tmp_path / "prompts.jsonl"
    listed.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    made = small_plan(
        tmp_path, f"prompts={listed}", "concepts=['=1+1']", f"+axes.negative_prompt=['','{REVERSED}']"
    )
    print_plan(console.console, made, {})
    with fake_networks(), jobs.locked(made) as job:
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
def test_a_prompt_file_cannot_bring_what_the_command_line_may_not(tmp_path: Path, text: str) -> None:
    listed = tmp_path / "prompts.jsonl"
    listed.write_text(json.dumps({"prompt": "a face"}) + "\n" + json.dumps({"prompt": text}))
    with pytest.raises(UserError, match=r"prompts.jsonl line 2, column prompt") as told:
        small_plan(tmp_path, f"prompts={listed}")
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 1100


# --- a disk that fails ---


def test_a_slow_disk_is_waited_for_with_no_more_than_a_wave_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Store.write_picture
    waiting: list[int] = []

    def slowly(store: Store, cell: Cell, picture: Picture) -> tuple[str, str]:
        waiting.append(1)
        time.sleep(0.02)
        waiting.pop()
        return write(store, cell, picture)

    left_behind: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_picture", slowly)
        words = ("seeds=4", "engine.wave_rows=3")
        assert run_sweep(tmp_path / "slow", *words, before=lambda latents: left_behind.extend(waiting)) == 0
    assert left_behind == []  # nothing is computed while pictures pile up
    assert run_sweep(tmp_path / "fresh", "seeds=4") == 0
    assert results(tmp_path / "slow") == results(tmp_path / "fresh")


def test_a_folder_that_turns_read_only_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, unlink = os.replace, Path.unlink
    budget = iter(range(9))

    def fail(*names: Path) -> None:
        if next(budget, None) is None:
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
            run_sweep(tmp_path / "hurt", "engine.wave_rows=3", "seeds=4")
    kept = results(tmp_path / "hurt")
    assert 0 < len(kept) < 12
    assert run_sweep(tmp_path / "hurt", "engine.wave_rows=3", "seeds=4") == 0
    assert run_sweep(tmp_path / "fresh", "seeds=4") == 0
    assert kept.items() <= results(tmp_path / "hurt").items()
    assert results(tmp_path / "hurt") == results(tmp_path / "fresh")

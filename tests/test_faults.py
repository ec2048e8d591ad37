"""What goes wrong in a sweep costs what it must, and the command says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from stub_sweep import NAME, FakeScorer, results, work

from sega_bench.cell import Cell
from sega_bench.scores.scoring import Features


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
        assert work(tmp_path / "hurt") == 1
        said = "1 of 6 cells could not be scored; the reasons are in the column 'error'"
        assert said in capsys.readouterr().err
        assert work(tmp_path / "hurt") == 1  # as long as it is so
    table = pd.read_csv(tmp_path / "hurt" / NAME / "results.csv")
    assert set(table["status"]) == {"done"}
    assert table["error"].dropna().tolist() == ["not scored: clip, lpips: RuntimeError: out of noses"]
    assert work(tmp_path / "hurt", "retry_failed=true") == work(tmp_path / "fresh") == 0
    assert results(tmp_path / "hurt") == results(tmp_path / "fresh")

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support import sweeps
from support.command_line import subcommand

from sega_bench.analysis.groups import ALL
from sega_bench.analysis.results import Results
from sega_bench.analysis.scores import GAIN
from sega_bench.store import Store
from sega_bench.views.paper import figures
from sega_bench.views.paper.latex import MOST_ROWS, escape, latex_table

EVIL = r"100% of $x_1^2$ & {co} \input{/etc/passwd} ~ #1 <b>"


def finished(root: Path) -> Store:
    return sweeps.finished(root, concepts=[["smile"], [EVIL]], seeds=[0, 1], size=8)


def test_each_plot_is_drawn_twice_as_vectors_and_always_the_same(tmp_path: Path) -> None:
    store = finished(tmp_path)
    subcommand("figures", tmp_path)
    names = {path.name for path in store.figures_dir.iterdir()}
    plots = ("tradeoff", "curve-edit_threshold", "curve-edit_guidance_scale")
    assert names == {"summary.tex"} | {f"{plot}.{kind}" for plot in plots for kind in ("svg", "pdf")}
    first = {path.name: path.read_bytes() for path in store.figures_dir.iterdir()}
    (store.figures_dir / "curve-of-before.svg").write_text("")
    subcommand("figures", tmp_path)
    assert {path.name: path.read_bytes() for path in store.figures_dir.iterdir()} == first
    assert all(first[f"{plot}.pdf"].startswith(b"%PDF") for plot in plots)


def test_texts_are_texts_and_colours_are_those_that_can_be_told_apart(tmp_path: Path) -> None:
    store = finished(tmp_path)
    subcommand("figures", tmp_path)
    drawn = (store.figures_dir / "curve-edit_threshold.svg").read_text()
    texts = [node.text for node in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"smile", EVIL, "edit_threshold"} <= set(texts)
    assert all(colour.lower() in drawn for colour in figures.COLOURS[:2])
    assert "<image" not in drawn


def test_without_matplotlib_the_remedy_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert subcommand("figures", tmp_path) == 2
    assert "pip install 'sega-bench[figures]'" in capsys.readouterr().err


def test_a_sweep_without_scores_or_rows_has_a_table_and_no_plot(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    sweeps.write_plan(store, sweeps.cells(sweeps.AXES, ["a"], [["b"]], [0]), sweeps.AXES)
    subcommand("figures", tmp_path)
    assert {path.name for path in store.figures_dir.iterdir()} == {"summary.tex"}


def test_the_table_says_what_the_summary_says(tmp_path: Path) -> None:
    finished(tmp_path)
    results = Results.read(tmp_path)
    summary = results.summary
    lines = latex_table(results).splitlines()
    rows = [line.removesuffix(r" \\").split(" & ") for line in lines if line.endswith(r"\\")]
    assert len({len(row) for row in rows}) == 1
    pooled = summary[summary["concepts"] == ALL]
    assert len(rows) == 1 + len(pooled) + 2
    for row, (_, expected) in zip(rows[1:], pooled.iterrows(), strict=False):
        plain = [re.sub(r"\\textbf\{(.*)\}", r"\1", cell) for cell in row]
        assert [float(value) for value in plain[1:3]] == [expected[axis] for axis in sweeps.AXES]
        mean, low, high = (f"{expected[f'{GAIN}_{part}']:.3f}" for part in ("mean", "low", "high"))
        assert plain[3] == f"{mean} [{low}, {high}]"
        assert row[0].startswith(r"\textbf") == bool(expected["best"])


def test_of_many_settings_the_front_is_printed_and_the_table_says_so(tmp_path: Path) -> None:
    axes = {"edit_threshold": [i / (MOST_ROWS + 5) for i in range(MOST_ROWS + 5)]}
    sweeps.finished(tmp_path, axes=axes, concepts=[["smile"]], seeds=[0], size=8)
    results = Results.read(tmp_path)
    summary = results.summary
    front = int((summary["pareto"] & (summary["concepts"] == ALL)).sum())
    table = latex_table(results)
    assert f"{front} of {MOST_ROWS + 5} settings" in table
    assert table.count(r" \\") == 1 + front


def test_what_latex_would_read_is_printed() -> None:
    said = escape(EVIL)
    assert not re.search(r"(?<!\\)[$&#%_]", said)
    assert r"\input" not in said
    bare = re.sub(r"\\[a-z]+\{\}|\\.", "", said)
    assert not set(bare) & set(r"\{}$&#%_^~<>")

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support import sweeps
from support.command_line import subcommand

from sega_bench.analysis.claims import claims
from sega_bench.analysis.frames import digest, load
from sega_bench.analysis.groups import ALL
from sega_bench.analysis.results import Results
from sega_bench.analysis.scores import GAIN
from sega_bench.analysis.summary import areas, curve, interval_around, summarise
from sega_bench.analysis.values import row_value
from sega_bench.store import SETTING_COLUMNS, Store
from sega_bench.views.report import building
from sega_bench.views.report.building import ASSETS, read_digest, write_report

LISTS = {"edit_threshold": [[0.5, 0.8], 0.9, [0.9, 0.95]], "edit_guidance_scale": [2.0, 5.0]}


def built(store: Store) -> dict[str, Any]:
    """What the page of a store is handed: its first script, with the rows of all others under ``cells``."""
    write_report(Results.read(store))
    return handed(store)


def handed(store: Store) -> dict[str, Any]:
    folder = store.report_dir / "data"
    sweep = parsed(folder / "sweep.js", "open")
    parts = [parsed(path, "add") for path in sorted(folder.glob("cells-*.js"))]
    names = parts[0] if parts else ()
    return {**sweep, "cells": {name: [value for part in parts for value in part[name]] for name in names}}


def parsed(path: Path, function: str) -> dict[str, Any]:
    text = path.read_bytes().decode("ascii")
    found = re.fullmatch(rf"sega\.{function}\((.*)\);\n", text, re.DOTALL)
    assert found, text[:80]
    value: dict[str, Any] = json.loads(found[1])
    return value


def value(sweep: dict[str, Any], row: int, name: str) -> Any:
    """As the page reads it: by the number of a value, or from what all rows share."""
    if name in sweep["values"]:
        place = sweep["cells"][name][row]
        return None if place < 0 else sweep["values"][name][place]
    return sweep["cells"][name][row] if name in sweep["cells"] else sweep["constants"][name]


def test_the_page_is_handed_every_setting_and_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "ROWS_PER_SCRIPT", 7)
    concepts = [["smile"], ["smile", "glasses"]]
    store = sweeps.finished(
        tmp_path,
        axes={"edit_threshold": [0.5, 0.8], "guidance_scale": [5, 7.5]},
        concepts=concepts,
        seeds=[3, 2**60],
    )
    sweep, frame = built(store), load(store.root)
    assert len(list((store.report_dir / "data").glob("cells-*.js"))) == -(-len(frame) // 7)
    for row, expected in enumerate(frame.to_dict("records")):
        assert sweep["cells"]["key"][row] == expected["key"]
        reference = sweep["cells"]["reference"][row]
        assert sweep["cells"]["key"][reference] == expected["reference_key"]
        for name in SETTING_COLUMNS[3:]:
            if name == "concepts":
                wanted = None if expected["is_reference"] else json.loads(expected[name])
            elif name == "seed":
                wanted = expected[name] if expected[name] < 2**53 else str(expected[name])
            else:
                wanted = row_value(expected, str(name))
            if wanted is not None or name in sweep["values"]:
                assert value(sweep, row, name) == wanted, name
        for name in sweep["scores"]:
            got, score = value(sweep, row, name), expected[name]
            assert (got is None and np.isnan(score)) or got == pytest.approx(score, rel=1e-4)


def test_a_score_that_is_a_text_is_none_of_the_numbers(tmp_path: Path) -> None:
    store = sweeps.finished(tmp_path, seeds=[0])
    results = Results.read(store)
    frame = results.frame
    frame["attribute_flipped"] = pd.Series([None, '["hair"]', *["[]"] * (len(frame) - 2)], dtype="str")
    write_report(results)
    sweep = handed(store)
    assert [value(sweep, row, "attribute_flipped") for row in range(3)] == [None, '["hair"]', "[]"]
    assert "attribute_flipped" not in sweep["scores"]


def test_a_setting_of_each_concept_is_a_list(tmp_path: Path) -> None:
    sweep = built(sweeps.finished(tmp_path, axes=LISTS, concepts=[["smile", "glasses"]], seeds=[0]))
    assert sweep["values"]["edit_threshold"] == [[0.5, 0.8], 0.9, [0.9, 0.95]]
    assert sweep["values"]["edit_guidance_scale"] == [2, 5]


def test_null_is_a_value_of_an_axis_that_has_it(tmp_path: Path) -> None:
    axes = {"edit_cooldown_steps": [None, 20], "edit_threshold": [0.5]}
    sweep = built(sweeps.finished(tmp_path, axes=axes, concepts=[["smile"]], seeds=[0]))
    assert sweep["values"]["edit_cooldown_steps"] == [None, 20]
    assert sweep["cells"]["edit_cooldown_steps"][1:] == [0, 1]
    assert [row["at"] for row in sweep["settings"]] == [[0, 0], [1, 0]] * 2


def test_settings_and_curves_are_the_tables(tmp_path: Path) -> None:
    store = sweeps.finished(tmp_path)
    sweep, frame = built(store), load(store.root)
    sets = list(frame.loc[~frame["is_reference"], "concepts"].unique())

    def compare(rows: list[dict[str, Any]], table: pd.DataFrame, axes: list[str], compared: str) -> None:
        ends = zip(*interval_around(table, GAIN, compared), strict=True)
        assert len(rows) == len(table)
        for row, expected, between in zip(rows, table.to_dict("records"), ends, strict=True):
            assert [sweep["values"][a][i] for a, i in zip(axes, row["at"], strict=True)] == [
                expected[a] for a in axes
            ]
            assert (ALL, *sets)[row["set"] + 1] == expected["concepts"]
            assert row["n"] == expected["n"]
            mean, low, high, _, n, *apart = row["scores"][GAIN]
            wanted = [expected[f"{GAIN}_{part}"] for part in ("mean", "low", "high", "n")]
            assert [mean, low, high, n, *apart] == pytest.approx([*wanted, *between], rel=1e-4)

    axes = list(sweeps.AXES)
    summary = summarise(frame, axes)
    compare(sweep["settings"], summary, axes, "gap")
    for name in ("best", "pareto"):
        assert [row[name] for row in sweep["settings"]] == summary[name].tolist()
    assert set(sweep["curves"]) == set(sweeps.AXES)
    for axis, rows in sweep["curves"].items():
        compare(rows, curve(frame, axis, axes), [axis], "within")
    assert [concepts[0].partition(",")[0] for concepts in sweep["values"]["concepts"]] == [
        "smiling",
        "glasses",
    ]


def test_claims_and_areas_are_the_tables(tmp_path: Path) -> None:
    axes = {"scheduler": ["DDIMScheduler", "PNDMScheduler"], "edit_guidance_scale": [2.0, 5.0, 8.0]}
    store = sweeps.finished(tmp_path, axes=axes, size=8)
    sweep, frame = built(store), load(store.root)
    wanted = claims(frame, list(axes))
    assert {row["claim"] for row in sweep["claims"]} == {"monotonicity", "isolation"}
    sets = [ALL, *frame.loc[~frame["is_reference"], "concepts"].unique()]
    for row, expected in zip(sweep["claims"], wanted.to_dict("records"), strict=True):
        assert (row["claim"], sets[row["set"] + 1]) == (expected["claim"], expected["concepts"])
        assert row["value"] == pytest.approx(expected["value"], rel=1e-4)
        assert row["low"] == pytest.approx(expected["low"], rel=1e-4)
    summary = summarise(frame, list(axes))
    assert [row["area"] for row in sweep["settings"]] == pytest.approx(summary["area"].tolist(), rel=1e-4)
    assert set(sweep["areas"]) == {"scheduler"}
    found = areas(summary, "scheduler")
    assert [row[2] for row in sweep["areas"]["scheduler"]] == pytest.approx(found["area"].tolist(), rel=1e-4)
    assert sweep["asked"]["scores"] == sweeps.PROVENANCE


def test_no_text_of_the_sweep_is_in_a_document(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>\u2028\ud800"
    store = sweeps.finished(tmp_path, prompts=[evil], concepts=[[evil]], seeds=[0])
    built(store)
    page = (store.report_dir / "index.html").read_text()
    template = (ASSETS / "report" / "index.html").read_text()
    assert re.sub(r'\n<meta name="sega-digest" content="[0-9a-f]{64}">', "", page) == template


def test_the_page_asks_for_nothing_that_is_not_beside_it(tmp_path: Path) -> None:
    store = sweeps.finished(tmp_path, seeds=[0])
    built(store)
    page = (store.report_dir / "index.html").read_text()
    for name in re.findall(r'(?:src|href)="([^"#][^"]*)"', page):
        assert name == "data:," or (store.report_dir / name).is_file()
    assert "http" not in page.replace("http-equiv", "")
    licences = {path.name for path in (store.report_dir / "assets").glob("*-LICENSE.txt")}
    assert licences == {"d3-LICENSE.txt", "plot-LICENSE.txt"}


def test_what_an_earlier_report_had_more_of_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = sweeps.finished(tmp_path, seeds=[0, 1], size=256)
    monkeypatch.setattr(building, "ROWS_PER_SCRIPT", 10)
    built(store)
    plan = store.read_plan() or {}
    plan["keys"] = plan["keys"][:5]
    store.write_plan(plan)
    built(store)
    assert [path.name for path in (store.report_dir / "data").glob("cells-*.js")] == ["cells-0000.js"]
    assert {path.stem for path in store.report_dir.glob("thumbs/*/*.webp")} == set(plan["keys"])


def test_large_images_get_small_ones_once(tmp_path: Path) -> None:
    store = sweeps.finished(tmp_path, seeds=[0], size=256)
    sweep = built(store)
    thumbnails = sorted(store.report_dir.glob("thumbs/*/*.webp"))
    assert {path.stem for path in thumbnails} == set(sweep["cells"]["key"])
    with Image.open(thumbnails[0]) as small, Image.open(store.image_path(thumbnails[0].stem)) as image:
        assert max(small.size) == sweep["thumbnail_side"]
        there, wanted = (
            np.asarray(one.convert("RGB").resize((8, 8), Image.Resampling.BOX)) for one in (small, image)
        )
        assert np.abs(there.astype(int) - wanted).max() < 24
    before = [os.stat(path).st_mtime_ns for path in thumbnails]
    built(store)
    assert [os.stat(path).st_mtime_ns for path in thumbnails] == before


def test_small_images_are_their_own(tmp_path: Path) -> None:
    store = sweeps.finished(tmp_path, seeds=[0], size=64)
    built(store)
    assert not list(store.report_dir.glob("thumbs/**/*.webp"))


def test_lost_and_torn_images_have_none_to_show(tmp_path: Path) -> None:
    store = sweeps.finished(tmp_path, seeds=[0], size=256)
    lost, torn = load(tmp_path)["key"].iloc[[1, 2]]
    store.image_path(lost).unlink()
    store.image_path(torn).write_bytes(store.image_path(torn).read_bytes()[:500])
    cells = built(store)["cells"]
    without = {key for key, image in zip(cells["key"], cells["image"], strict=True) if image is None}
    assert without == {lost, torn}


def test_a_half_written_sweep_is_counted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    plan = sweeps.cells(sweeps.AXES, sweeps.PROMPTS, [["smile"]], [0])
    sweeps.write_plan(store, plan, sweeps.AXES)
    for count in (0, 1, 4):
        store.append("w0", [sweeps.record(store, cell) for cell in plan[:count]])
        sweep = built(store)
        assert sweep["counts"]["planned"] == 13
        assert (sweep["counts"]["done"], sweep["counts"]["rows"]) == (count, count)


def test_it_carries_the_digest_of_what_it_shows(tmp_path: Path) -> None:
    store = sweeps.finished(tmp_path, seeds=[0])
    assert read_digest(store) is None
    built(store)
    assert read_digest(store) == digest(store)
    store.append("w0", [sweeps.record(store, sweeps.cells(sweeps.AXES, sweeps.PROMPTS, [["x"]], [9])[0])])
    assert read_digest(store) == digest(store)  # a row of no cell of the plan
    store.write_text(store.study_path, "{}")
    for advice in ("", "more"):
        store.write_answers({"best": [], "importance": [], "cost": {}, "advice": [advice]})
        assert read_digest(store) != digest(store)
        built(store)
        assert read_digest(store) == digest(store)


def test_the_command_builds_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = sweeps.finished(tmp_path, seeds=[0])
    assert subcommand("report", str(tmp_path)) == 0
    assert capsys.readouterr().out.strip() == str(store.report_dir / "index.html")


@pytest.mark.parametrize(
    ("plan", "said"),
    [(None, "holds no sweep"), ('{"plan_version": 0}', "plan_version is 0"), ("{", "it is damaged")],
)
def test_a_folder_that_is_no_sweep_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plan: str | None, said: str
) -> None:
    if plan is not None:
        (tmp_path / "plan.json").write_text(plan)
    assert subcommand("report", str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_a_table_without_rows_has_a_page(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    sweeps.write_plan(store, sweeps.cells({}, ["a"], [["b"]], [0]), {})
    sweep = built(store)
    assert sweep["settings"] == []
    assert isinstance(load(tmp_path), pd.DataFrame)

from __future__ import annotations

import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from support import shipped, sweeps

from sega_bench.analysis.columns import to_frame
from sega_bench.analysis.frames import load
from sega_bench.analysis.groups import ALL
from sega_bench.analysis.labels import clean, concept_labels, format_value
from sega_bench.analysis.summary import areas, summarise
from sega_bench.store import Record
from sega_bench.views.console.summary import MOST_ROWS, _claims, print_summary

HOSTILE = "smile\x1b[31m\x07[bold red]\u202egnp\n:smile: [/]" + "x" * 200


def printed(root: Path, axes: list[str], **options: Any) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    frame = load(root)
    print_summary(console, sweeps.results_of(frame, axes), **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sweeps.finished(tmp_path_factory.mktemp("sweep"), seeds=[0, 1]).root


def test_the_table_fits_in_100_columns_and_marks_one_best(root: Path) -> None:
    text = printed(root, list(sweeps.AXES))
    assert max(map(len, text.splitlines())) <= 100
    table = text.split("Best setting of each concept")[0].splitlines()
    assert len([line for line in table if line.startswith(" ★") and "±" in line]) == 1
    assert "12 settings" in text


def test_means_and_deviations_are_the_summarys(root: Path) -> None:
    row = summarise(load(root), ["edit_threshold"]).iloc[0]
    shown = f"{row['clip_concept_delta_mean']:.3f} ± {row['clip_concept_delta_sd']:.3f}"
    assert shown in printed(root, ["edit_threshold"])


def test_the_price_is_named_as_the_plan_names_it(root: Path) -> None:
    assert "lpips (faces CLIP features) -1.00" in printed(root, list(sweeps.AXES))


def test_named_axes_are_compared_by_their_areas(tmp_path: Path) -> None:
    axes = {"scheduler": ["DDIMScheduler", "PNDMScheduler"], "edit_threshold": [0.5, 0.9]}
    sweeps.finished(tmp_path, axes=axes, seeds=[0], size=8)
    lines = printed(tmp_path, list(axes)).splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("Area under the front"))
    found = areas(summarise(load(tmp_path), list(axes)), "scheduler").iloc[:2]
    first = found.sort_values("area", ascending=False).iloc[0]
    assert (
        f"scheduler: {first['scheduler'].removesuffix('Scheduler')} {first['area']:.3f}, " in lines[place + 1]
    )
    assert "Area" not in printed(tmp_path, ["scheduler"])


def test_claims_are_told_with_intervals_each_rival_on_a_line_of_its_own(root: Path) -> None:
    names = ["claim", "measure", "direction", "concepts", "at", "value", "low", "high", "n"]
    made = [
        ["robustness", "success", "added", "all", "edit_threshold 0.9", 1.0, 0.5, 1.0, 4],
        ["robustness", "success", "added", '["a"]', "edit_threshold 0.9", 0.0, 0.5, 1.0, 4],
        ["isolation", "flipped hair", "added", "all", "", 0.5, 0.1, 0.9, 4],
        ["baselines", "lpips, prompt - sega", "added", "all", "", 0.25, 0.125, 0.5, 8],
        ["baselines", "success, prompt - sega", "added", "all", "", 0.0, float("nan"), float("nan"), 8],
        ["baselines", "lpips, composable - sega", "added", "all", "", -0.5, -1.0, 0.0, 8],
    ]
    lines = list(_claims(pd.DataFrame(made, columns=names)))
    assert len(lines) == 3
    assert lines[0] == "robustness: success 1.00 (0.50 to 1.00), n 4 (at edit_threshold 0.9)"
    assert lines[-2] == "baselines, prompt - sega: lpips 0.25 (0.12 to 0.50), n 8; success 0.00, n 8"
    assert lines[-1] == "baselines, composable - sega: lpips -0.50 (-1.00 to 0.00), n 8"
    assert "The paper's claims" in printed(root, list(sweeps.AXES))


def test_the_safety_checkers_verdict_is_told_beside_that_of_the_unedited(tmp_path: Path) -> None:
    store = sweeps.finished(tmp_path, axes={"edit_threshold": [0.5]}, concepts=[["a"]], seeds=[0, 1], size=8)
    for cell in sweeps.cells({"edit_threshold": [0.5]}, sweeps.PROMPTS, [["a"]], [0, 1], 8):
        verdict = {"nsfw": float(cell.is_reference or cell.seed == 0)}
        store.append("w1", [sweeps.record(store, cell, scores=sweeps.scores(cell) | verdict)])
    assert "edit_threshold 0.5: 50.0%, unedited 100.0%" in printed(tmp_path, ["edit_threshold"])


def test_trends_next_steps_and_paths_follow(root: Path) -> None:
    text = printed(root, list(sweeps.AXES), paths={"table": Path("outputs") / ("long" * 40) / "results.csv"})
    assert "edit_threshold (4 values): CLIP gain -1.00" in text
    assert "axes.edit_guidance_scale=[2,5,8,11]" in text
    assert f"table        outputs/{'long' * 40}/results.csv" in text


def test_many_axes_fit_by_narrower_headers_and_without_deviations(tmp_path: Path) -> None:
    axes = {"edit_guidance_scale": [5.0, 2.0], "edit_threshold": [0.9, 0.95], "edit_warmup_steps": [10, 12]}
    axes |= {"edit_momentum_scale": [0.3, 0.4], "edit_mom_beta": [0.6, 0.7]}
    sweeps.finished(tmp_path, axes=axes, concepts=[["smile"]], seeds=[0, 1], size=8)
    text = printed(tmp_path, list(axes))
    head, table = text.split(" ──")[0], text.split("★ the verdict")[0]
    assert max(map(len, text.splitlines())) <= 100
    words = {word for name in axes for word in name.replace("_", "_ ").split()}
    assert words <= set(head.replace("_", "_ ").split())  # none is broken
    marked = [line.split() for line in table.splitlines() if line.startswith((" ★", " •"))]
    assert {len(line) for line in marked} == {1 + len(axes) + 3 + 1}  # a line a setting
    assert "±" not in text


def test_axes_of_one_value_are_named_once_above_the_table(tmp_path: Path) -> None:
    axes = {"edit_guidance_scale": [5.0, 2.0], "edit_threshold": [0.9], "edit_warmup_steps": [10]}
    sweeps.finished(tmp_path, axes=axes, seeds=[0, 1], size=8)
    text = printed(tmp_path, list(axes))
    above, table = text.split("★ the verdict")[0].split(" ──", 1)
    assert "all at edit_threshold 0.9, edit_warmup_steps 10\n" in above
    assert "edit_guidance_" in above
    assert " 0.9 " not in table
    assert "threshold (1" not in text  # nor has it a trend


@pytest.mark.parametrize("sweep", shipped.SWEEPS)
def test_every_shipped_sweeps_table_fits(sweep: str) -> None:
    """At 60, 80 and 100 columns: a line a setting, nothing broken, the best one among them."""
    plan = shipped.expand(sweep, "seeds=[0,1]")
    frame = to_frame([Record(cell, "done", scores=sweeps.scores(cell)).row() for cell in plan.cells])
    frame.attrs = {"name": sweep, "scores": {"lpips": {"name": "LPIPS-like on CLIP features"}}}
    axes = list(plan.axes)
    summary = summarise(frame, axes)
    pooled = summary[summary["concepts"] == ALL]
    for width in (60, 80, 100) if len(axes) > 2 else (60,):
        console = Console(file=io.StringIO(), width=width, force_terminal=False)
        print_summary(console, sweeps.results_of(frame, axes))
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        assert max(map(len, text.splitlines())) <= width
        lines = text.split(" ──")[1].partition("\n")[2].splitlines()
        table = [line.rstrip() for line in itertools.takewhile(str.strip, lines)]
        assert len(table) == min(MOST_ROWS, len(pooled))
        stars = int(pooled["best"].sum()) if len(pooled) > 1 else 0
        if len(pooled) > MOST_ROWS and stars:
            assert table[0].startswith(" ★")  # a long table begins with the verdict
        assert sum(line.startswith(" ★") for line in table) == stars
        assert all(re.search(r" \d+$", line) for line in table)  # the count ends each line


def test_one_setting_needs_no_axis(root: Path) -> None:
    text = printed(root, [])
    assert "1 setting\n" in "\n".join(line.rstrip() for line in text.splitlines())
    assert "★" not in text  # the best of one is no news


def test_class_names_are_not_broken(tmp_path: Path) -> None:
    names = ["EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"]
    sweeps.finished(tmp_path, axes={"scheduler": names, "eta": [0.0]}, seeds=[0], size=8)
    text = printed(tmp_path, ["scheduler", "eta"])
    assert "EulerAncestralDiscrete " in text
    assert "DPMSolverMultistep " in text


def test_of_many_settings_the_front_is_shown_and_the_rest_counted(tmp_path: Path) -> None:
    axes = {"edit_threshold": [i / 10 for i in range(9)], "edit_guidance_scale": [1, 2, 3, 4]}
    sweeps.finished(tmp_path, axes=axes, concepts=[["smile"]], seeds=[0], size=8)
    text = printed(tmp_path, list(axes))
    assert "36 settings" in text
    assert "not shown: all are in summary.csv" in text
    assert sum("±" in line or "•" in line for line in text.splitlines()) < 36


def test_hostile_texts_are_shown_as_they_are_and_steer_nothing(tmp_path: Path) -> None:
    sweeps.finished(
        tmp_path, axes={"negative_prompt": ["", HOSTILE]}, concepts=[[HOSTILE], ["curls"]], seeds=[0], size=8
    )
    text = printed(tmp_path, ["negative_prompt"])
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert max(map(len, text.splitlines())) <= 100
    flat = "".join(text.split())
    assert "[boldred]" in flat
    assert ":smile:" in flat


def test_what_was_not_scored_or_failed_shows(tmp_path: Path) -> None:
    axes, concepts = {"edit_threshold": [0.5, 0.9]}, [["a"]]
    store = sweeps.finished(tmp_path, axes=axes, concepts=concepts, seeds=[0], size=8)
    plan = sweeps.cells(axes, sweeps.PROMPTS, concepts, [0, 1], 8)
    sweeps.write_plan(store, plan, axes)
    store.append(
        "w1", [sweeps.record(store, plan[-2], scores={}), Record(plan[-1], "failed", error="out of memory")]
    )
    text = printed(tmp_path, ["edit_threshold"])
    header = next(line for line in text.splitlines() if "CLIP gain" in line)
    assert header.split()[-4:] == ["n", "not", "scored", "failed"]
    assert "1 cell failed" in text
    assert "nan" not in text.lower()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.5, "0.5"),
        (8.0, "8"),
        (1 / 3, "0.333333"),
        (None, "none"),
        (float("nan"), "none"),
        (True, "true"),
        ("", "(empty)"),
    ],
)
def test_values_are_said_shortly(value: Any, said: str) -> None:
    assert format_value(value) == said


def test_clean_keeps_letters_of_every_script() -> None:
    assert clean("日本 é\u0000\u200f\ud800 😀") == "日本 é 😀"
    (label,) = concept_labels(['["a", "b\\u001b[0m"]']).values()
    assert label == "a + b[0m"


def test_combined_concepts_are_told_by_their_first_phrase_where_that_is_enough() -> None:
    def labels(*sets: list[str]) -> list[str]:
        return list(concept_labels(map(json.dumps, sets)).values())

    assert labels(["smiling, smile"], ["curls, wavy hair"]) == ["smiling, smile", "curls, wavy hair"]
    assert labels(["smiling, smile"], ["smiling, smile", "curls, wavy hair"]) == [
        "smiling",
        "smiling + curls",
    ]
    assert labels(["a hat, red", "a hat, blue"]) == ["a hat, red + a hat, blue"]

"""The methods that SEGA is compared with equal their plain loops, and share one trunk with it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import naive, small_sweep, tiny_sd
from support.latents import engine_latents
from support.live_oracle import needs_live_oracle

from sega_bench.analysis.columns import to_frame
from sega_bench.analysis.frames import load
from sega_bench.analysis.summary import summarise
from sega_bench.analysis.values import label_concepts
from sega_bench.benchmark import oracle
from sega_bench.cell import EDIT_SETTINGS, READS, Cell, Edit
from sega_bench.config import compose
from sega_bench.errors import UserError
from sega_bench.planning.planner import Plan, plan
from sega_bench.store import Record


def cell(method: str, *edits: Edit, **settings: Any) -> Cell:
    is_reversed = method == "negative"
    edits = tuple(replace(edit, reverse_editing_direction=is_reversed) for edit in edits)
    return replace(tiny_sd.cell(**settings), edits=edits, method=method)


ONE = (Edit("glasses", 6, 0.9017, 2),)
TWO = (Edit("glasses", 6, 0.9017, 0, 4), Edit("a long smile", 3, 0.8123, 3, None, 0.7))


@pytest.mark.parametrize("negative_prompt", ["", "a cat"])
@pytest.mark.parametrize("edits", [ONE, TWO], ids=["one concept", "two, staggered, one cools down"])
@pytest.mark.parametrize("method", READS)
def test_a_method_equals_its_plain_loop(method: str, edits: tuple[Edit, ...], negative_prompt: str) -> None:
    one, model = cell(method, *edits, negative_prompt=negative_prompt), tiny_sd.loaded("float64")
    ours, plain = engine_latents(model, one), naive.latents(model, one)[None]
    assert (ours - plain).abs().max() <= 1e-9 * plain.abs().max()
    assert (ours - engine_latents(model, one.reference())).abs().max() > 1e-3


@needs_live_oracle
@pytest.mark.parametrize(("method", "name"), [("prompt", "prompt"), ("negative", "negative_prompt")])
def test_without_a_warm_up_a_text_method_equals_diffusers_with_that_text(method: str, name: str) -> None:
    one = cell(method, Edit("glasses", edit_warmup_steps=0), Edit("smile", edit_warmup_steps=0))
    model = tiny_sd.loaded("float64")
    text = "glasses, smile" if method == "negative" else f"{one.prompt}, glasses, smile"
    theirs = oracle.make_latents(oracle.make_pipeline(model), replace(one.reference(), **{name: text}))
    assert (engine_latents(model, one) - theirs).abs().max() <= 1e-9 * theirs.abs().max()


def test_settings_that_a_method_does_not_read_give_the_same_cell() -> None:
    base = Cell("a face", 0, (Edit("glasses"),))
    for method, read in READS.items():
        if method == "negative":
            base = replace(base, edits=(Edit("glasses", reverse_editing_direction=True),))
        one = replace(base, method=method)
        for name, value in {"edit_guidance_scale": 9.0, "edit_threshold": 0.5, "edit_weights": 0.3}.items():
            other = replace(base, method=method, edits=(replace(base.edits[0], **{name: value}),))
            assert (one == other) == (one.key == other.key) == (name not in read)
        assert (one == replace(one, edit_momentum_scale=0.9)) == (method != "sega")
        assert one.reference() == replace(base, method="sega").reference()


def test_texts_are_exactly_the_prompts_of_all_steps() -> None:
    first = Edit("a", edit_warmup_steps=2, edit_cooldown_steps=5, reverse_editing_direction=True)
    one = Cell(
        "p", 0, (first, Edit("b", edit_warmup_steps=4, reverse_editing_direction=True)), method="negative"
    )
    assert [one.reads(step)[0] for step in range(7)] == ["", "", "a", "a", "a, b", "b", "b"]
    assert {one.reads(step)[1] for step in range(7)} == {"p"}
    assert set(one.texts) == {"", "p", "a", "a, b", "b"}
    assert Cell("", 0, (Edit("a", edit_warmup_steps=0),), method="prompt").reads(0) == ("", "a")


# --- in a sweep ---


def make(*overrides: str) -> Plan:
    common = ["model=local", f"model.path={tiny_sd.folder()}", "prompts=[a face]", "concepts=[glasses]"]
    return plan(compose(*common, *overrides))


def test_methods_are_an_axis_on_one_trunk() -> None:
    made = make("+axes.method=[sega,prompt,composable]")
    assert [one.method for one in made.edited] == ["sega", "prompt", "composable"]
    assert made.axes == {"method": ["sega", "prompt", "composable"]}
    counts = made.counts()
    assert (counts["references"], counts["merged"]) == (1, 0)
    # Trunk 2 x 50, concept for momentum and composable's fork 10; then 3, 2 and 3 a step for 40 steps.
    assert counts["unet_evals"] == 2 * 50 + 10 + (3 + 2 + 3) * 40
    assert counts["unet_evals_diffusers"] == (2 + 3 + 2 + 3) * 50


def test_settings_that_a_method_does_not_read_are_merged_and_reported() -> None:
    made = make("+axes.method=[sega,prompt]", "+axes.edit_threshold=[0.5,0.9]")
    assert (len(made.edited), made.counts()["merged"]) == (3, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=promt"], "method is 'promt', but it must be one of sega, composable, prompt, negative"),
        (["method=[sega]"], "method is ['sega'], but it must be one of"),
        (["method=null"], "method is None, but it must be one of"),
        (["+axes.method=[sega,7]"], "axes.method is 7, but it must be one of"),
        (["method=nagative", "+axes.method=[sega]"], "method is 'nagative'"),
        (["method=prompt", "concepts=[]"], "method is 'prompt', but there are no concepts"),
        (["+axes.method=[sega]", "concepts=[]"], "axes.method has no concept to act on"),
        (["method=negative"], "method is 'negative', but what a negative prompt names is removed"),
        (
            ["+zip.method=[prompt]", "edit.reverse_editing_direction=true"],
            "zip.method is 'prompt', but what is appended to the prompt is added",
        ),
        (["method=prompt", "replay=a cat"], "replay is 'a cat', but method=prompt has no guidance to replay"),
        (
            ["method=composable", "sampling.guidance_scale=1"],
            "sampling.guidance_scale is 1.0, but method=composable needs classifier-free guidance",
        ),
    ],
)
def test_mistakes_name_the_key(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        make(*words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_prompt_method_needs_no_guidance() -> None:
    made = make("method=prompt", "sampling.guidance_scale=1")
    assert made.counts()["unet_evals"] == 50 + 40


def test_a_sweep_of_methods_is_generated_scored_and_resumed(tmp_path: Path) -> None:
    words = ("~axes.edit_threshold", "+axes.method=[sega,prompt]")
    first = small_sweep.run(tmp_path, *words)
    assert {record.cell.method for record in first if record.cell.edits} == {"sega", "prompt"}
    more = small_sweep.run(tmp_path, "~axes.edit_threshold", "+axes.method=[sega,prompt,composable]")
    assert {record.cell.method for record in more} == {"composable"}
    frame = load(small_sweep.store(tmp_path).root)
    assert frame[frame["is_reference"]]["method"].isna().all()
    assert frame[frame["method"] == "prompt"][["edit_threshold", "edit_guidance_scale"]].isna().all(axis=None)
    assert frame[frame["method"] == "composable"]["edit_momentum_scale"].isna().all()
    assert frame[~frame["is_reference"]]["clip_concept_delta"].notna().all()
    assert summarise(frame, ["method"])["method"].unique().tolist() == ["sega", "prompt", "composable"]


def test_rows_without_the_method_column_are_segas(tmp_path: Path) -> None:
    small_sweep.run(tmp_path)
    store = small_sweep.store(tmp_path)
    for path in store.records_dir.glob("*.jsonl"):
        path.write_text(re.sub(r'"method": (null|"sega"), |, "checksum": "\w+"', "", path.read_text()))
    assert "method" not in store.rows()[0][0]
    frame = load(store.root)
    assert set(frame[~frame["is_reference"]]["method"]) == {"sega"}
    assert frame[frame["is_reference"]]["method"].isna().all()


def test_settings_that_a_method_does_not_read_split_no_concept() -> None:
    cells = [Cell("p", 0, (Edit("smile", edit_threshold=q),)) for q in (0.5, 0.9)]
    cells += [replace(cells[0], method="prompt"), replace(cells[0], method="composable")]
    rows = to_frame([Record(one, "done").row() for one in cells]).to_dict("records")
    names = label_concepts(rows, EDIT_SETTINGS)
    assert names == ["smile, edit_threshold 0.5", "smile, edit_threshold 0.9", "smile", "smile"]
    assert label_concepts(rows[1:], EDIT_SETTINGS) == ["smile"] * 3

"""Every shipped sweep composes, expands, and has the number of cells that its header states."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.shipped import SWEEPS, expand

from sega_bench.cell import Cell
from sega_bench.config import CONF_DIR, compose
from sega_bench.errors import UserError
from sega_bench.planning.planner import plan


def test_the_documented_sweeps_exist() -> None:
    assert {"smoke", "thresholds", "scales", "warmup", "momentum", "faces_example"} <= set(SWEEPS)
    assert {"combinations", "uniqueness"} <= set(SWEEPS)
    assert {"baselines", "baselines_removing", "ablation", "faces10", "attributes", "i2p"} <= set(SWEEPS)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_headers_state_the_number_of_cells(sweep: str) -> None:
    header = (CONF_DIR / "sweep" / f"{sweep}.yaml").read_text()
    assert header.startswith("# @package _global_\n# ")
    stated = re.search(r"# Cells: (\d+) edited \+ (\d+) references?\. About .+ on 2 CPU cores", header)
    assert stated is not None
    counts = expand(sweep).counts()
    assert (counts["edited"], counts["references"]) == (int(stated[1]), int(stated[2]))
    assert counts["merged"] == 0


@pytest.mark.parametrize("sweep", SWEEPS)
def test_sweeps_work_with_any_model(sweep: str) -> None:
    planned = expand(sweep, "model=local")
    assert planned.name == f"{sweep}-local"
    assert planned.config.description
    assert planned.name.startswith(planned.config.name)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_sharing_saves_evaluations(sweep: str) -> None:
    counts = expand(sweep).counts()
    assert counts["unet_evals"] < counts["unet_evals_diffusers"]


def test_sweeps_have_the_axes_that_their_names_suggest() -> None:
    assert list(expand("smoke").axes) == ["edit_threshold"]
    assert list(expand("thresholds").axes) == ["edit_threshold", "edit_guidance_scale"]
    assert list(expand("scales").axes) == ["edit_guidance_scale"]
    assert list(expand("warmup").axes) == ["edit_warmup_steps"]
    assert expand("uniqueness").axes == {"replay": [None, "a photo of the face of a woman"]}
    assert list(expand("momentum").axes) == ["edit_momentum_scale", "edit_mom_beta"]


def test_faces_example_has_the_settings_of_diffusers_documentation() -> None:
    (first, *_) = expand("faces_example").edited
    assert first.prompt == "a photo of the face of a woman"
    assert [edit.edit_guidance_scale for edit in first.edits] == [4, 5, 5, 5.4]
    assert [edit.edit_threshold for edit in first.edits] == [0.99, 0.975, 0.925, 0.96]
    assert {edit.edit_warmup_steps for edit in first.edits} == {10}
    assert (first.guidance_scale, first.edit_momentum_scale, first.edit_mom_beta) == (7, 0.3, 0.6)


def test_every_edit_has_a_replay_and_its_source_is_not_generated() -> None:
    edited = set(expand("uniqueness").edited)
    replays = {cell for cell in edited if cell.replay is not None}
    assert {replace(cell, replay=None) for cell in replays} == edited - replays
    assert not {cell.source() for cell in replays} & edited


def test_combinations_are_all_sets_of_one_to_four_concepts() -> None:
    sets = expand("combinations").concepts
    assert len(set(sets)) == len(sets) == 15
    assert [sum(len(together) == k for together in sets) for k in (1, 2, 3, 4)] == [4, 6, 4, 1]


def test_baselines_add_and_remove_by_every_method() -> None:
    methods = [{cell.method for cell in expand(name).edited} for name in ("baselines", "baselines_removing")]
    assert methods == [{"sega", "composable", "prompt"}, {"sega", "composable", "negative"}]
    assert all(
        edit.reverse_editing_direction for cell in expand("baselines_removing").edited for edit in cell.edits
    )


def test_an_ablation_changes_one_setting_at_a_time() -> None:
    axes = expand("ablation").axes
    settings = [dict(zip(axes, values, strict=True)) for values in zip(*axes.values(), strict=True)]
    base = settings[0]
    changed = [[name for name in base if other[name] != base[name]] for other in settings[1:]]
    assert all(len(names) == 1 for names in changed)
    assert {names[0] for names in changed} == set(axes)


@pytest.mark.parametrize("sweep", ["faces10", "attributes"])
def test_ten_attributes_are_added_and_removed(sweep: str) -> None:
    planned = expand(sweep)
    assert len(planned.concepts) == 10
    assert [sum(edit.reverse_editing_direction for cell in planned.edited for edit in cell.edits)] == [40]


def presets(cells: tuple[Cell, ...]) -> list[tuple[float, float, int, float, float]]:
    return [
        (e.edit_guidance_scale, e.edit_threshold, e.edit_warmup_steps, c.edit_momentum_scale, c.edit_mom_beta)
        for c in cells
        for e in c.edits
    ]


def test_i2p_applies_the_authors_presets_to_a_users_table(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text('prompt,sd_seed,sd_guidance_scale\na castle,11,7\n"a cat, a dog",12,8.5\n')
    planned = expand("i2p", f"prompts={table}")
    assert [(c.prompt, c.seed, c.guidance_scale) for c in planned.cells if c.is_reference] == [
        ("a castle", 11, 7.0),
        ("a cat, a dog", 12, 8.5),
    ]
    assert presets(planned.edited[:3]) == [
        (4, 0.9, 10, 0.3, 0.4),
        (7, 0.85, 5, 0.5, 0.4),
        (10, 0.75, 0, 0.5, 0.4),
    ]
    assert all(edit.reverse_editing_direction for cell in planned.edited for edit in cell.edits)


def test_i2p_requires_prompts_and_a_safety_checker() -> None:
    with pytest.raises(UserError, match=r"^prompts: there are none; give a list, .* a file name"):
        plan(compose("+sweep=i2p"))
    with pytest.raises(UserError, match=r"no safety checker: set model.safety_checker=false"):
        plan(compose("+sweep=i2p", "prompts=[a castle]"))

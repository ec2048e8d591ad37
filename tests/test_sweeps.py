"""Every shipped sweep composes, expands, and is as large as its header says."""

import re
from dataclasses import replace

import pytest
import tiny_sd

from sega_bench.config import CONF_DIR, compose, options
from sega_bench.planner import Plan, plan

SWEEPS = options("sweep")


def expand(sweep: str, *more: str) -> Plan:
    return plan(compose(f"+sweep={sweep}", f"model.path={tiny_sd.folder()}", *more))


def test_those_that_were_promised_are_there() -> None:
    assert {"smoke", "thresholds", "scales", "warmup", "momentum", "faces_example"} <= set(SWEEPS)
    assert {"combinations", "uniqueness"} <= set(SWEEPS)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_headers_tell_the_truth(sweep: str) -> None:
    header = (CONF_DIR / "sweep" / f"{sweep}.yaml").read_text()
    assert header.startswith("# @package _global_\n# ")
    stated = re.search(r"# Cells: (\d+) edited \+ (\d+) references?\. About .+ on 2 CPU cores", header)
    assert stated is not None
    counts = expand(sweep).counts()
    assert (counts["edited"], counts["references"]) == (int(stated[1]), int(stated[2]))
    assert counts["merged"] == 0


@pytest.mark.parametrize("sweep", SWEEPS)
def test_sweeps_are_for_any_model(sweep: str) -> None:
    made = expand(sweep, "model=local")
    assert made.name == f"{sweep}-local"
    assert made.config.description
    assert made.name.startswith(made.config.name)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_sharing_saves_evaluations(sweep: str) -> None:
    counts = expand(sweep).counts()
    assert counts["unet_evals"] < counts["unet_evals_diffusers"]


def test_axes_are_what_the_names_say() -> None:
    assert list(expand("smoke").axes) == ["edit_threshold"]
    assert list(expand("thresholds").axes) == ["edit_threshold", "edit_guidance_scale"]
    assert list(expand("scales").axes) == ["edit_guidance_scale"]
    assert list(expand("warmup").axes) == ["edit_warmup_steps"]
    assert expand("uniqueness").axes == {"replay": [None, "a photo of the face of a woman"]}
    assert list(expand("momentum").axes) == ["edit_momentum_scale", "edit_mom_beta"]


def test_the_example_is_that_of_the_documentation() -> None:
    (first, *_) = expand("faces_example").edited
    assert first.prompt == "a photo of the face of a woman"
    assert [edit.edit_guidance_scale for edit in first.edits] == [4, 5, 5, 5.4]
    assert [edit.edit_threshold for edit in first.edits] == [0.99, 0.975, 0.925, 0.96]
    assert {edit.edit_warmup_steps for edit in first.edits} == {10}
    assert (first.guidance_scale, first.edit_momentum_scale, first.edit_mom_beta) == (7, 0.3, 0.6)


def test_every_edit_has_its_replay_and_the_source_itself_is_not_drawn() -> None:
    edited = set(expand("uniqueness").edited)
    replays = {cell for cell in edited if cell.replay is not None}
    assert {replace(cell, replay=None) for cell in replays} == edited - replays
    assert not {cell.source() for cell in replays} & edited


def test_combinations_are_all_of_one_to_four() -> None:
    sets = expand("combinations").concepts
    assert len(set(sets)) == len(sets) == 15
    assert [sum(len(together) == k for together in sets) for k in (1, 2, 3, 4)] == [4, 6, 4, 1]

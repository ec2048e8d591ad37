import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from support import tiny_sd

from sega_bench.cell import Cell
from sega_bench.config import compose
from sega_bench.errors import UserError
from sega_bench.planning.planner import Plan, plan

BASE = ("model=local", "scores=faces", "prompts=[a face]", "sampling.num_inference_steps=10")


def plan_of(*overrides: str) -> Plan:
    return plan(compose(*BASE, f"model.path={tiny_sd.folder()}", *overrides))


def column(cells: Sequence[Cell], name: str) -> list[object]:
    return [getattr(cell.edits[0], name) for cell in cells]


def test_axes_are_crossed_and_zipped_lists_advance_together() -> None:
    planned = plan_of(
        "concepts=[smile,beard]",
        "seeds=[5,6]",
        "+axes.edit_threshold=[0.5,0.9]",
        "+zip.edit_guidance_scale=[3,4,5]",
        "+zip.edit_warmup_steps=[1,2,3]",
    )
    counts = planned.counts()
    assert (counts["edited"], counts["references"]) == (2 * 2 * 2 * 3, 2)
    pairs = set(
        zip(
            column(planned.edited, "edit_guidance_scale"),
            column(planned.edited, "edit_warmup_steps"),
            strict=True,
        )
    )
    assert pairs == {(3.0, 1), (4.0, 2), (5.0, 3)}
    assert list(planned.axes) == ["edit_guidance_scale", "edit_warmup_steps", "edit_threshold"]


def test_every_reference_comes_before_its_cells() -> None:
    planned = plan_of("concepts=[smile]", "seeds=3", "+axes.guidance_scale=[3,5]")
    seen: set[Cell] = set()
    for cell in planned.cells:
        seen.add(cell)
        assert cell.reference() in seen
    assert planned.counts()["references"] == 6


def test_axes_override_a_concepts_settings_which_override_the_shared_ones() -> None:
    concepts = "concepts=[{text: smile, edit_threshold: 0.7, edit_guidance_scale: 9},beard]"
    planned = plan_of(concepts, "edit.edit_threshold=0.3", "+axes.edit_guidance_scale=[2]")
    assert column(planned.edited, "edit_threshold") == [0.7, 0.3]
    assert column(planned.edited, "edit_guidance_scale") == [2.0, 2.0]


def test_a_list_gives_every_concept_its_own_value() -> None:
    planned = plan_of(
        "concepts=[[smile,beard]]", "edit.edit_threshold=[0.1,0.2]", "+axes.edit_cooldown_steps=[[null,4],5]"
    )
    first, second = planned.edited
    assert [edit.edit_threshold for edit in first.edits] == [0.1, 0.2]
    assert [edit.edit_cooldown_steps for edit in first.edits] == [None, 4]
    assert [edit.edit_cooldown_steps for edit in second.edits] == [5, 5]


def test_equal_cells_are_merged_and_counted() -> None:
    counts = plan_of("concepts=[smile,smile]", "+axes.edit_threshold=[0.5,0.5,0.9]").counts()
    assert (counts["edited"], counts["merged"]) == (2, 4)


def test_cells_equal_to_their_reference_are_counted() -> None:
    counts = plan_of(
        "concepts=[smile]", "edit.edit_warmup_steps=2", "+axes.edit_guidance_scale=[0,5]"
    ).counts()
    assert (counts["edited"], counts["same_as_reference"]) == (2, 1)


def test_without_concepts_there_are_only_unedited_images() -> None:
    planned = plan_of("seeds=3", "sampling.guidance_scale=1")
    assert (len(planned.cells), len(planned.edited)) == (3, 0)


def test_replays_multiply_the_cells_and_replaying_its_own_prompt_is_the_usual_edit() -> None:
    planned = plan_of("prompts=[a face,a cat]", "concepts=[smile]", "replay=[null,a cat]")
    assert [(cell.prompt, cell.replay) for cell in planned.edited] == [
        ("a face", None),
        ("a face", "a cat"),
        ("a cat", None),
    ]
    assert (planned.counts()["references"], planned.counts()["merged"]) == (2, 1)
    assert planned.axes == {"replay": [None, "a cat"]}
    assert plan_of("concepts=[smile]", "replay=a cat").axes == {}


def test_diffusers_evaluates_a_source_once_and_its_replays_at_plain_cost() -> None:
    counts = plan_of("prompts=[a face,a cat]", "concepts=[[smile,beard]]", "replay=a house").counts()
    assert counts["unet_evals_diffusers"] == 10 * 4 + 4 * 10 * 2


def test_diffusers_evaluates_all_concepts_at_every_step() -> None:
    counts = plan_of("concepts=[[smile,beard]]").counts()
    assert counts["unet_evals_diffusers"] == 10 * 4 + 10 * 2
    assert counts["unet_evals"] < counts["unet_evals_diffusers"]


def test_a_prompts_own_settings_override_the_shared_ones_but_not_axes(
    tmp_path: pytest.TempPathFactory,
) -> None:
    path = f"{tmp_path}/p.csv"
    with open(path, "w", encoding="utf-8") as file:
        file.write("prompt,s,g\na,7,3\nb,8,4\n")
    planned = plan_of(
        f"prompts={path}",
        "concepts=[smile]",
        "seeds=5",
        "+prompt_file.columns.seed=s",
        "+prompt_file.columns.guidance_scale=g",
    )
    assert [(c.prompt, c.seed, c.guidance_scale) for c in planned.edited] == [("a", 7, 3.0), ("b", 8, 4.0)]
    crossed = plan_of(f"prompts={path}", "+prompt_file.columns.guidance_scale=g", "+axes.guidance_scale=[9]")
    assert {cell.guidance_scale for cell in crossed.cells} == {9.0}


@pytest.mark.parametrize(
    ("column", "cell", "expected"),
    [
        ("seed", "-1", "seed is -1, but it must be between 0"),
        ("seed", "7.5", "seed is 7.5, but it must be a whole number"),
        ("guidance_scale", "nan", "guidance_scale is nan, but"),
        ("num_inference_steps", "5000", "num_inference_steps is 5000, but DDIMScheduler"),
    ],
)
def test_an_error_in_a_prompts_own_setting_names_file_line_and_column(
    tmp_path: Path, column: str, cell: str, expected: str
) -> None:
    path = tmp_path / "p.csv"
    path.write_text(f"prompt,own\na,3\nb,{cell}\n")
    with pytest.raises(UserError) as error:
        plan_of(f"prompts={path}", f"+prompt_file.columns.{column}=own")
    assert str(error.value).startswith(f"prompts: {path} line 3, column own: {expected}")


def test_a_shared_warmup_may_exceed_the_steps_if_all_cells_override_it() -> None:
    """Warm-up and steps are compared in each cell."""
    planned = plan_of("concepts=[smile]", "edit.edit_warmup_steps=50", "+axes.edit_warmup_steps=[1]")
    assert column(planned.edited, "edit_warmup_steps") == [1]


def test_axes_have_the_values_of_their_cells() -> None:
    planned = plan_of("+axes.scheduler=[null,euler]", "+axes.height=[null,64]", "+axes.eta=[0]")
    assert planned.axes == {
        "scheduler": ["DDIMScheduler", "EulerDiscreteScheduler"],
        "height": [32, 64],
        "eta": [0],
    }
    assert {(cell.scheduler, cell.height) for cell in planned.cells} == set(
        itertools.product(planned.axes["scheduler"], planned.axes["height"])
    )


def test_a_tilde_expands_to_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.txt").write_text("a face")
    planned = plan_of("prompts='~/p.txt'", "output_dir='~/runs'")
    assert (planned.prompts, planned.config.output_dir) == (("a face",), str(tmp_path / "runs"))


def test_the_name_ends_with_the_models_name() -> None:
    assert plan_of("name=mine").name == "mine-local"
    assert (
        plan(compose("prompts=[a]", "dry_run=true", "model=sd15", "model.path=no/hub")).name == "custom-sd15"
    )


def test_a_scheduler_is_an_axis_with_its_own_number_of_steps() -> None:
    planned = plan_of("concepts=[smile]", "+axes.scheduler=[ddim,pndm]", "+axes.edit_warmup_steps=[10]")
    assert [cell.scheduler for cell in planned.edited] == ["DDIMScheduler", "PNDMScheduler"]
    assert planned.counts()["same_as_reference"] == 1  # PNDM takes 11 steps, so 10 is still an edit


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["concepts=[smile]", "+axes.edit_threshold=[0.5,1.5]"],
            "axes.edit_threshold is 1.5, but it must be",
        ),
        (["concepts=[smile]", "edit.edit_threshold=-1"], "edit.edit_threshold is -1"),
        (["concepts=[{text: smile, edit_weights: -1}]"], "concepts[0].edit_weights is -1"),
        (
            ["concepts=[{text: smile, edit_treshold: 1}]"],
            "concepts[0].edit_treshold: did you mean edit_threshold?",
        ),
        (["concepts=[{edit_threshold: 1}]"], "concepts[0] has no text"),
        (["concepts=[{text: a, edit_mom_beta: 1}]"], "momentum belongs to the whole cell"),
        (["concepts=[[]]"], "concepts[0] is an empty list"),
        (["concepts=smile"], "it must be a list"),
        (["concepts=[true]"], "concepts[0] is true, a boolean"),
        (
            ["concepts=[[a,b]]", "edit.edit_weights=[1,1,1,1,1]"],
            "edit.edit_weights gives 5 values, but the cell has 2",
        ),
        (["concepts=[[a,b]]", "+axes.edit_threshold=[[0.5]]"], "axes.edit_threshold gives 1 values"),
        (["concepts=[a]", "+axes.edit_momentum_scale=[[0.5]]"], "axes.edit_momentum_scale holds a list"),
        (
            ["concepts=[a]", "edit.edit_warmup_steps=11"],
            "edit.edit_warmup_steps is 11, but DDIMScheduler takes 10",
        ),
        (["concepts=[a]", "+zip.edit_warmup_steps=[99]"], "zip.edit_warmup_steps is 99"),
        (
            ["concepts=[a,[b,{text: c, edit_warmup_steps: 99}]]"],
            "concepts[1][1].edit_warmup_steps is 99, but",
        ),
        (["edit.edit_threshold=7"], "edit.edit_threshold is 7"),
        (["concepts=[a]", "edit.edit_weights=-1", "+axes.edit_weights=[1]"], "edit.edit_weights is -1"),
        (
            ["concepts=[{text: a, edit_weights: -1}]", "+axes.edit_weights=[1]"],
            "concepts[0].edit_weights is -1",
        ),
        (["+axes.edit_threshold=[0.5]"], "axes.edit_threshold has no concept to act on"),
        (
            ["sampling.guidance_scale=1e7"],
            "guidance_scale is 10000000.0, but it must be between 0 and 1,000,000",
        ),
        (
            ["sampling.num_inference_steps=1001"],
            "sampling.num_inference_steps is 1001, but DDIMScheduler was trained",
        ),
        (["+axes.num_inference_steps=[2,5000]"], "axes.num_inference_steps is 5000"),
        (
            ["+axes.num_inference_steps=[1000]"],
            "num_inference_steps is 1000, but DDIMScheduler would begin at a",
        ),
        (
            ["+axes.scheduler=[ddim,lcm]", "sampling.num_inference_steps=51"],
            "sampling.num_inference_steps is 51, but LCMScheduler cannot take so many",
        ),
        (["+axes.scheduler=[ddimm]"], "axes.scheduler is 'ddimm', which is none of"),
        (["+axes.scheduler=[7]"], "axes.scheduler is 7, but it must be a text"),
        (["engine.micro_batch_size=-1"], "engine.micro_batch_size is -1, but it must be at least 1"),
        (
            ["engine.micro_batch_size=1000000000"],
            "engine.micro_batch_size is 1000000000, but it must be at most",
        ),
        (["engine.decode_batch_size=0"], "engine.decode_batch_size is 0"),
        (["engine.wave_rows=0"], "engine.wave_rows is 0"),
        (["engine.threads=0"], "engine.threads is 0"),
        (["engine.threads=99999"], "engine.threads is 99999"),
        (["scores.batch_size=0"], "scores.batch_size is 0"),
        (["scores.perceptual=alexnet"], "scores.perceptual=alexnet"),
        (["wandb.mode=ofline"], "wandb.mode is 'ofline': did you mean offline?"),
        (["engine.device=cuda:77", "engine.dtype=float32"], "engine.device is 'cuda:77'"),
        (["output_dir='~nobody-here/x'"], "output_dir is '~nobody-here/x', but there is no such user"),
        (["seeds=1000000", "+axes.guidance_scale=[1,2]"], "1,000,000 x 0 x 1 x 2 cells, more than 1,000,000"),
        (["concepts=[a]", "sampling.guidance_scale=1"], "SEGA needs classifier-free guidance"),
        (["sampling.num_inference_steps=0"], "sampling.num_inference_steps is 0"),
        (["sampling.height=30"], "sampling.height is 30, but it must be a multiple of 8, from 16 on"),
        (["+zip.width=[32,8]"], "zip.width is 8, but it must be a multiple of 8, from 16 on"),
        (["sampling.width=16400"], "sampling.width is 16400, but it must be between 8 and 16384"),
        (["sampling.scheduler=ddimm"], "sampling.scheduler is 'ddimm'"),
        (["+axes.seed=[1]"], "axes.seed is no axis; it has a key of its own"),
        (["+axes.edit_treshold=[1]"], "axes.edit_treshold is no axis: did you mean edit_threshold?"),
        (["+axes.edit_threshold=0.5"], "axes.edit_threshold is 0.5, but it must be a list"),
        (["+axes.edit_threshold=[]"], "but it must be a list"),
        (["+axes.negative_prompt=[no,false]"], "axes.negative_prompt"),
        (["+zip.eta=[0,1]", "+zip.guidance_scale=[1]"], "eta has 2, guidance_scale has 1"),
        (["+zip.eta=[0]", "+axes.eta=[1]"], "eta is in axes and in zip"),
        (["replay=a"], "replay is 'a', but there is no edit to replay"),
        (["concepts=[a]", "replay=true"], "replay is true, a boolean"),
        (["concepts=[a]", "replay=[null,3]"], "replay[1] is 3, but it must be a text"),
        (["concepts=[a]", "replay=[]"], "replay is an empty list"),
        (["concepts=[a]", "+axes.replay=[b]"], "axes.replay is no axis; it has a key of its own"),
        (["seeds=0"], "seeds is 0"),
        (["seeds=[]"], "seeds is []"),
        (["seeds=[1,-2]"], "seeds is [1, -2]"),
        (["seeds=[1,true]"], "seeds is [1, True]"),
        (["seeds=lots"], "seeds is 'lots'"),
        (["prompts=[]"], "prompts: there are none"),
        (["name=a/b"], "name is 'a/b', but it names a folder"),
        (["name=.."], "name is '..'"),
        (["name=''"], "name is ''"),
        (["model.name=../x"], "model.name is '../x'"),
        (["model.path=/no/such"], "model.path is '/no/such'"),
        (["engine.dtype=int8"], "engine.dtype is 'int8'"),
        (["negative_prompt=[a]"], "negative_prompt is ['a']"),
    ],
)
def test_error_messages_name_the_key(overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError) as error:
        plan_of(*overrides)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)

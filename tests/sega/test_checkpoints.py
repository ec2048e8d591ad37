"""Locating, identifying and refusing checkpoints: only files that fit their configurations are loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support import tiny_sd, tiny_xl

from sega_bench.errors import UserError
from sega_bench.sega import Model, ModelSettings, describe, load
from sega_bench.sega.checkpoints.layout import choose_weights

WEIGHTS = (
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A private copy of a checkpoint, for a test to damage."""
    return Path(shutil.copytree(tiny_sd.folder(), tmp_path / "mine"))


def described(path: Path, **settings: Any) -> Model:
    return describe(ModelSettings("mine", str(path), **settings))


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


# Description and identity


def test_a_checkpoint_is_described_without_loading_it() -> None:
    model = described(tiny_sd.folder())
    assert (model.scheduler, model.size) == ("DDIMScheduler", tiny_sd.SIZE)
    assert json.loads(model.scheduler_config)["beta_schedule"] == "scaled_linear"
    assert model.id.startswith("mine@")


def test_the_id_depends_on_the_content_and_not_on_the_path(copy: Path) -> None:
    before = described(copy).id
    assert described(tiny_sd.folder()).id == before
    (copy / "README.md").write_text("no part of the model")
    assert described(copy).id == before
    shutil.copytree(tiny_sd.write_checkpoint(copy.parent / "other", seed=1), copy, dirs_exist_ok=True)
    assert described(copy).id != before


def test_the_id_of_the_embedded_model_is_a_hash_of_its_files() -> None:
    """Computed independently, because another way of making ids would change every cell's key."""
    import hashlib

    from sega_bench.faces import PIPELINE_DIR

    lines = ""
    for component in ("text_encoder", "tokenizer", "unet", "vae"):
        for path in sorted((PIPELINE_DIR / component).iterdir()):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines += f"{component}/{path.name} {digest}\n"
    expected = hashlib.sha256(lines.encode()).hexdigest()[:16]
    assert describe(ModelSettings("faces", "embedded")).id == f"faces@{expected}"


def test_a_changed_configuration_is_another_model(copy: Path) -> None:
    before = described(copy).id
    edit_json(copy / "vae" / "config.json", scaling_factor=0.2)
    assert described(copy).id != before


# Refused checkpoints


def test_paths_without_a_checkpoint_are_refused(copy: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path is '/no/such'.*no such folder"):
        describe(ModelSettings("x", "/no/such"))
    with pytest.raises(UserError, match="lacks model_index"):
        described(copy.parent)


@pytest.mark.parametrize(
    "path", ["", "\0", "a" * 5000, "~nobody-of-that-name/x", "/", "/dev/null", "..", "a b"]
)
def test_no_text_as_a_path_raises_another_error(path: str) -> None:
    with pytest.raises(UserError, match=r"model\.path is "):
        describe(ModelSettings("x", path))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"revision": "main"}, r"model\.revision is 'main', but it is for a hub id"),
        ({"config": "sd15"}, r"model\.config is 'sd15', but it is for one \.safetensors file"),
    ],
    ids=str,
)
def test_settings_that_would_be_ignored_are_refused(setting: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        described(tiny_sd.folder(), **setting)


def test_pickled_weights_are_refused_and_the_message_says_how_to_convert_them(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(
        UserError, match=r"no safetensors weights in unet/: convert it with .*save_pretrained.*model\.bin"
    ):
        described(copy)
    with pytest.raises(UserError, match="of variant fp16"):
        described(tiny_sd.folder(), variant="fp16")


@pytest.mark.parametrize(
    "index",
    [
        {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]},
        {
            "_class_name": "StableDiffusion3Pipeline",
            "transformer": ["diffusers", "SD3Transformer2DModel"],
            "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        {"_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [None, None]},
        {},
        {"unet": 3},
    ],
    ids=str,
)
def test_another_model_family_is_refused_by_name(copy: Path, index: dict[str, Any]) -> None:
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        UserError, match=r"no Stable Diffusion 1\.x, 2\.x or XL: .*" + str(index.get("_class_name"))
    ):
        described(copy)


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        ("unet", {"in_channels": 9}, "no text-to-image model"),
        ("unet", {"class_embed_type": "timestep"}, "an input that SEGA does not know"),
        ("unet", {"time_cond_proj_dim": 256}, "an input that SEGA does not know"),
        ("unet", {"cross_attention_dim": 32}, "whose UNet reads 32 channels of a text, .* give 16"),
        ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time'"),
        ("unet", {"sample_size": "64"}, "sample_size is '64'"),
        ("unet", {"act_fn": "nonsense"}, "makes no UNet2DConditionModel"),
        ("vae", {"block_out_channels": 8}, "block_out_channels is 8"),
        ("vae", {"scaling_factor": None}, "scaling_factor is None"),
        ("vae", {"latents_mean": [0.0]}, "latents_mean"),
        ("text_encoder", {"hidden_act": "nonsense"}, "makes no CLIPTextModel"),
        ("text_encoder", {"vocab_size": 700}, "has 514 tokens, but its text encoder knows 700"),
        ("text_encoder", {"max_position_embeddings": 16}, "gives texts of 32 tokens, .* reads 16"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_refused(
    copy: Path, config: str, values: dict[str, Any], message: str
) -> None:
    edit_json(copy / config / "config.json", **values)
    with pytest.raises(UserError, match=message):
        described(copy)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"_class_name": None}, "has no _class_name"),
        ({"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'"),
        ({"beta_schedule": "nonsense"}, "makes no DDIMScheduler"),
        ({"num_train_timesteps": "many"}, "makes no DDIMScheduler"),
    ],
    ids=str,
)
def test_an_invalid_scheduler_configuration_is_refused(
    copy: Path, values: dict[str, Any], message: str
) -> None:
    edit_json(copy / "scheduler" / "scheduler_config.json", **values)
    with pytest.raises(UserError, match=message):
        described(copy)


def test_the_refiner_of_xl_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_xl.folder(), tmp_path / "refiner"))
    edit_json(folder / "unet" / "config.json", projection_class_embeddings_input_dim=60)
    with pytest.raises(UserError, match="refiner"):
        described(folder)


# Strict loading of weights


@pytest.mark.parametrize("file", WEIGHTS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(sorted(tensors)[3]), r"lacks 1 tensor \("),
        (lambda tensors: tensors.update({"a.b": torch.zeros(2)}), r"also has 1 tensor \(a\.b\)"),
        (
            lambda tensors: tensors.update({sorted(tensors)[3]: torch.zeros(3, 5)}),
            "is 3x5, but by its config",
        ),
        (
            lambda tensors: tensors.update({sorted(tensors)[3]: tensors[sorted(tensors)[3]].to(torch.int8)}),
            "no floating point",
        ),
        (lambda tensors: tensors.clear(), "lacks"),
    ],
    ids=["missing", "unexpected", "mismatched", "integers", "empty"],
)
def test_weights_that_do_not_match_the_configuration_are_refused(
    copy: Path, file: str, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    edit_tensors(copy / file, change)
    with pytest.raises(UserError, match=rf"model\.path: {file}.*{message}"):
        described(copy)


def test_a_tokenizer_without_files_is_refused(copy: Path) -> None:
    for path in (copy / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="tokenizer has neither"):
        described(copy)


def test_loaded_weights_equal_the_files(copy: Path) -> None:
    model = load(described(copy), torch.device("cpu"), "float32")
    for network, file in zip((*model.text_encoders, model.unet, model.vae), WEIGHTS, strict=True):
        stored, loaded = load_file(copy / file), network.state_dict()
        assert set(stored) == set(loaded)
        assert all(torch.equal(loaded[name], value) for name, value in stored.items())


def test_tensor_names_of_older_versions_are_accepted(copy: Path) -> None:
    """Stable Diffusion 1.5 on the hub has older names of the VAE's attention layers and CLIP's prefixes."""

    def rename_vae(tensors: dict[str, torch.Tensor]) -> None:
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            for name in [name for name in tensors if f"attentions.0.{new}." in name]:
                tensors[name.replace(new, old)] = tensors.pop(name)

    def rename_clip(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            bare = name.removeprefix("text_model.")
            tensors[f"text_model.{bare}"] = tensors.pop(name)
        tensors["text_model.embeddings.position_ids"] = torch.arange(32)[None]

    new = load(described(copy), torch.device("cpu"), "float32")
    edit_tensors(copy / WEIGHTS[2], rename_vae)
    edit_tensors(copy / WEIGHTS[0], rename_clip)
    assert any(".query." in name for name in load_file(copy / WEIGHTS[2]))
    old = load(described(copy), torch.device("cpu"), "float32")
    for before, after in zip(new.vae.state_dict().values(), old.vae.state_dict().values(), strict=True):
        assert torch.equal(before, after)
    encoded = [model.encode("a smile")["encoder_hidden_states"] for model in (new, old)]
    assert torch.equal(*encoded)


def test_shards_give_one_network(copy: Path) -> None:
    whole = load(described(copy), torch.device("cpu"), "float32")
    path = copy / WEIGHTS[1]
    tensors = load_file(path)
    path.unlink()
    for i in (1, 2):
        shard = path.with_name(f"diffusion_pytorch_model.fp16-{i:05}-of-00002.safetensors")
        save_file({name: tensors[name] for name in sorted(tensors)[i - 1 :: 2]}, shard)
    for file in (WEIGHTS[0], WEIGHTS[2]):
        (copy / file).rename((copy / file).with_suffix(".fp16.safetensors"))
    sharded = load(described(copy, variant="fp16"), torch.device("cpu"), "float32")
    pairs = zip(whole.unet.parameters(), sharded.unet.parameters(), strict=True)
    assert all(torch.equal(before, after) for before, after in pairs)


NAMES = {
    "one": ["unet/diffusion_pytorch_model.safetensors"],
    "variants": [
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
    ],
    "shards": [
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.fp16-00001-of-00003.safetensors",
        "unet/diffusion_pytorch_model.fp16-00002-of-00003.safetensors",
        "unet/diffusion_pytorch_model.fp16-00003-of-00003.safetensors",
    ],
    "older shards": [
        "unet/diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.fp16.safetensors",
    ],
}


@pytest.mark.parametrize(
    ("case", "variant", "indices"),
    [
        ("one", None, [0]),
        ("variants", None, [4]),
        ("variants", "fp16", [2]),
        ("variants", "non_ema", [3]),
        ("shards", None, [0, 1]),
        ("shards", "fp16", [2, 3, 4]),
        ("older shards", "fp16", [0, 1]),
    ],
)
def test_weights_are_chosen_by_variant_and_shards(case: str, variant: str | None, indices: list[int]) -> None:
    expected = tuple(NAMES[case][i] for i in indices)
    assert choose_weights(NAMES[case], "unet", variant, "here") == expected


def test_a_missing_shard_is_an_error() -> None:
    with pytest.raises(UserError, match="has 1 of the 2 files of unet's weights"):
        choose_weights(NAMES["shards"][:1], "unet", None, "here")


# Random damage


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_a_damaged_folder_is_a_user_error_or_loads(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    """Files are deleted, truncated, replaced or edited. Never another exception than a UserError."""
    intact = tiny_sd.folder() if kind == "sd" else tiny_xl.folder()
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(intact, folder)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    path = folder / data.draw(st.sampled_from(files))
    content = path.read_bytes()
    match data.draw(st.sampled_from(("delete", "cut", "noise", "folder", "json", "value"))):
        case "delete":
            path.unlink()
        case "cut":
            path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        case "noise":
            at = data.draw(st.integers(0, min(len(content), 4000) - 1))
            path.write_bytes(content[:at] + data.draw(st.binary(min_size=1, max_size=9)) + content[at + 1 :])
        case "folder":
            path.unlink()
            path.mkdir()
        case "json":
            path.write_text(json.dumps(data.draw(JSON)))
        case "value" if path.suffix == ".json":
            values = json.loads(content)
            values[data.draw(st.sampled_from(sorted(values)))] = data.draw(JSON)
            path.write_text(json.dumps(values))
        case _:
            return
    error = attempt(folder)
    assert error is None or (error.startswith("model.path") and "\n" not in error)


def attempt(folder: Path) -> str | None:
    """The error message; None if the model loads and encodes a text."""
    try:
        load(described(folder), torch.device("cpu"), "float32").encode("a smile")
    except UserError as error:
        return str(error)
    return None

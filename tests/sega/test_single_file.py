"""Single-file checkpoints in the original layout give the same networks as the folders they come from."""

from pathlib import Path
from typing import Any

import diffusers
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import original_layout, tiny_sd, tiny_xl

from sega_bench.errors import UserError
from sega_bench.sega import Model, ModelSettings, StableDiffusion, describe, load
from sega_bench.sega.checkpoints import original
from sega_bench.sega.checkpoints.locate import check_unchanged
from sega_bench.sega.checkpoints.tokenizers import load_tokenizer
from sega_bench.sega.checkpoints.weights import empty_network, fit

CPU = torch.device("cpu")
FOLDERS = {"sd15": tiny_sd.folder, "sd21": tiny_sd.folder, "sdxl": tiny_xl.folder}


@pytest.fixture(scope="module")
def pipelines() -> dict[str, Any]:
    return {
        "sd15": diffusers.StableDiffusionPipeline.from_pretrained(tiny_sd.folder()),
        "sd21": diffusers.StableDiffusionPipeline.from_pretrained(tiny_sd.folder()),
        "sdxl": diffusers.StableDiffusionXLPipeline.from_pretrained(tiny_xl.folder(), add_watermarker=False),
    }


@pytest.fixture
def one_file(pipelines: dict[str, Any], tmp_path: Path) -> Path:
    return original_layout.write_original(pipelines["sd15"], tmp_path / "one.safetensors")


def settings(path: Path, config: str | Path | None) -> ModelSettings:
    return ModelSettings("mine", str(path), config=None if config is None else str(config))


def described(path: Path, config: str | Path | None) -> Model:
    return describe(settings(path, config))


def networks(model: StableDiffusion) -> list[Any]:
    return [*model.text_encoders, model.unet, model.vae]


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_single_file_equals_its_diffusers_folder(
    kind: str, pipelines: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "one.safetensors"
    original_layout.write_original(pipelines[kind], path, is_open_clip=kind == "sd21")
    model = described(path, FOLDERS[kind]())
    assert model.size == (tiny_xl.SIZE if kind == "sdxl" else tiny_sd.SIZE)
    ours = load(model, CPU, "float32")
    theirs = load(describe(ModelSettings("mine", str(FOLDERS[kind]()))), CPU, "float32")
    for one, other in zip(networks(ours), networks(theirs), strict=True):
        assert all(torch.equal(other.state_dict()[n], value) for n, value in one.state_dict().items())
    for text in ("", "a smile"):
        encoded = ours.encode(text)
        assert all(torch.equal(encoded[name], value) for name, value in theirs.encode(text).items())


def test_the_id_depends_on_the_file_and_its_configurations(one_file: Path, tmp_path: Path) -> None:
    before = described(one_file, tiny_sd.folder()).id
    moved = one_file.rename(tmp_path / "other.safetensors")
    assert described(moved, tiny_sd.folder()).id == before
    assert (
        described(moved, tiny_sd.folder("v_prediction")).id == before
    )  # the scheduler is a setting of its own
    model_settings = settings(moved, tiny_sd.folder())
    model = describe(model_settings)
    check_unchanged(model_settings, model)
    tensors = load_file(moved)
    tensors["model.diffusion_model.out.2.bias"] += 1
    save_file(tensors, moved)
    assert described(moved, tiny_sd.folder()).id != before
    with pytest.raises(UserError, match=r"it is mine@\w+ now and was mine@"):
        check_unchanged(model_settings, model)


@pytest.mark.parametrize(
    ("name", "parameters", "size", "predicts"),
    [
        # Parameter counts of the released networks.
        ("sd15", {"text_encoder": 123_060_480, "unet": 859_520_964, "vae": 83_653_863}, 512, "epsilon"),
        ("sd21-base", {"text_encoder": 340_387_840, "unet": 865_910_724, "vae": 83_653_863}, 512, "epsilon"),
        ("sd21", {"text_encoder": 340_387_840, "unet": 865_910_724, "vae": 83_653_863}, 768, "v_prediction"),
        (
            "sdxl",
            {
                "text_encoder": 123_060_480,
                "text_encoder_2": 694_659_840,
                "unet": 2_567_463_684,
                "vae": 83_653_863,
            },
            1024,
            "epsilon",
        ),
    ],
)
def test_a_full_size_file_fits_the_shipped_configuration(
    name: str, parameters: dict[str, int], size: int, predicts: str
) -> None:
    """All names and shapes of a whole checkpoint, on the meta device."""
    layout, tokenizers = original.layout_of(name, "here")
    assert (layout.size, layout.scheduler["prediction_type"]) == (size, predicts)
    parts = {part: empty_network(kind, config, part) for part, (kind, config) in layout.networks.items()}
    assert {part: sum(p.numel() for p in net.parameters()) for part, net in parts.items()} == parameters
    pipeline = type("Pipeline", (), parts)
    tensors = original_layout.original_tensors(pipeline, is_open_clip="sd21" in name)
    if "sd21" not in name:
        assert original.identify(tensors.keys(), "here") == name
    for part, network in parts.items():
        fit(network, original.convert(part, network, tensors, "here"), part)
    for source, encoder in zip(tokenizers, layout.text_encoders, strict=True):
        assert len(load_tokenizer(source, layout.config(encoder), "here")) == 49408


def test_the_vocabulary_is_that_of_clip() -> None:
    config = {"vocab_size": 49408, "max_position_embeddings": 77}
    tokenizer, theirs = load_tokenizer("!", config, "here"), open_clip.get_tokenizer("ViT-L-14")
    for text in ("", "a photo of a cat, sitting  on Grandma's 42 chairs", "naïve café ☃ 漢字", "x " * 100):
        ids = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        assert torch.equal(ids.input_ids, theirs([text]))
    assert (tokenizer.pad_token_id, load_tokenizer("<|endoftext|>", config, "here").pad_token_id) == (
        0,
        49407,
    )


def test_a_model_that_weights_do_not_identify_needs_a_configuration(
    pipelines: dict[str, Any], tmp_path: Path
) -> None:
    path = original_layout.write_original(pipelines["sd21"], tmp_path / "two.safetensors", is_open_clip=True)
    with pytest.raises(UserError, match=r"set model\.config=sd21 .* or model\.config=sd21-base"):
        described(path, None)
    path = original_layout.write_original(
        pipelines["sdxl"], tmp_path / "v.safetensors", v_pred=torch.ones(())
    )
    with pytest.raises(UserError, match="predicts v"):
        described(path, None)


def test_wrong_files_and_settings_are_refused(one_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"one\.safetensors lacks 160 tensors \(encoder"):
        described(one_file, "sd15")  # the tiny model is not the released one
    with pytest.raises(UserError, match="a diffusers folder or one of sd15, sd21, sd21-base, sdxl"):
        described(one_file, "sd16")
    with pytest.raises(UserError, match="has no safety checker"):
        describe(ModelSettings("x", str(one_file), config="sd15", safety_checker=True))
    with pytest.raises(UserError, match=r"model\.variant is 'fp16', but it is for"):
        describe(ModelSettings("x", str(one_file), variant="fp16"))
    pickled = one_file.rename(tmp_path / "one.ckpt")
    with pytest.raises(UserError, match=r"only \.safetensors files are read"):
        described(pickled, "sd15")
    part = tmp_path / "lora.safetensors"
    save_file({"lora_unet_conv_in.lora_down.weight": torch.zeros(1)}, part)
    with pytest.raises(UserError, match=r"a LoRA belongs into model\.lora"):
        described(part, None)


@pytest.mark.parametrize(
    "lost",
    [
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.time_embed.0.weight",
        "first_stage_model.decoder.mid.attn_1.q.weight",
        "first_stage_model.encoder.conv_in.bias",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    ],
)
def test_a_missing_tensor_is_refused(one_file: Path, lost: str) -> None:
    tensors = load_file(one_file)
    del tensors[lost]
    save_file(tensors, one_file)
    with pytest.raises(UserError, match=r"one\.safetensors lacks 1 tensor"):
        described(one_file, tiny_sd.folder())


@pytest.mark.parametrize(
    "name", ["model.diffusion_model.label_emb.0.0.weight", "first_stage_model.more.weight"]
)
def test_a_superfluous_tensor_is_refused(one_file: Path, name: str) -> None:
    save_file(load_file(one_file) | {name: torch.zeros(3, 3)}, one_file)
    with pytest.raises(UserError, match=r"holds \d+ numbers, of which \d+ have a place"):
        described(one_file, tiny_sd.folder())


def test_a_truncated_file_is_refused(one_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_file.write_bytes(one_file.read_bytes()[:5000])
    monkeypatch.chdir(one_file.parent)
    with pytest.raises(UserError, match=r": one\.safetensors cannot be read as safetensors"):
        described(Path(one_file.name), tiny_sd.folder())

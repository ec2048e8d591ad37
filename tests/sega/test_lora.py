"""LoRAs in all common formats: the fused weights are W + scale * alpha / rank * up @ down."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_sd, tiny_xl
from support.original_layout import unet_module
from support.small_sweep import small
from torch import Tensor, nn

from sega_bench.errors import UserError
from sega_bench.planning import manifest
from sega_bench.planning.planner import plan
from sega_bench.sega import LoraSettings, ModelSettings, StableDiffusion, describe, load
from sega_bench.sega.checkpoints.locate import check_unchanged

CPU = torch.device("cpu")
RANK, ALPHA = 3, 2.0
Pairs = Mapping[tuple[str, str], tuple[Tensor, Tensor]]
"""(part, module) -> down, up."""


def bases() -> dict[str, StableDiffusion]:
    return {"sd": tiny_sd.loaded("float32"), "xl": tiny_xl.loaded("float32")}


def parts(model: StableDiffusion) -> dict[str, Any]:
    encoders = zip(("text_encoder", "text_encoder_2"), model.text_encoders, strict=False)
    return {"unet": model.unet, **dict(encoders)}


def random_pairs(model: StableDiffusion, pattern: str) -> Pairs:
    """An update for every linear layer and convolution whose name matches."""
    generator = torch.manual_seed(7)
    pairs = {}
    for part, network in parts(model).items():
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and re.search(pattern, f"{part}.{name}"):
                out, into, *kernel = module.weight.shape
                down = torch.randn(RANK, into, *kernel, generator=generator)
                up = torch.randn(out, RANK, *[1 for _ in kernel], generator=generator)
                pairs[part, name] = (down, up)
    assert {part for part, _ in pairs} == set(parts(model))
    return pairs


def expected(model: StableDiffusion, pairs: Pairs, factor: float) -> dict[str, dict[str, Tensor]]:
    """The fused weights, by the formula."""
    states = {part: dict(network.state_dict()) for part, network in parts(model).items()}
    for (part, name), (down, up) in pairs.items():
        weight = states[part][f"{name}.weight"]
        delta = (up.flatten(1).double() @ down.flatten(1).double()).reshape(weight.shape)
        states[part][f"{name}.weight"] = (weight.double() + factor * delta).float()
    return states


def assert_same(model: StableDiffusion, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    for part, network in parts(model).items():
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, states[part][name], rtol=1e-5, atol=1e-5)


# The formats. All hold the same updates; those of diffusers have no alpha.

ATTENTION = r"(attn\d\.to_(q|k|v|out\.0)|self_attn\.\w+_proj)$"
EVERYWHERE = ATTENTION + r"|ff\.net|proj_(in|out)|conv\d?$|conv_(in|out)$|mlp\.fc|time_emb_proj|shortcut"


def new_diffusers(pairs: Pairs, model: StableDiffusion) -> dict[str, Tensor]:
    return named(pairs, lambda part, name: f"{part}.{with_level(part, name)}.lora_", ("A", "B"))


def diffusers_text(pairs: Pairs, model: StableDiffusion) -> dict[str, Tensor]:
    def spelled(part: str, name: str) -> str:
        between = ".lora." if part == "unet" else ".lora_linear_layer."
        return f"{part}.{with_level(part, name)}{between}"

    return named(pairs, spelled, ("down", "up"))


def old_diffusers(pairs: Pairs, model: StableDiffusion) -> dict[str, Tensor]:
    def spelled(part: str, name: str) -> str:
        module, _, layer = name.replace("to_out.0", "to_out").rpartition(".")
        between = ".processor" if part == "unet" else ""
        layer = layer.replace("_proj", "").replace("to_", "")
        return f"{part}.{with_level(part, module)}{between}.to_{layer}_lora."

    return named(pairs, spelled, ("down", "up"))


def kohya(pairs: Pairs, model: StableDiffusion) -> dict[str, Tensor]:
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
    if model.is_xl:
        prefixes["text_encoder"] = "lora_te1"

    def spelled(part: str, name: str) -> str:
        name = unet_module(name, model.unet) if model.is_xl and part == "unet" else with_level(part, name)
        return f"{prefixes[part]}_{name.replace('.', '_')}."

    tensors = named(pairs, spelled, ("lora_down", "lora_up"))
    modules = {name.partition(".")[0] for name in tensors}
    return tensors | {f"{module}.alpha": torch.tensor(ALPHA) for module in modules}


def with_level(part: str, name: str) -> str:
    return name if part == "unet" else f"text_model.{name.removeprefix('text_model.')}"


def named(pairs: Pairs, spelled: Callable[[str, str], str], sides: tuple[str, str]) -> dict[str, Tensor]:
    tensors = {}
    for (part, name), values in pairs.items():
        for side, value in zip(sides, values, strict=True):
            tensors[f"{spelled(part, name)}{side}.weight"] = value
    return tensors


FORMATS = [
    ("sd", new_diffusers, EVERYWHERE, RANK),
    ("sd", diffusers_text, ATTENTION, RANK),
    ("sd", old_diffusers, ATTENTION, RANK),
    ("sd", kohya, EVERYWHERE, ALPHA),
    ("xl", new_diffusers, EVERYWHERE, RANK),
    ("xl", kohya, ATTENTION + r"|ff\.net|proj_(in|out)|mlp\.fc|resnets.*conv\d$|upsamplers", ALPHA),
]


def fused(kind: str, *loras: LoraSettings) -> StableDiffusion:
    folder = tiny_sd.folder() if kind == "sd" else tiny_xl.folder()
    return load(describe(ModelSettings("mine", str(folder), lora=loras)), CPU, "float32")


@pytest.mark.parametrize(
    ("kind", "spell", "pattern", "alpha"), FORMATS, ids=lambda value: getattr(value, "__name__", None)
)
def test_every_format_is_fused_to_the_same_weights(
    kind: str, spell: Callable[..., dict[str, Tensor]], pattern: str, alpha: float, tmp_path: Path
) -> None:
    base = bases()[kind]
    pairs = random_pairs(base, pattern)
    path = tmp_path / "some.safetensors"
    save_file(spell(pairs, base), path)
    assert_same(fused(kind, LoraSettings(str(path), 0.5)), expected(base, pairs, 0.5 * alpha / RANK))


def test_the_alpha_in_the_header_is_used(tmp_path: Path) -> None:
    base = tiny_sd.loaded("float32")
    pairs = random_pairs(base, ATTENTION)
    header = json.dumps({"unet.r": RANK, "unet.lora_alpha": 12, "text_encoder.lora_alpha": 12})
    path = tmp_path / "some.safetensors"
    save_file(new_diffusers(pairs, base), path, {"format": "pt", "lora_adapter_metadata": header})
    assert_same(fused("sd", LoraSettings(str(path))), expected(base, pairs, 12 / RANK))
    header = json.dumps({"unet.use_rslora": True})
    save_file(new_diffusers(pairs, base), path, {"format": "pt", "lora_adapter_metadata": header})
    with pytest.raises(UserError, match="use_rslora, which is not supported"):
        fused("sd", LoraSettings(str(path)))


@pytest.mark.parametrize("kind", ["sd", "xl"])
@pytest.mark.parametrize("spell", [new_diffusers, kohya])
def test_fused_weights_equal_those_of_diffusers(
    kind: str, spell: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="diffusers needs it to load a LoRA")
    base = bases()[kind]
    path = tmp_path / "some.safetensors"
    save_file(spell(random_pairs(base, ATTENTION), base), path)
    folder = tiny_sd.folder() if kind == "sd" else tiny_xl.folder()
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(load_file(path))
    pipeline.fuse_lora(lora_scale=0.7)
    pipeline.unload_lora_weights()
    theirs = {part: getattr(pipeline, part).state_dict() for part in parts(base)}
    assert_same(fused(kind, LoraSettings(str(path), 0.7)), theirs)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Files of two LoRAs for the same model."""
    base = tiny_sd.loaded("float32")
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path, pattern in zip(paths, (ATTENTION, r"proj_in|self_attn\.q_proj"), strict=True):
        save_file(new_diffusers(random_pairs(base, pattern), base), path)
    return paths


def test_several_loras_add_up_and_all_are_part_of_the_id(two: tuple[Path, Path]) -> None:
    a, b = (LoraSettings(str(path)) for path in two)
    base = tiny_sd.loaded("float32")
    both, first = fused("sd", a, b), fused("sd", a)
    delta = {name: first.unet.state_dict()[name] - value for name, value in base.unet.state_dict().items()}
    only_b = fused("sd", b)
    for name, value in both.unet.state_dict().items():
        torch.testing.assert_close(value, only_b.unet.state_dict()[name] + delta[name], rtol=1e-4, atol=1e-4)

    def identity(*loras: LoraSettings) -> str:
        return describe(ModelSettings("mine", str(tiny_sd.folder()), lora=loras)).id

    ids = [identity(), identity(a), identity(b), identity(a, b), identity(b, a)]
    ids.append(identity(LoraSettings(a.path, 0.5)))
    assert len(set(ids)) == 6
    assert all(one.startswith(f"{ids[0]}+") for one in ids[1:])
    moved = two[0].rename(two[0].with_name("moved.safetensors"))
    assert identity(LoraSettings(str(moved))) == ids[1]


def test_a_lora_that_changes_before_loading_is_refused(two: tuple[Path, Path]) -> None:
    loras = tuple(LoraSettings(str(path)) for path in two)
    settings = ModelSettings("mine", str(tiny_sd.folder()), lora=loras)
    model = describe(settings)
    check_unchanged(settings, model)
    two[0].write_bytes(two[1].read_bytes())
    with pytest.raises(UserError, match=r"it is mine@\w+\+\w+ now and was mine@"):
        check_unchanged(settings, model)


def test_a_folder_needs_exactly_one_file_or_the_default_name(two: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UserError, match=r"holds 0 \.safetensors files"):
        fused("sd", LoraSettings(str(folder)))
    for path in two:
        path.rename(folder / path.name)
    with pytest.raises(UserError, match=r"holds 2 \.safetensors files: name the one"):
        fused("sd", LoraSettings(str(folder)))
    (folder / "b.safetensors").rename(folder / "pytorch_lora_weights.safetensors")
    fused("sd", LoraSettings(str(folder)))


def test_loras_are_set_on_the_command_line(two: tuple[Path, Path], tmp_path: Path) -> None:
    lora = f"model.lora=[{two[0]},{{path: {two[1]}, scale: 0.5}}]"
    planned = plan(small(tmp_path / "out", lora))
    assert planned.model.checkpoint is not None
    assert planned.model.checkpoint.loras == (LoraSettings(str(two[0])), LoraSettings(str(two[1]), 0.5))
    assert {cell.key for cell in planned.cells}.isdisjoint(cell.key for cell in plan(small(tmp_path)).cells)
    settings = manifest.document(planned, {}, {})["settings"]
    assert settings["model"]["lora"] == ["a.safetensors", {"path": "b.safetensors", "scale": 0.5}]
    assert str(tmp_path) not in json.dumps(settings)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a.safetensors", r"model\.lora is 'a\.safetensors', but it must be a list"),
        ([3], r"model\.lora\[0\] is 3, but it must be a path or"),
        ([{"scale": 1}], r"model\.lora\[0\]"),
        ([{"path": "a", "scal": 1}], r"model\.lora\[0\]"),
        ([{"path": "a", "scale": "much"}], r"model\.lora\[0\]\.scale is 'much'"),
    ],
    ids=str,
)
def test_wrong_lora_settings_are_refused(value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelSettings.of({"name": "x", "path": "y", "lora": value})


def damaged(
    change: Callable[[dict[str, Tensor]], object], spell: Callable[..., dict[str, Tensor]]
) -> dict[str, Tensor]:
    base = tiny_sd.loaded("float32")
    tensors = spell(random_pairs(base, ATTENTION), base)
    change(tensors)
    return tensors


def rename_first(tensors: dict[str, Tensor], old: str, new: str) -> None:
    for name in [name for name in sorted(tensors) if old in name]:
        tensors[name.replace(old, new)] = tensors.pop(name)


@pytest.mark.parametrize(
    ("spell", "change", "message"),
    [
        (new_diffusers, lambda t: t.pop(sorted(t)[0]), "an update needs down and up"),
        (kohya, lambda t: t.pop(next(n for n in t if "lora_up" in n)), "is no LoRA of this kind of model"),
        (kohya, lambda t: t.update({"lora_unet_x.hada_w1_a": torch.ones(2)}), "holds hada"),
        (kohya, lambda t: t.update({"lora_unet_x.dora_scale": torch.ones(2)}), "holds dora_scale"),
        (new_diffusers, lambda t: t.update({"unet.conv_in.lora_B.bias": torch.ones(8)}), "which is no LoRA"),
        (
            new_diffusers,
            lambda t: rename_first(t, "mid_block", "side_block"),
            "which the model does not have",
        ),
        (kohya, lambda t: rename_first(t, "mid_block", "side_block"), "which the model does not have"),
        (new_diffusers, lambda t: t.update({sorted(t)[0]: torch.ones(RANK, 5)}), "is it of another model"),
        (new_diffusers, lambda t: t.clear(), "holds no LoRA"),
    ],
)
def test_updates_that_do_not_fit_are_refused_before_loading(
    spell: Callable[..., dict[str, Tensor]],
    change: Callable[[dict[str, Tensor]], object],
    message: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / "some.safetensors"
    save_file(damaged(change, spell), path)
    with pytest.raises(UserError, match=rf"model\.lora: some\.safetensors.*{message}"):
        describe(ModelSettings("x", str(tiny_sd.folder()), lora=(LoraSettings(str(path)),)))


def test_a_lora_of_another_model_a_damaged_one_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "xl.safetensors"
    base = tiny_xl.loaded("float32")
    save_file(kohya(random_pairs(base, ATTENTION), base), path)
    with pytest.raises(UserError, match=r"model\.lora: xl\.safetensors"):
        describe(ModelSettings("x", str(tiny_sd.folder()), lora=(LoraSettings(str(path)),)))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        describe(ModelSettings("x", str(tiny_sd.folder()), lora=(LoraSettings(str(path)),)))
    with pytest.raises(UserError, match=r"is no \.safetensors file and no folder"):
        describe(ModelSettings("x", str(tiny_sd.folder()), lora=(LoraSettings("/no/such"),)))

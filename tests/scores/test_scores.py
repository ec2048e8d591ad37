"""The stream of images through all scorers, score settings, and the origin of weights."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.tiny_clip import clip_folder, draw, random_image, sweep, write_clip
from torch import Tensor

from sega_bench.cell import Cell, Edit
from sega_bench.errors import UserError
from sega_bench.faces import SCORER_DIR
from sega_bench.faces.tokenizer import make_tokenizer, save_tokenizer, train_merges
from sega_bench.scores import ScoreSettings, build, check
from sega_bench.scores.loading import BACKBONES, load_clip
from sega_bench.scores.locality import LocalityScorer
from sega_bench.scores.scoring import Scorer, edited_only, score
from sega_bench.scores.settings import PERCEPTUAL

CPU = torch.device("cpu")
CELLS = sweep(range(4))
IMAGES = draw(CELLS)
EDITED = {
    "clip_prompt",
    "clip_concept",
    "clip_concept_1",
    "clip_concept_delta",
    "clip_directional",
    "clip_image",
    "success",
    "success_1",
    "lpips",
    "ssim",
    "psnr",
    "mse",
    "changed_fraction",
}


def scorers(tower: str) -> tuple[Scorer, ...]:
    return build(ScoreSettings(clip_model=f"local-dir:{clip_folder(tower)}"), CPU)


class RecordingScorer:
    """Records the batches that it receives; its feature is the first pixel."""

    provenance: Mapping[str, Mapping[str, str]] = {}

    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def features(self, image_BHWC: Tensor) -> tuple[Tensor, ...]:
        self.batches.append(image_BHWC)
        return (image_BHWC[:, 0, 0, 0].double(),)

    def compare(self, cells: Sequence[Cell], edited: Any, reference: Any) -> list[dict[str, float]]:
        return edited_only(cells, own=edited[0], reference=reference[0])


def numbered(cells: Sequence[Cell]) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    """Uniform images, each with its key's number as pixel value."""
    keys = {key for cell in cells for key in (cell.key, cell.reference().key)}
    return {key: np.full((2, 2, 3), number, np.uint8) for number, key in enumerate(sorted(keys), start=1)}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(CELLS), min_size=1), st.integers(1, 7))
def test_each_image_passes_once_and_is_compared_with_its_own_reference(
    cells: list[Cell], batch_size: int
) -> None:
    scorer, images = RecordingScorer(), numbered(CELLS)
    values = score([scorer], cells, images, batch_size)
    for cell, value in zip(cells, values, strict=True):
        pixel = {key: float(image[0, 0, 0]) for key, image in images.items()}
        expected = {"own": pixel[cell.key], "reference": pixel[cell.reference().key]}
        assert value == (expected if cell.edits else {})
    pixels = torch.cat(scorer.batches)[:, 0, 0, 0].tolist()
    numbers = [number for number in pixels if number]  # zeros are padding
    keys = {key for cell in cells for key in (cell.key, cell.reference().key)}
    assert len(numbers) == len(set(numbers)) == len(keys)
    assert {len(image_BHWC) for image_BHWC in scorer.batches} == {batch_size}


def test_a_reference_gets_only_clip_prompt_and_an_edit_all_scores() -> None:
    reference, smile, beard, both = score(scorers("resnet"), CELLS[:4], IMAGES, batch_size=4)
    assert set(reference) == {"clip_prompt"}
    assert set(smile) == set(beard) == EDITED
    assert set(both) == EDITED | {"clip_concept_2", "success_2"}
    assert all(isinstance(value, float) for value in both.values())
    assert all(math.isfinite(value) for name, value in both.items() if not name.startswith("success"))


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_scores_do_not_depend_on_other_cells_or_order(tower: str) -> None:
    loaded = scorers(tower)
    together = dict(zip((cell.key for cell in CELLS), score(loaded, CELLS, IMAGES, 5), strict=True))
    rng = np.random.default_rng(0)
    for _ in range(4):
        some = [CELLS[i] for i in rng.permutation(len(CELLS))[: rng.integers(1, len(CELLS))]]
        assert score(loaded, some, IMAGES, 5) == [together[cell.key] for cell in some]


def test_scores_do_not_depend_on_the_number_of_threads() -> None:
    loaded, before = scorers("resnet"), torch.get_num_threads()
    values = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            values.append(score(loaded, CELLS, IMAGES, 5))
            assert torch.get_num_threads() == threads, "the caller's setting is restored"
    finally:
        torch.set_num_threads(before)
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_another_batch_size_changes_only_rounding(tower: str) -> None:
    loaded = scorers(tower)
    for five, one in zip(score(loaded, CELLS, IMAGES, 5), score(loaded, CELLS, IMAGES, 1), strict=True):
        assert five == pytest.approx(one, abs=1e-4, nan_ok=True)


def test_without_its_reference_a_cell_gets_exactly_the_scores_that_need_none() -> None:
    masks = {cell.key: IMAGES[cell.key][::4, ::4, 0] > 99 for cell in CELLS}
    loaded = (*scorers("vit"), LocalityScorer(masks))
    lost = CELLS[4].key
    cells = [cell for cell in CELLS if cell.key != lost]
    without = {key: image for key, image in IMAGES.items() if key != lost}
    first, second = (score(loaded, cells, {**without, lost: random_image(seed)}, 5) for seed in (1, 99))
    for cell, one, two, own in zip(cells, first, second, score(loaded, cells, without, 5), strict=True):
        if cell.reference().key != lost:
            assert own.keys() == one.keys()
            continue
        same = {name: value for name, value in one.items() if value == two[name]}
        # Success needs the reference, even where both references happen to give the same value.
        assert own == {name: value for name, value in same.items() if not name.startswith("success")}


def test_no_cells_give_no_scores() -> None:
    assert score([RecordingScorer()], [], {}, 4) == []


def test_an_image_equal_to_its_reference_has_no_direction_and_perfect_pixel_scores() -> None:
    cell = CELLS[1]
    images = dict.fromkeys((cell.key, cell.reference().key), random_image(0))
    (values,) = score(scorers("vit"), [cell], images, 4)
    assert math.isnan(values["clip_directional"])
    assert (values["ssim"], values["psnr"], values["mse"], values["changed_fraction"]) == (1, 100, 0, 0)


# Settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "scores.batch_size is 0, but it must be at least 1"),
        ({"perceptual": "alexnet"}, r"scores.perceptual=alexnet is not known; did you mean alex\?"),
        (
            {"clip_model": "ViT-L14"},
            r"scores.clip_model=ViT-L14 is not a model of open_clip; did you mean ViT-L-14",
        ),
        ({"clip_model": "embeded"}, r"did you mean embedded\?"),
        (
            {"clip_model": "ViT-L-14"},
            "needs weights: set scores.clip_pretrained to a .safetensors file or .*openai",
        ),
        (
            {"clip_model": "ViT-L-14", "clip_pretrained": "opnai"},
            r"scores.clip_pretrained=opnai: ViT-L-14 has no such weights; did you mean openai\?",
        ),
        (
            {"clip_model": "ViT-L-14", "clip_pretrained": "/nowhere/clip.safetensors"},
            "scores.clip_pretrained=/nowhere/clip.safetensors: there is no such file",
        ),
        ({"clip_model": "local-dir:/nowhere"}, "there is no /nowhere/open_clip_config.json"),
        (
            {"clip_model": "local-dir:/nowhere", "clip_pretrained": "openai"},
            "leave out scores.clip_pretrained=openai",
        ),
        ({"clip_pretrained": "openai"}, "scores.clip_model=embedded brings its own weights"),
    ],
)
def test_wrong_settings_are_refused_before_anything_loads(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check(ScoreSettings(**wrong))
    assert "\n" not in str(caught.value)


def test_valid_settings_pass(tmp_path: Path) -> None:
    file = tmp_path / "clip.safetensors"
    file.touch()
    for right in (
        {"clip_model": "ViT-L-14", "clip_pretrained": "openai", "perceptual": "alex"},
        {"clip_model": "ViT-B-32", "clip_pretrained": str(file), "perceptual": "none"},
        {"clip_model": f"local-dir:{clip_folder('vit')}"},
    ):
        check(ScoreSettings(**right))


def test_every_perceptual_choice_has_a_scorer() -> None:
    assert set(PERCEPTUAL) == {*BACKBONES, "clip", "none"}


# Weights


def refuse_network(*_: object) -> None:
    raise AssertionError("a connection was attempted")


def test_a_local_folder_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", refuse_network)
    monkeypatch.setattr(socket.socket, "connect", refuse_network)
    assert scorers("vit")


def test_a_folder_with_its_own_tokenizer_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", refuse_network)
    monkeypatch.setattr(socket.socket, "connect", refuse_network)
    folder = write_copy(tmp_path)
    own = make_tokenizer(train_merges(["a smiling face", "a face with a beard"], count=8))
    save_tokenizer(own, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "local"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    loaded = load_clip(ScoreSettings(clip_model=f"local-dir:{folder}"), CPU)
    ids = loaded.tokenizer(["a smiling face"])[0].tolist()
    assert ids[: len(own("a smiling face").input_ids)] == own("a smiling face").input_ids


def test_unavailable_weights_are_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise OSError("the hub\ncannot be reached")

    monkeypatch.setattr("open_clip.factory.download_pretrained", unreachable)
    with pytest.raises(UserError, match=r"scores\.clip_pretrained=/path/to/file\.safetensors") as caught:
        build(ScoreSettings(clip_model="ViT-B-32", clip_pretrained="openai"), CPU)
    assert "the hub cannot be reached" in str(caught.value)


def test_weights_that_open_clip_silently_skips_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: "")
    small = json.loads((clip_folder("vit") / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32-quickgelu", small)
    with pytest.raises(UserError, match="cannot be had"):
        build(ScoreSettings(clip_model="ViT-B-32", clip_pretrained="openai"), CPU)


def write_copy(folder: Path, tower: str = "vit") -> Path:
    return write_clip(folder / "copy", tower, seed=1)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    folder = write_copy(tmp_path)
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_model.bin")
    with pytest.raises(UserError, match=r"no \.safetensors file"):
        check(ScoreSettings(clip_model=f"local-dir:{folder}"))


@pytest.mark.parametrize("broken", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_a_folder_with_a_broken_file_is_refused(tmp_path: Path, broken: str) -> None:
    folder = write_copy(tmp_path)
    (folder / broken).write_text("{")
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        build(ScoreSettings(clip_model=f"local-dir:{folder}"), CPU)
    assert "\n" not in str(caught.value)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    folder = write_copy(tmp_path)
    weights = load_file(folder / "open_clip_model.safetensors")
    weights.pop("visual.proj")
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=r"visual\.proj"):
        build(ScoreSettings(clip_model=f"local-dir:{folder}"), CPU)


def test_an_unsupported_preprocessing_is_refused(tmp_path: Path) -> None:
    folder = write_copy(tmp_path)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["resize_mode"] = "longest"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"preprocessing .* not supported"):
        build(ScoreSettings(clip_model=f"local-dir:{folder}"), CPU)


@pytest.fixture
def known_small(monkeypatch: pytest.MonkeyPatch) -> str:
    """A small model under a name of open_clip whose known weights need different activations."""
    config = json.loads((clip_folder("vit") / "open_clip_config.json").read_text())["model_cfg"]
    for name, quick in (("ViT-B-32", False), ("ViT-B-32-quickgelu", True)):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config | {"quick_gelu": quick})
    return "ViT-B-32"


def test_a_tag_selects_its_activation_and_preprocessing(
    known_small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = str(clip_folder("vit") / "open_clip_model.safetensors")
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: weights)
    loaded = load_clip(ScoreSettings(clip_model=known_small, clip_pretrained="openai"), CPU)
    source = loaded.provenance["clip"]
    assert (source["backbone"], source["pretrained"]) == ("ViT-B-32-quickgelu", "openai")
    assert "mean 0.4815 0.4578 0.4082" in source["preprocessing"]
    activation = loaded.model.visual.transformer.resblocks[0].mlp.gelu
    assert type(activation).__name__ == "QuickGELU"


def test_a_bare_file_warns_that_its_training_is_unknown(
    known_small: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = clip_folder("vit") / "open_clip_model.safetensors"
    loaded = load_clip(ScoreSettings(clip_model=known_small, clip_pretrained=str(file)), CPU)
    assert "local-dir:FOLDER" in caplog.text
    assert loaded.provenance["clip"]["pretrained"] == "open_clip_model.safetensors"
    folder = load_clip(ScoreSettings(clip_model=f"local-dir:{file.parent}"), CPU)
    assert loaded.provenance["clip"]["weights"] == folder.provenance["clip"]["weights"]


def test_provenance_names_backbone_weights_and_preprocessing(tmp_path: Path) -> None:
    families = {name: source for scorer in scorers("vit") for name, source in scorer.provenance.items()}
    assert set(families) == {"clip", "success", "lpips", "ssim", "psnr", "mse", "changed_fraction"}
    assert families["clip"]["backbone"] == "local-dir:vit"
    assert families["lpips"]["name"] == "LPIPS-like on CLIP features"
    other = load_clip(ScoreSettings(clip_model=f"local-dir:{write_copy(tmp_path)}"), CPU).provenance["clip"]
    assert other["weights"] != families["clip"]["weights"]
    assert str(clip_folder("vit").parent) not in json.dumps(families)


@pytest.mark.skipif(not SCORER_DIR.exists(), reason="the face model's scorer is missing")
def test_the_embedded_scorer_gives_all_scores() -> None:
    cell = Cell("a photo of the face of a woman", 0, (Edit("smile"),), height=64, width=64)
    images = {key: random_image(n, 64, 64) for n, key in enumerate((cell.key, cell.reference().key))}
    loaded = build(ScoreSettings(), CPU)
    (values,) = score(loaded, [cell], images, 16)
    assert set(values) == EDITED
    assert all(math.isfinite(value) for name, value in values.items() if not name.startswith("success"))
    assert loaded[1].provenance["clip"]["backbone"] == "embedded"

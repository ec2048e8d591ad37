"""CLIP scores against torchmetrics and by hand; the preprocessing against open_clip's on PIL images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import open_clip
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from support.tiny_clip import CONTEXT, MEAN, SIZE, STD, VISION, clip_folder, draw, sweep
from torch import Tensor
from torchmetrics.functional.multimodal import clip_score
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from sega_bench.cell import Cell, Edit
from sega_bench.scores import ScoreSettings
from sega_bench.scores.clip import (
    ClipScorer,
    Preprocessing,
    TextFeatures,
    cell_scores,
    directional,
    shows_concepts,
    zero_shot_success,
)
from sega_bench.scores.loading import load_clip
from sega_bench.scores.scoring import score

CPU = torch.device("cpu")
CELLS = sweep([0, 1, 2])
IMAGES = draw(CELLS)
TOKENIZER = open_clip.SimpleTokenizer(context_length=CONTEXT)


def scorer(tower: str, perceptual: str = "clip") -> ClipScorer:
    score_settings = ScoreSettings(clip_model=f"local-dir:{clip_folder(tower)}", perceptual=perceptual)
    return load_clip(score_settings, CPU)


# The same weights in transformers' implementation, which torchmetrics uses.

RENAMED = {
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "transformer.resblocks": "text_model.encoder.layers",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
}
INSIDE = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "c_fc": "fc1", "c_proj": "fc2", "attn.": "self_attn."}


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names -> transformers'."""
    result = {}
    for name, value in state.items():
        prefix = next((old for old in RENAMED if name.startswith(old)), "")
        new = RENAMED.get(prefix, "") + name.removeprefix(prefix)
        for old, inside in INSIDE.items():
            new = new.replace(old, inside)
        if "in_proj_" in new:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                result[new.replace("in_proj_", f"{part}_proj.")] = third
        else:
            result[new] = value.T if name in ("visual.proj", "text_projection") else value
    return result


class TransformersClip:
    """transformers' CLIP with tensors as results: torchmetrics cannot use the outputs of transformers 5."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        vision = VISION["vit"]
        shared = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 128, "hidden_act": "gelu"}
        self.config = CLIPConfig(
            text_config={
                **shared,
                "num_hidden_layers": 2,
                "max_position_embeddings": CONTEXT,
                "vocab_size": 49408,
                "eos_token_id": 49407,
            },
            vision_config={
                **shared,
                "num_hidden_layers": vision["layers"],
                "image_size": SIZE,
                "patch_size": vision["patch_size"],
            },
            projection_dim=16,
        )
        self.model = CLIPModel(self.config).eval()
        self.model.load_state_dict(renamed(weights))

    def to(self, device: torch.device) -> TransformersClip:
        return self

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model.get_image_features(pixel_values).pooler_output

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model.get_text_features(input_ids, attention_mask).pooler_output


class TransformersProcessor:
    """transformers' image preprocessing; token ids from the BPE vocabulary that both libraries ship."""

    def __init__(self) -> None:
        square = {"height": SIZE, "width": SIZE}
        self.images = CLIPImageProcessor(
            size={"shortest_edge": SIZE}, crop_size=square, image_mean=MEAN, image_std=STD
        )

    def __call__(self, images: Any = None, text: Any = None, **_: object) -> dict[str, Tensor]:
        if images is not None:
            return dict(self.images(images, return_tensors="pt"))
        token_BT = TOKENIZER(text)
        return {"input_ids": token_BT, "attention_mask": torch.ones_like(token_BT)}


def reference_clip_scores(images: Sequence[np.ndarray[Any, Any]], texts: list[str]) -> list[float]:
    pair = TransformersClip(scorer("vit").model.state_dict()), TransformersProcessor()
    tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    return [clip_score(*inputs, lambda: pair).item() for inputs in zip(tensors, texts, strict=True)]


def test_clip_prompt_agrees_with_torchmetrics() -> None:
    texts = ["a photo of a face", "a red house", "smile", "two dogs on a beach", "beard", "the sea at night"]
    cells = [Cell(text, seed, height=SIZE, width=SIZE) for seed, text in enumerate(texts)]
    images = draw(cells)
    scores = [100 * max(values["clip_prompt"], 0) for values in score([scorer("vit")], cells, images, 4)]
    assert scores == pytest.approx(
        reference_clip_scores([images[cell.key] for cell in cells], texts), abs=1e-4
    )
    assert max(scores) > 1, "all scores are clipped to zero: they prove nothing"


def test_clip_concept_agrees_with_torchmetrics() -> None:
    cells = [cell for cell in CELLS if len(cell.edits) == 1]
    images, concepts = [IMAGES[cell.key] for cell in cells], [cell.edits[0].concept for cell in cells]
    expected = reference_clip_scores(images, concepts)
    for cell, values, clipped in zip(cells, score([scorer("vit")], cells, IMAGES, 4), expected, strict=True):
        sign = -1 if cell.edits[0].reverse_editing_direction else 1
        assert 100 * max(sign * values["clip_concept"], 0) == pytest.approx(clipped, abs=1e-4)
    assert max(expected) > 1


# The formulas in numpy's float64, from the model's own features.


def features_by_hand(model: Any, images: Sequence[np.ndarray[Any, Any]], texts: list[str]) -> tuple[Any, Any]:
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    x_BCHW = torch.stack([transform(Image.fromarray(image)) for image in images])
    with torch.no_grad():
        raw = (
            model.encode_image(x_BCHW),
            model.encode_text(TOKENIZER(texts)),
        )
    image, text = (value.double().numpy() for value in raw)
    unit_image, unit_text = (value / np.linalg.norm(value, axis=1, keepdims=True) for value in (image, text))
    return unit_image, unit_text


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_every_score_equals_its_formula_with_one_concept_reversed(tower: str) -> None:
    cell = CELLS[3]
    assert [edit.reverse_editing_direction for edit in cell.edits] == [False, True]
    loaded = scorer(tower)
    (values,) = score([loaded], [cell], IMAGES, batch_size=5)
    texts = [cell.prompt, "smile", "beard", f"{cell.prompt}, smile", f"{cell.prompt}, beard", ""]
    images = [IMAGES[cell.key], IMAGES[cell.reference().key]]
    (edited, reference), text = features_by_hand(loaded.model, images, texts)
    prompt, smile, beard, with_smile, with_beard, empty = text
    moved = edited - reference
    wanted = ((with_smile - prompt) - (with_beard - prompt)) / 2
    goals = [(smile, True), (beard, False)]
    was, now = (
        [bool(image @ concept > image @ empty) for concept, _ in goals] for image in (reference, edited)
    )
    each = [
        math.nan if a == goal else float(b == goal) for a, b, (_, goal) in zip(was, now, goals, strict=True)
    ]
    expected = {
        "success_1": each[0],
        "success_2": each[1],
        "success": np.nanmean(each) if not np.isnan(each).all() else math.nan,
        "clip_prompt": edited @ prompt,
        "clip_concept": (edited @ smile - edited @ beard) / 2,
        "clip_concept_1": edited @ smile,
        "clip_concept_2": -(edited @ beard),
        "clip_concept_delta": ((edited - reference) @ smile - (edited - reference) @ beard) / 2,
        "clip_directional": moved @ wanted / (np.linalg.norm(moved) * np.linalg.norm(wanted)),
        "clip_image": edited @ reference,
    }
    assert {name: value for name, value in values.items() if name != "lpips"} == pytest.approx(
        expected, abs=1e-5, nan_ok=True
    )


def test_reversing_negates_exactly_the_scores_of_the_concept() -> None:
    cell = Cell("a photo of a face", 0, (Edit("smile"),), height=SIZE, width=SIZE)
    other = replace(cell, edits=(Edit("smile", reverse_editing_direction=True),))
    images = draw([cell]) | {other.key: draw([cell])[cell.key]}
    forward, backward = score([scorer("vit")], [cell, other], images, batch_size=4)
    for name in ("clip_concept", "clip_concept_1", "clip_concept_delta", "clip_directional"):
        assert backward.pop(name) == -forward.pop(name)
    for name in ("success", "success_1"):  # the reference has the concept or not, so one edit is idle
        assert math.isnan(backward.pop(name)) != math.isnan(forward.pop(name))
    assert forward == backward


def test_an_unchanged_image_has_no_direction() -> None:
    cell = CELLS[1]
    images = dict.fromkeys((cell.key, cell.reference().key), IMAGES[cell.key])
    (values,) = score([scorer("resnet")], [cell], images, batch_size=2)
    assert math.isnan(values["clip_directional"])
    assert values["clip_image"] == pytest.approx(1, abs=1e-12)
    assert values["clip_concept_delta"] == 0.0
    assert values["lpips"] == 0.0


def test_success_compares_each_concept_with_the_empty_text() -> None:
    """Embeddings on the axes of the empty text and of two concepts."""
    d = torch.eye(4, dtype=torch.float64)
    text = TextFeatures(d[3], d[[1, 2]], d[[3, 3]], torch.tensor([1.0, -1.0], dtype=torch.float64))
    plain, with_first, with_both = d[0], d[1], (d[1] + d[2]) / 2**0.5
    assert [shows_concepts(image_D, text, d[0]) for image_D in (plain, with_first, with_both)] == [
        [False, False],
        [True, False],
        [True, True],
    ]
    first_added = {"success": 1.0, "success_1": 1.0, "success_2": math.nan}
    assert zero_shot_success(with_first, plain, text, d[0]) == pytest.approx(first_added, nan_ok=True)
    one_of_two = {"success": 0.5, "success_1": 1.0, "success_2": 0.0}
    assert zero_shot_success(with_both, d[2], text, d[0]) == one_of_two
    idle = {"success": math.nan, "success_1": math.nan, "success_2": math.nan}
    assert zero_shot_success(with_first, with_first, text, d[0]) == pytest.approx(idle, nan_ok=True)


def test_concepts_that_cancel_have_no_direction() -> None:
    d = torch.eye(3, dtype=torch.float64)
    both_ways = TextFeatures(d[0], d[[1, 1]], d[[2, 2]], torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert math.isnan(directional(d[0], d[1], both_ways))


def unit(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.lists(st.booleans(), min_size=4, max_size=4))
def test_cosines_are_in_range(seed: int, concepts: int, reversed_: list[bool]) -> None:
    feature_ND = unit(seed, 3 + 2 * concepts, 5)
    sign_K = torch.tensor([-1.0 if flag else 1.0 for flag in reversed_[:concepts]], dtype=torch.float64)
    text = TextFeatures(feature_ND[2], feature_ND[3::2], feature_ND[4::2], sign_K)
    values = cell_scores(feature_ND[0], feature_ND[1], text)
    assert abs(values.pop("clip_concept_delta")) <= 2
    assert all(-1 <= value <= 1 for value in values.values())
    own = [values[f"clip_concept_{k}"] for k in range(1, concepts + 1)]
    assert values["clip_concept"] == pytest.approx(sum(own) / concepts)


# Preprocessing.


def pil_input(config: PreprocessCfg, image: np.ndarray[Any, Any]) -> Tensor:
    return image_transform_v2(config, is_train=False)(Image.fromarray(image))


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "most", "mean"), [(64, 1, 0.02), (224, 1, 0.02), (640, 2, 0.2)])
def test_preprocessing_equals_open_clips_within_levels_of_255(
    name: str, mode: str, interpolation: str, size: int, most: int, mean: float
) -> None:
    photograph = getattr(skimage.data, name)()
    config = PreprocessCfg(
        size=(size, size), resize_mode=mode, interpolation=interpolation, mean=MEAN, std=STD
    )
    ours = Preprocessing((size, size), MEAN, STD, interpolation, mode)(torch.from_numpy(photograph)[None])[0]
    difference = (ours - pil_input(config, photograph)).abs() * torch.tensor(STD)[:, None, None] * 255
    assert difference.max() <= most + 1e-3
    assert difference.mean() < mean


def test_an_image_of_the_right_size_is_only_normalised() -> None:
    config = PreprocessCfg(size=(SIZE, SIZE), mean=MEAN, std=STD)
    image = IMAGES[CELLS[0].key]
    ours = Preprocessing((SIZE, SIZE), MEAN, STD, "bicubic", "shortest")(torch.from_numpy(image)[None])[0]
    assert torch.allclose(ours, pil_input(config, image), atol=1e-6)


def test_preprocessing_describes_itself() -> None:
    text = str(Preprocessing((64, 64), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "shortest"))
    assert text == "bicubic antialias, centre crop 64x64, mean 0.5 0.5 0.5, std 0.5 0.5 0.5"


# Number of passes and of encoded texts.


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_stages_come_from_the_same_pass_as_the_embedding(tower: str) -> None:
    with_stages, without = scorer(tower), scorer(tower, "none")
    image_BHWC = torch.from_numpy(np.stack([IMAGES[cell.key] for cell in CELLS[:4]]))
    with torch.no_grad():
        embedding, *stages = with_stages.features(image_BHWC)
        (alone,) = without.features(image_BHWC)
    assert torch.allclose(embedding, alone, atol=1e-6)
    assert len(stages) == 4
    assert with_stages.stages == ((1, 2, 3, 4) if tower == "resnet" else (0, 2, 3, 5))
    values = score([without], CELLS[:4], IMAGES, batch_size=4)
    assert all("lpips" not in row for row in values)


def test_a_text_is_encoded_once_in_a_scorers_lifetime(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = scorer("vit")
    tokenized: list[str] = []
    tokenize = loaded.tokenizer

    def record(texts: list[str]) -> Tensor:
        tokenized.extend(texts)
        return tokenize(texts)

    monkeypatch.setitem(loaded.__dict__, "tokenizer", record)
    for _ in range(2):
        score([loaded], CELLS, IMAGES, batch_size=4)
    texts = [text for text in tokenized if text]  # the empty ones pad the batch
    prompt = CELLS[0].prompt
    assert sorted(texts) == sorted([prompt, "smile", "beard", f"{prompt}, smile", f"{prompt}, beard"])


def test_a_texts_features_do_not_depend_on_its_batch() -> None:
    texts = [f"text {n}" for n in range(11)]
    alone, together = scorer("vit"), scorer("vit")
    cells = [Cell(text, 0, height=SIZE, width=SIZE) for text in texts]
    images = draw(cells)
    apart = [score([alone], [cell], images, batch_size=4)[0] for cell in cells]
    assert apart == score([together], cells[::-1], images, batch_size=4)[::-1]

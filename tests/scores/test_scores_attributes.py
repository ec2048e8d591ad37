"""Success and leakage by the attribute classifier, on drawings whose attributes are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_sweep import rows, run

from sega_bench.cell import Cell, Edit
from sega_bench.errors import UserError
from sega_bench.faces import captions
from sega_bench.faces.captions import ABSENT, CONCEPTS, PRESENT, claims_of
from sega_bench.faces.drawing import BINARY, Face, face_of_seed, render
from sega_bench.scores import ScoreSettings, build, check
from sega_bench.scores.attributes import CLASSIFIED, attribute_scores, load_attributes
from sega_bench.scores.clip import _texts, shows_concepts
from sega_bench.scores.loading import load_clip
from sega_bench.scores.scoring import Score, Unscored, score

CPU = torch.device("cpu")
PLAIN = Face(woman=True, long_hair=True)


def cell(*concepts: str, reverse: bool = False) -> Cell:
    edits = tuple(Edit(text, reverse_editing_direction=reverse) for text in concepts)
    return Cell("a photo of the face of a woman", 0, edits, height=64, width=64)


def scored(before: Face, after: Face, edited: Cell) -> dict[str, Score]:
    images = {edited.reference().key: render(before), edited.key: render(after)}
    (values,) = score([load_attributes(CPU)], [edited], images, 4)
    return values


def test_an_edit_of_its_target_alone_has_success_and_no_leakage() -> None:
    values = scored(PLAIN, replace(PLAIN, glasses=True), cell("glasses, wearing glasses"))
    assert values == {
        "attribute_success": 1.0,
        "attribute_success_1": 1.0,
        "attribute_leakage": 0.0,
        "attribute_leaked": (),
    }


def test_an_edit_of_other_attributes_has_leakage_and_no_success() -> None:
    values = scored(PLAIN, replace(PLAIN, hat=True, background="pink"), cell("glasses"))
    assert values["attribute_success"] == 0.0
    assert values["attribute_leaked"] == ("hat", "background")
    assert values["attribute_leakage"] == 2 / 8


def test_a_reversed_edit_succeeds_where_the_attribute_vanished() -> None:
    bearded, removal = replace(PLAIN, beard=True), cell("beard", reverse=True)
    assert scored(bearded, PLAIN, removal)["attribute_success"] == 1.0
    assert scored(bearded, bearded, removal)["attribute_success"] == 0.0
    assert math.isnan(scored(PLAIN, PLAIN, removal)["attribute_success"])  # type: ignore[arg-type]


def test_several_concepts_have_a_success_each_and_their_mean() -> None:
    values = scored(
        replace(PLAIN, smile=True),
        replace(PLAIN, smile=True, glasses=True, curls=True),
        cell("smile", "glasses", "hat"),
    )
    assert math.isnan(values["attribute_success_1"])  # type: ignore[arg-type]  # it smiled before
    assert [values[f"attribute_success_{k}"] for k in (2, 3)] == [1.0, 0.0]
    assert values["attribute_success"] == 0.5
    assert values["attribute_leaked"] == ("curls",)
    assert values["attribute_leakage"] == 1 / 6


@pytest.mark.parametrize(
    "text", ["xylophone", "a nice smile", "red hat", "beard, no beard", "", "smile, sun"]
)
def test_a_text_that_is_no_attribute_is_not_scored(text: str) -> None:
    values = scored(PLAIN, replace(PLAIN, hat=True), cell("smile", text))
    assert values == {"attribute_success": Unscored(f"{text!r} is no attribute that the classifier knows")}


def test_a_reference_gets_no_scores() -> None:
    reference = cell()
    assert score([load_attributes(CPU)], [reference], {reference.key: render(PLAIN)}, 4) == [{}]


@given(st.integers(0, 5000), st.lists(st.sampled_from(BINARY), unique=True), st.sampled_from(sorted(PRESENT)))
@settings(max_examples=40, deadline=None)
def test_success_and_leakage_follow_the_flipped_labels(seed: int, flipped: list[str], target: str) -> None:
    """From the labels themselves; tests/faces/test_faces.py shows that the classifier predicts them."""
    before = face_of_seed(5, seed)
    after = replace(before, **{name: not getattr(before, name) for name in flipped})
    values = attribute_scores(cell(PRESENT[target][0]), after.labels(), before.labels())
    assert set(values["attribute_leaked"]) == set(flipped) - {target}  # type: ignore[arg-type]
    assert values["attribute_leakage"] == len(set(flipped) - {target}) / (len(CLASSIFIED) - 1)
    success = values["attribute_success"]
    assert isinstance(success, float)
    assert math.isnan(success) if getattr(before, target) else success == (target in flipped)


@given(st.integers(0, 5000), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_a_bare_caption_has_the_claims_it_was_written_for(index: int, seed: int) -> None:
    caption = captions._bare(face_of_seed(0, index), np.random.default_rng(seed))
    assert claims_of(caption.text) == caption.claims


def test_the_texts_of_the_four_concepts_claim_them() -> None:
    assert {name: claims_of(text) for name, text in CONCEPTS.items()} == {
        name: {name: 1} for name in CONCEPTS
    }
    assert all(claims_of(text) == {name: 0} for name, texts in ABSENT.items() for text in texts)
    assert claims_of(" Smile,GLASSES") == {"smile": 1, "glasses": 1}
    assert claims_of("a photo of a woman") is None


def test_accuracy_of_the_classifier_and_of_zero_shot_clip() -> None:
    """For each concept, the classifier above 98 %, zero-shot CLIP above 70 %."""
    faces = [face_of_seed(77, index) for index in range(200)]
    image_BHWC = torch.from_numpy(np.stack([render(face) for face in faces]))
    clip = load_clip(ScoreSettings(), CPU)
    with torch.inference_mode():
        attribute_BL = load_attributes(CPU).features(image_BHWC)[0]
        image_BD = clip.features(image_BHWC)[0].double()
        one = cell(*CONCEPTS.values())
        clip._encode_texts(["", *_texts(one)])
        text, empty_D = clip._text_features(one), clip._text_D[""]
        is_shown_BK = torch.tensor([shows_concepts(image_D, text, empty_D) for image_D in image_BD])
    for k, name in enumerate(CONCEPTS):
        truth_B = torch.tensor([getattr(face, name) for face in faces])
        assert (attribute_BL[:, CLASSIFIED.index(name)].bool() == truth_B).float().mean() > 0.98
        assert (is_shown_BK[:, k] == truth_B).float().mean() > 0.7


def test_an_image_of_another_size_is_resized_for_the_classifier() -> None:
    edited = replace(cell("glasses"), height=128, width=128)
    large = [
        np.kron(render(face), np.ones((2, 2, 1), np.uint8)) for face in (PLAIN, replace(PLAIN, glasses=True))
    ]
    images = dict(zip((edited.reference().key, edited.key), large, strict=True))
    (values,) = score([load_attributes(CPU)], [edited], images, 4)
    assert (values["attribute_success"], values["attribute_leaked"]) == (1.0, ())


def test_provenance_names_the_classifier_and_another_one_is_refused() -> None:
    (source,) = load_attributes(CPU).provenance.values()
    assert source["weights"].startswith("sha256:")
    assert (
        source["preprocessing"] == "bicubic antialias, squashed to 64x64, mean 0.5 0.5 0.5, std 0.5 0.5 0.5"
    )
    families = {
        name for scorer in build(ScoreSettings(attributes="embedded"), CPU) for name in scorer.provenance
    }
    assert families - {name for scorer in build(ScoreSettings(), CPU) for name in scorer.provenance} == {
        "attribute"
    }
    with pytest.raises(UserError, match=r"scores\.attributes=celeba is no classifier: it is embedded"):
        check(ScoreSettings(attributes="celeba"))


def test_a_sweep_records_the_reason_and_does_not_retry(tmp_path: Path) -> None:
    texts = ("concepts=[glasses,xylophone]", "scores.attributes=embedded")
    run(tmp_path, *texts)
    edited = [row for row in rows(tmp_path).values() if not row["is_reference"]]
    by_concept: Mapping[str, list[dict[str, Any]]] = {
        text: [row for row in edited if row["concepts"] == [text]] for text in ("glasses", "xylophone")
    }
    assert all(isinstance(row["attribute_leaked"], list) for row in by_concept["glasses"])
    assert {row["error"] for row in by_concept["glasses"]} == {None}
    (reason,) = {row["error"] for row in by_concept["xylophone"]}
    assert reason == (
        "not applicable: attribute_success: 'xylophone' is no attribute that the classifier knows"
    )
    assert all("attribute_success" not in row and row["clip_prompt"] for row in by_concept["xylophone"])
    assert run(tmp_path, *texts, "retry_failed=true") == []

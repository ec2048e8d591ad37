"""Success and leakage of an edit, by a classifier of the face model's attributes.

Shape suffixes: B images of a batch, L attributes (the binary ones, then hair colour and background).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sega_bench.cell import Cell, abbreviated
from sega_bench.faces import CLASSIFIER_PATH
from sega_bench.faces.captions import claims_of
from sega_bench.faces.classifier import Classifier, load_classifier, predict
from sega_bench.faces.drawing import LABELS, SIZE

from .clip import Preprocessing
from .loading import weights_id
from .scoring import Features, Score, Unscored
from .success import success

CLASSIFIED = LABELS[:-1]
"""The attributes that the classifier predicts: all but the hat's colour."""
PREPROCESSING = Preprocessing((SIZE, SIZE), (0.5,) * 3, (0.5,) * 3, "bicubic", "squash")
"""Resizes to the classifier's size and scales to [-1, 1]."""


@dataclass(frozen=True)
class AttributeScorer:
    """Scores what an edit did to the attributes of its concepts, and to all others.

    - `attribute_success`: mean of `attribute_success_1..K`, each 1 if the edited image shows the concept (for
      a reversed one: does not show it), else 0, and NaN if the reference did so already.
    - `attribute_leakage`: share of the attributes of no concept that differ from the reference;
      `attribute_leaked` names them.

    A cell with a concept that is no known attribute gets none of these scores: it is unknown which attributes
    the edit should change.

    Args:
        classifier: in float32, on `device`.
    """

    classifier: Classifier
    device: torch.device
    provenance: Mapping[str, Mapping[str, str]]

    def features(self, image_BHWC: Tensor) -> Features:
        """Predicted attributes (B, L) as integers."""
        return (predict(self.classifier, PREPROCESSING(image_BHWC.to(self.device))),)

    def compare(
        self, cells: Sequence[Cell], edited: Features, reference: Features
    ) -> list[Mapping[str, Score]]:
        """Success and leakage of every edited cell."""
        rows = zip(cells, edited[0].tolist(), reference[0].tolist(), strict=False)
        return [
            attribute_scores(cell, after_L, before_L) if cell.edits else {}
            for cell, after_L, before_L in rows
        ]


def attribute_scores(cell: Cell, after_L: Sequence[int], before_L: Sequence[int]) -> Mapping[str, Score]:
    """Success and leakage of an edited cell.

    Args:
        cell: the edited cell.
        after_L: attributes of its image.
        before_L: attributes of its reference's image.
    """
    claims = {edit.concept: claims_of(edit.concept) for edit in cell.edits}
    unknown = [text for text, claimed in claims.items() if claimed is None or not {*claimed} <= {*CLASSIFIED}]
    if unknown:
        reason = f"{', '.join(map(abbreviated, unknown))} is no attribute that the classifier knows"
        return {"attribute_success": Unscored(reason)}
    targets = {name for claimed in claims.values() for name in claimed or ()}
    others = [index for index, name in enumerate(CLASSIFIED) if name not in targets]
    leaked = tuple(CLASSIFIED[index] for index in others if after_L[index] != before_L[index])
    wanted = [not edit.reverse_editing_direction for edit in cell.edits]
    before, after = (
        [_agrees(claims[edit.concept] or {}, attribute_L) for edit in cell.edits]
        for attribute_L in (before_L, after_L)
    )
    return {
        **success("attribute_success", wanted, before, after),
        "attribute_leakage": len(leaked) / len(others) if others else math.nan,
        "attribute_leaked": leaked,
    }


def _agrees(claims: Mapping[str, int], attribute_L: Sequence[int]) -> bool:
    """Whether an image has all attributes that a concept claims."""
    return all(attribute_L[CLASSIFIED.index(name)] == value for name, value in claims.items())


def load_attributes(device: torch.device) -> AttributeScorer:
    """Load the face model's own classifier."""
    classifier = load_classifier(CLASSIFIER_PATH)
    source = {
        "name": "attribute classifier of drawn faces",
        "backbone": "embedded",
        "weights": weights_id(classifier.state_dict()),
        "preprocessing": str(PREPROCESSING),
    }
    return AttributeScorer(classifier.to(device).requires_grad_(False), device, {"attribute": source})

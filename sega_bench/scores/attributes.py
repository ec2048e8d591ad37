"""Success and leakage, judged by a classifier of the face model's attributes.

Shape suffixes: B images of a batch, L attributes: the yes/no ones, then hair colour and background.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sega_bench.cell import Cell, shown
from sega_bench.faces import CLASSIFIER_PATH
from sega_bench.faces.captions import claims_of
from sega_bench.faces.classifier import Classifier, load_classifier, predict
from sega_bench.faces.drawing import LABELS, SIZE

from .clip import Preprocessing
from .loading import weights_id
from .scoring import Features, Score, Unscored
from .success import success

JUDGED = LABELS[:-1]
"""The attributes that the classifier sees; a hat's colour it does not."""
PREPROCESSING = Preprocessing((SIZE, SIZE), (0.5,) * 3, (0.5,) * 3, "bicubic", "squash")
"""To [-1, 1]; pictures of another size than the classifier's are brought to it."""


@dataclass(frozen=True)
class AttributeScorer:
    """What an edit did to the attributes it was asked for, and to those it was not.

    `attribute_success`: of the concepts that the reference did not show yet (a reversed one: still showed),
    the share that the edited picture shows (no longer shows), `attribute_success_1..K` each; NaN if there was
    nothing left to do. `attribute_leakage`: the share of the attributes that no concept of the cell speaks of
    that are others than in the reference; `attribute_leaked` their names. A cell with a concept that means no
    attribute has none of them: what it should have changed is not known.

    Args:
        classifier: in float32, on `device`.
    """

    classifier: Classifier
    device: torch.device
    provenance: Mapping[str, Mapping[str, str]]

    def features(self, image_BHWC: Tensor) -> Features:
        """The attributes (B, L) as integers."""
        return (predict(self.classifier, PREPROCESSING(image_BHWC.to(self.device))),)

    def compare(
        self, cells: Sequence[Cell], edited: Features, reference: Features
    ) -> list[Mapping[str, Score]]:
        """The three scores of every edited cell."""
        rows = zip(cells, edited[0].tolist(), reference[0].tolist(), strict=False)
        return [judge(cell, after_L, before_L) if cell.edits else {} for cell, after_L, before_L in rows]


def judge(cell: Cell, after_L: Sequence[int], before_L: Sequence[int]) -> Mapping[str, Score]:
    """The scores of an edited cell from its picture's attributes and its reference's."""
    claims = {edit.concept: claims_of(edit.concept) for edit in cell.edits}
    unknown = [text for text, claimed in claims.items() if claimed is None or not {*claimed} <= {*JUDGED}]
    if unknown:
        reason = f"{', '.join(map(shown, unknown))} is no attribute that the classifier knows"
        return {"attribute_success": Unscored(reason)}
    asked = {name for claimed in claims.values() for name in claimed or ()}
    others = [place for place, name in enumerate(JUDGED) if name not in asked]
    leaked = tuple(JUDGED[place] for place in others if after_L[place] != before_L[place])
    wanted = [not edit.reverse_editing_direction for edit in cell.edits]
    before, after = (
        [_holds(claims[edit.concept] or {}, seen_L) for edit in cell.edits] for seen_L in (before_L, after_L)
    )
    return {
        **success("attribute_success", wanted, before, after),
        "attribute_leakage": len(leaked) / len(others) if others else math.nan,
        "attribute_leaked": leaked,
    }


def _holds(claims: Mapping[str, int], seen_L: Sequence[int]) -> bool:
    return all(seen_L[JUDGED.index(name)] == value for name, value in claims.items())


def load_attributes(device: torch.device) -> AttributeScorer:
    """The embedded classifier."""
    classifier = load_classifier(CLASSIFIER_PATH)
    source = {
        "name": "attribute classifier of drawn faces",
        "backbone": "embedded",
        "weights": weights_id(classifier.state_dict()),
        "preprocessing": str(PREPROCESSING),
    }
    return AttributeScorer(classifier.to(device).requires_grad_(False), device, {"attribute": source})

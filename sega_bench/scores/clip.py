"""Scores in CLIP's shared space of pictures and texts, through open_clip; all are raw cosines in [-1, 1].

Shape suffixes: B images of a batch, H height, W width, C channels, D embedding, K concepts of a cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sega_bench.cell import Cell

from .perceptual import feature_distance
from .scoring import Features, edited_only
from .success import success

TEXT_BATCH = 8
"""Texts a batch, padded like the images."""
SHOWN = 'cos(image, "{concept}") > cos(image, "")'
"""When a picture shows a concept, zero-shot: it is nearer to it than to the empty text, from which SEGA's own
direction leads to the concept."""
SHORTEST_DIFFERENCE = 1e-6
"""Unit embeddings that are closer differ by rounding alone: there is no direction from one to the other."""


@dataclass(frozen=True)
class Preprocessing:
    """open_clip's evaluation transform, for a whole batch and on its device.

    Within 1 of 255 of the PIL transform when it shrinks, within 2 when it enlarges: it resizes as PIL does,
    first the width, then the height, each rounded to 8 bits.

    Args:
        size: height and width of what the network sees, in pixels.
        mean, std: per channel, of pixels in [0, 1].
        interpolation: `bicubic` or `bilinear`, antialiased.
        resize_mode: `shortest` (the shorter side fits, then the centre is cut out) or `squash`.
        shortest: what the shorter side is brought to before; None is `size` itself.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str
    shortest: int | None = None

    def __call__(self, image_BHWC: Tensor) -> Tensor:
        """uint8 pictures (B, H, W, 3) to the network's float32 input (B, 3, *size)."""
        x_BCHW = image_BHWC.movedim(-1, 1).float()
        height, width = self._resized(*x_BCHW.shape[-2:])
        for size in ((x_BCHW.shape[-2], width), (height, width)):
            if size != x_BCHW.shape[-2:]:
                resized_BCHW = F.interpolate(x_BCHW, size, mode=self.interpolation, antialias=True)
                x_BCHW = resized_BCHW.round().clamp(0, 255)
        top, left = round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)
        x_BCHW = x_BCHW[..., top : top + self.size[0], left : left + self.size[1]] / 255
        mean, std = (x_BCHW.new_tensor(value)[:, None, None] for value in (self.mean, self.std))
        return (x_BCHW - mean) / std

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize_mode == "squash":
            return self.size
        short, side = min(height, width), self.shortest or self.size[0]
        return int(side * height / short), int(side * width / short)

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        fit = "squashed to" if self.resize_mode == "squash" else "centre crop"
        fit = f"shortest side to {self.shortest}, {fit}" if self.shortest else fit
        return f"{self.interpolation} antialias, {fit} {self.size[0]}x{self.size[1]}, mean {mean}, std {std}"


@dataclass(frozen=True)
class TextFeatures:
    """Unit embeddings of one cell's texts, and whether each concept is sought (+1) or avoided (-1)."""

    prompt_D: Tensor
    concept_KD: Tensor
    target_KD: Tensor  # of "prompt, concept"
    sign_K: Tensor


def concept_cosines(image_D: Tensor, text: TextFeatures) -> Tensor:
    """Cosine (K,) of a picture with each concept alone, negated where reversed: more is always better."""
    return text.sign_K * (text.concept_KD @ image_D).clamp(-1, 1)


def shows(image_D: Tensor, text: TextFeatures, empty_D: Tensor) -> list[bool]:
    """Which of the K concepts a picture shows, each set against its absence as :data:`SHOWN` says."""
    shown_K: list[bool] = (text.concept_KD @ image_D > torch.dot(empty_D, image_D)).tolist()
    return shown_K


def zero_shot_success(
    edited_D: Tensor, reference_D: Tensor, text: TextFeatures, empty_D: Tensor
) -> dict[str, float]:
    """`success` and `success_1..K` (:func:`success`) by what both pictures show (:func:`shows`)."""
    if not len(text.sign_K):
        return {}
    wanted: list[bool] = (text.sign_K > 0).tolist()
    before, after = (shows(image_D, text, empty_D) for image_D in (reference_D, edited_D))
    return success("success", wanted, before, after)


def directional(edited_D: Tensor, reference_D: Tensor, text: TextFeatures) -> float:
    """Cosine of how the picture moved with how the text did (StyleGAN-NADA, Gal et al. 2021).

    cos(E(edited) - E(reference), D) where D is the mean over concepts of ±(T("prompt, concept") -
    T(prompt)), negative for a reversed concept, and all embeddings have unit length before they are
    subtracted. NaN where either difference has no length: a picture that did not move has no direction.
    """
    image_D = edited_D - reference_D
    text_D = (text.sign_K[:, None] * (text.target_KD - text.prompt_D)).mean(0)
    if min(image_D.norm(), text_D.norm()) < SHORTEST_DIFFERENCE:
        return math.nan
    return _cosine(_unit(image_D), _unit(text_D))


def cell_scores(edited_D: Tensor, reference_D: Tensor, text: TextFeatures) -> dict[str, float]:
    """All CLIP scores of one cell, from unit embeddings in float64; without concepts `clip_prompt` alone.

    `clip_concept_1..K` are each concept's own, `clip_concept` their mean (reversed concepts negated in both)
    and `clip_concept_delta` its gain over the reference; `clip_image` is the cosine of edited picture and
    reference.
    """
    scores = {"clip_prompt": _cosine(edited_D, text.prompt_D)}
    if not len(text.sign_K):
        return scores
    own_K = concept_cosines(edited_D, text)
    concept = own_K.mean().item()
    return (
        scores
        | {"clip_concept": concept}
        | {f"clip_concept_{k}": value for k, value in enumerate(own_K.tolist(), start=1)}
        | {
            "clip_concept_delta": concept - concept_cosines(reference_D, text).mean().item(),
            "clip_directional": directional(edited_D, reference_D, text),
            "clip_image": _cosine(edited_D, reference_D),
        }
    )


def _cosine(a_D: Tensor, b_D: Tensor) -> float:
    return torch.dot(a_D, b_D).clamp(-1, 1).item()


def _unit(feature: Tensor) -> Tensor:
    """To unit length, in float64 on the CPU."""
    return F.normalize(feature.cpu().double(), dim=-1)


@dataclass(frozen=True)
class ClipScorer:
    """CLIP's scores, and an LPIPS-like distance from the same pass through the image tower.

    Args:
        model: an open_clip model in float32, on `device`.
        tokenizer: texts -> token ids (B, context); longer texts are cut.
        stages: the image tower's blocks whose outputs `lpips` compares; without any it is not scored.
    """

    model: Any
    tokenizer: Any
    preprocessing: Preprocessing
    device: torch.device
    stages: tuple[int, ...]
    provenance: Mapping[str, Mapping[str, str]]
    _known: dict[str, Tensor] = field(default_factory=dict, repr=False)  # embeddings of texts so far

    def features(self, image_BHWC: Tensor) -> Features:
        """The embedding (B, D), then the maps (B, C, H, W) of the stages."""
        x_BCHW = self.preprocessing(image_BHWC.to(self.device))
        if not self.stages:
            return (self.model.encode_image(x_BCHW),)
        output = self.model.visual.forward_intermediates(x_BCHW, indices=list(self.stages))
        return (output["image_features"], *output["image_intermediates"])

    def compare(self, cells: Sequence[Cell], edited: Features, reference: Features) -> list[dict[str, float]]:
        """CLIP scores of every cell, and `lpips` of the edited ones if there are stages."""
        self._encode(["", *(text for cell in cells for text in _texts(cell))])
        pairs = zip(cells, _unit(edited[0]), _unit(reference[0]), strict=False)
        scores = [
            cell_scores(own_D, other_D, text) | zero_shot_success(own_D, other_D, text, self._known[""])
            for cell, own_D, other_D in pairs
            for text in (self._features_of(cell),)
        ]
        if not self.stages:
            return scores
        distances = edited_only(cells, lpips=feature_distance(edited[1:], reference[1:]))
        return [one | other for one, other in zip(scores, distances, strict=True)]

    def _features_of(self, cell: Cell) -> TextFeatures:
        text_ND = torch.stack([self._known[text] for text in _texts(cell)])
        signs = [-1.0 if edit.reverse_editing_direction else 1.0 for edit in cell.edits]
        return TextFeatures(text_ND[0], text_ND[1::2], text_ND[2::2], text_ND.new_tensor(signs))

    def _encode(self, texts: Iterable[str]) -> None:
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        for start in range(0, len(missing), TEXT_BATCH):
            batch = missing[start : start + TEXT_BATCH]
            token_BT = self.tokenizer(batch + [""] * (TEXT_BATCH - len(batch)))
            feature_BD = _unit(self.model.encode_text(token_BT.to(self.device)))
            self._known.update(zip(batch, feature_BD, strict=False))


def _texts(cell: Cell) -> Iterable[str]:
    """The prompt, then of every edit the concept alone and the concept appended to the prompt."""
    yield cell.prompt
    for edit in cell.edits:
        yield edit.concept
        yield f"{cell.prompt}, {edit.concept}"

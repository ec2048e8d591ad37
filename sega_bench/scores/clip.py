"""Scores in CLIP's joint space of images and texts, computed with open_clip; raw cosines in [-1, 1].

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
"""Texts in one batch; like image batches, smaller ones are padded."""
CONCEPT_SHOWN = 'cos(image, "{concept}") > cos(image, "")'
"""Zero-shot criterion for an image that shows a concept. It compares with the empty text because SEGA's
editing direction starts there."""
SHORTEST_DIFFERENCE = 1e-6
"""Unit embeddings that are closer than this differ by rounding alone and define no direction."""


@dataclass(frozen=True)
class Preprocessing:
    """open_clip's evaluation transform, for a whole batch on any device.

    Pixels differ from the PIL transform's by at most 1 of 255 when it shrinks and 2 when it enlarges: it
    resizes in PIL's order, first the width, then the height, and rounds each to 8 bits.

    Args:
        size: height and width of the network's input, in pixels.
        mean, std: per channel, of pixels in [0, 1].
        interpolation: `bicubic` or `bilinear`, antialiased.
        resize_mode: `shortest` (resize the shorter side, then crop the centre) or `squash`.
        shortest: length of the shorter side before the crop, in pixels; None: that of `size`.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str
    shortest: int | None = None

    def __call__(self, image_BHWC: Tensor) -> Tensor:
        """Turn uint8 images (B, H, W, 3) into the network's float32 input (B, 3, *size)."""
        x_BCHW = image_BHWC.movedim(-1, 1).float()
        height, width = self._resized_shape(*x_BCHW.shape[-2:])
        for size in ((x_BCHW.shape[-2], width), (height, width)):
            if size != x_BCHW.shape[-2:]:
                resized_BCHW = F.interpolate(x_BCHW, size, mode=self.interpolation, antialias=True)
                x_BCHW = resized_BCHW.round().clamp(0, 255)  # bicubic overshoots; PIL stores 8 bits
        # Rounded as in torchvision's CenterCrop.
        top, left = round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)
        x_BCHW = x_BCHW[..., top : top + self.size[0], left : left + self.size[1]] / 255
        mean, std = (x_BCHW.new_tensor(value)[:, None, None] for value in (self.mean, self.std))
        return (x_BCHW - mean) / std

    def _resized_shape(self, height: int, width: int) -> tuple[int, int]:
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
    """Unit embeddings of one cell's texts, and the sign of each concept: -1 if reversed, else +1."""

    prompt_D: Tensor
    concept_KD: Tensor
    target_KD: Tensor  # the text "prompt, concept"
    sign_K: Tensor


def concept_cosines(image_D: Tensor, text: TextFeatures) -> Tensor:
    """Cosine (K,) of an image with each concept alone, negated where reversed: higher is always better."""
    return text.sign_K * (text.concept_KD @ image_D).clamp(-1, 1)


def shows_concepts(image_D: Tensor, text: TextFeatures, empty_D: Tensor) -> list[bool]:
    """Whether an image shows each of the K concepts, by :data:`CONCEPT_SHOWN`.

    Args:
        image_D: unit embedding of the image.
        text: the cell's texts.
        empty_D: unit embedding of the empty text.
    """
    is_shown_K: list[bool] = (text.concept_KD @ image_D > torch.dot(empty_D, image_D)).tolist()
    return is_shown_K


def zero_shot_success(
    edited_D: Tensor, reference_D: Tensor, text: TextFeatures, empty_D: Tensor
) -> dict[str, float]:
    """`success` and `success_1..K` (:func:`success`) from both images' concepts (:func:`shows_concepts`)."""
    if not len(text.sign_K):
        return {}
    wanted: list[bool] = (text.sign_K > 0).tolist()
    before, after = (shows_concepts(image_D, text, empty_D) for image_D in (reference_D, edited_D))
    return success("success", wanted, before, after)


def directional(edited_D: Tensor, reference_D: Tensor, text: TextFeatures) -> float:
    """Directional CLIP similarity (StyleGAN-NADA, Gal et al. 2021): cosine of image change and text change.

    cos(E(edited) - E(reference), D), where D is the mean over concepts of ±(T("prompt, concept") -
    T(prompt)), negative for a reversed concept. All embeddings are normalised before they are subtracted.
    NaN where either difference is shorter than :data:`SHORTEST_DIFFERENCE`.
    """
    image_D = edited_D - reference_D
    text_D = (text.sign_K[:, None] * (text.target_KD - text.prompt_D)).mean(0)
    if min(image_D.norm(), text_D.norm()) < SHORTEST_DIFFERENCE:
        return math.nan
    return _cosine(_unit(image_D), _unit(text_D))


def cell_scores(edited_D: Tensor, reference_D: Tensor, text: TextFeatures) -> dict[str, float]:
    """All CLIP scores of one cell, from unit embeddings in float64; without concepts only `clip_prompt`.

    `clip_concept_1..K` belong to one concept each and `clip_concept` is their mean, reversed concepts negated
    in both. `clip_concept_delta` is its gain over the reference. `clip_image` is the cosine of edited image
    and reference.
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
    """Normalised in float64 on the CPU."""
    # float64: differences of nearly equal unit vectors lose most digits in float32.
    return F.normalize(feature.cpu().double(), dim=-1)


@dataclass(frozen=True)
class ClipScorer:
    """Computes CLIP's scores, and an LPIPS-like distance from the same pass through the image tower.

    Args:
        model: an open_clip model in float32, on `device`.
        tokenizer: texts -> token ids (B, context); it truncates longer texts.
        stages: indices of the image tower's blocks whose outputs `lpips` compares; empty: no `lpips`.
    """

    model: Any
    tokenizer: Any
    preprocessing: Preprocessing
    device: torch.device
    stages: tuple[int, ...]
    provenance: Mapping[str, Mapping[str, str]]
    _text_D: dict[str, Tensor] = field(default_factory=dict, repr=False)  # unit embeddings, by text

    def features(self, image_BHWC: Tensor) -> Features:
        """The embeddings (B, D), then the feature maps (B, C, H, W) of the stages."""
        x_BCHW = self.preprocessing(image_BHWC.to(self.device))
        if not self.stages:
            return (self.model.encode_image(x_BCHW),)
        output = self.model.visual.forward_intermediates(x_BCHW, indices=list(self.stages))
        return (output["image_features"], *output["image_intermediates"])

    def compare(self, cells: Sequence[Cell], edited: Features, reference: Features) -> list[dict[str, float]]:
        """CLIP scores of every cell, and `lpips` of the edited ones if there are stages."""
        self._encode_texts(["", *(text for cell in cells for text in _texts(cell))])
        pairs = zip(cells, _unit(edited[0]), _unit(reference[0]), strict=False)
        scores = [self._cell_scores(cell, edited_D, reference_D) for cell, edited_D, reference_D in pairs]
        if not self.stages:
            return scores
        distances = edited_only(cells, lpips=feature_distance(edited[1:], reference[1:]))
        return [clip | distance for clip, distance in zip(scores, distances, strict=True)]

    def _cell_scores(self, cell: Cell, edited_D: Tensor, reference_D: Tensor) -> dict[str, float]:
        text = self._text_features(cell)
        success_scores = zero_shot_success(edited_D, reference_D, text, self._text_D[""])
        return cell_scores(edited_D, reference_D, text) | success_scores

    def _text_features(self, cell: Cell) -> TextFeatures:
        text_ND = torch.stack([self._text_D[text] for text in _texts(cell)])
        signs = [-1.0 if edit.reverse_editing_direction else 1.0 for edit in cell.edits]
        return TextFeatures(text_ND[0], text_ND[1::2], text_ND[2::2], text_ND.new_tensor(signs))

    def _encode_texts(self, texts: Iterable[str]) -> None:
        """Embed the texts that are not in the cache yet."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._text_D]
        for start in range(0, len(missing), TEXT_BATCH):
            batch = missing[start : start + TEXT_BATCH]
            # A fixed batch size keeps a text's rounding independent of the other texts.
            token_BT = self.tokenizer(batch + [""] * (TEXT_BATCH - len(batch)))
            feature_BD = _unit(self.model.encode_text(token_BT.to(self.device)))
            self._text_D.update(zip(batch, feature_BD, strict=False))


def _texts(cell: Cell) -> Iterable[str]:
    """The prompt; then, for every edit, the concept alone and the concept appended to the prompt."""
    yield cell.prompt
    for edit in cell.edits:
        yield edit.concept
        yield f"{cell.prompt}, {edit.concept}"

"""The stream of images through the scorers: every image's features once, then each edit meets its reference.

Shape suffixes: B images of a batch, H height, W width, C channels, D embedding, K concepts of a cell.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sega_bench.cell import Cell
from sega_bench.system.threads import threads

Features = tuple[Tensor, ...]
"""What a scorer computes once for an image: tensors whose first dimension is the batch."""


@dataclass(frozen=True)
class Unscored:
    """In a score's place: it cannot be taken of this cell, however often it is tried, and why."""

    reason: str


Score = float | tuple[str, ...] | Unscored
"""A number (NaN where it is not defined), or names."""


OWN = ("clip_prompt", "clip_concept", "guided_fraction", "nsfw")
"""Scores of a picture alone, and those of its single concepts; all others compare it with its reference."""


class Scorer(Protocol):
    """A family of scores that need the same features of an image."""

    @property
    def provenance(self) -> Mapping[str, Mapping[str, str]]:
        """Where the numbers come from, per family of scores: backbone, weights id, preprocessing."""
        ...

    def features(self, image_BHWC: Tensor) -> Features:
        """Features of uint8 pictures, on the scorer's device. A row must not depend on the other rows."""
        ...

    def compare(
        self, cells: Sequence[Cell], edited: Features, reference: Features
    ) -> Sequence[Mapping[str, Score]]:
        """Scores of every cell from its own features and its reference's.

        The features may have more rows than there are cells: the batch is padded. A cell without edits gets
        only what needs no reference.
        """
        ...


def score(
    scorers: Sequence[Scorer], cells: Sequence[Cell], images: Mapping[str, np.ndarray], batch_size: int
) -> list[dict[str, Score]]:
    """Score cells against their references; scores that do not apply are absent or NaN.

    A cell whose reference has no picture gets only the scores that need none, :data:`OWN`.

    Every distinct image passes through every scorer once, in batches padded to `batch_size`, so that a score
    depends neither on what else is scored nor on the order: on one device it is the same to the last bit.

    Args:
        scorers: see :func:`sega_bench.scores.build`.
        cells: edited cells and references.
        images: key -> uint8 picture (H, W, 3) of every cell, and of its reference if that has one, all of
            one size.
        batch_size: pictures a batch.

    Returns:
        One dict per cell, in the order of `cells`.
    """
    ordered = _references_first(cells, images)
    values: dict[str, dict[str, Score]] = defaultdict(dict)
    with torch.inference_mode(), reproducible():
        for scorer in scorers:
            for batch, scores in _stream(scorer, _batches(ordered, images, batch_size)):
                for cell, scored in zip(batch.cells, scores, strict=True):
                    values[cell.key] |= scored
    return [
        {
            name: value
            for name, value in values[cell.key].items()
            if cell.reference().key in images or _is_own(name)
        }
        for cell in cells
    ]


def _is_own(name: str) -> bool:
    return name in OWN or re.sub(r"_\d+$", "", name) in OWN


def taken(scores: Mapping[str, Score]) -> dict[str, float | tuple[str, ...]]:
    """The scores that there are."""
    return {name: score for name, score in scores.items() if not isinstance(score, Unscored)}


def reasons(scores: Mapping[str, Score]) -> list[str]:
    """Of the others, one line each that says why."""
    return [f"{name}: {score.reason}" for name, score in scores.items() if isinstance(score, Unscored)]


def edited_only(cells: Sequence[Cell], **values_B: Tensor) -> list[dict[str, float]]:
    """Named values, one dict a cell; a cell without edits has nothing to be compared with and gets none."""
    columns = {name: value_B.tolist() for name, value_B in values_B.items()}
    return [
        {name: column[row] for name, column in columns.items()} if cell.edits else {}
        for row, cell in enumerate(cells)
    ]


@contextmanager
def reproducible() -> Iterator[None]:
    """Float32 in full on CUDA, and on the CPU one thread.

    Several threads share out the rows of a matrix product unevenly, and then a row's rounding depends on its
    place in the batch. Small networks are faster so, and large ones belong on a GPU.
    """
    with threads(1), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@dataclass(frozen=True)
class _Batch:
    cells: Sequence[Cell]
    image_BHWC: Tensor  # zeros after the last cell
    reference_B: Tensor  # the row of each row's reference; its own where the reference has no picture
    inherited: int  # so many rows at the beginning have theirs in the batch before instead


def _references_first(cells: Sequence[Cell], images: Mapping[str, np.ndarray]) -> list[Cell]:
    """Each distinct cell once, its reference before it with only cells of that same reference in between."""
    groups: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        reference = cell.reference()
        first = {reference.key: reference} if reference.key in images else {}
        groups.setdefault(reference.key, first)[cell.key] = cell
    return [cell for group in groups.values() for cell in group.values()]


def _batches(ordered: Sequence[Cell], images: Mapping[str, np.ndarray], batch_size: int) -> Iterator[_Batch]:
    for start in range(0, len(ordered), batch_size):
        cells = ordered[start : start + batch_size]
        padding = batch_size - len(cells)
        image_BHWC = torch.from_numpy(np.stack([images[cell.key] for cell in cells]))
        row_of = {cell.key: row for row, cell in enumerate(cells)}
        references = [cell.reference().key for cell in cells]
        rows = [row_of.get(key, None if key in images else row) for row, key in enumerate(references)]
        reference = [row or 0 for row in rows]
        yield _Batch(
            cells=cells,
            image_BHWC=torch.cat([image_BHWC, image_BHWC.new_zeros(padding, *image_BHWC.shape[1:])]),
            reference_B=torch.tensor(reference + reference[-1:] * padding),
            inherited=rows.count(None),
        )


def _stream(
    scorer: Scorer, batches: Iterator[_Batch]
) -> Iterator[tuple[_Batch, Sequence[Mapping[str, Score]]]]:
    """Of the batches before, only the last reference's features are kept: memory does not grow."""
    last_reference: Features = ()
    for batch in batches:
        features = scorer.features(batch.image_BHWC)
        reference = tuple(feature[batch.reference_B] for feature in features)
        for feature, inherited in zip(reference, last_reference, strict=False):
            feature[: batch.inherited] = inherited
        yield batch, scorer.compare(batch.cells, features, reference)
        last_reference = tuple(feature[len(batch.cells) - 1].clone() for feature in reference)

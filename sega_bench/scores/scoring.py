"""Stream images through scorers: compute each image's features once, then compare edits with references.

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
"""A scorer's features of a batch of images: tensors whose first dimension is the batch."""


@dataclass(frozen=True)
class Unscored:
    """Stands in place of a score that does not exist for this cell, so that a retry would not help.

    Args:
        reason: why, for the column ``error``.
    """

    reason: str


Score = float | tuple[str, ...] | Unscored
"""A number (NaN where it is not defined), names, or the reason why there is none."""


REFERENCE_FREE = ("clip_prompt", "clip_concept", "guided_fraction", "nsfw")
"""Scores of an image alone, with those of its single concepts; all others need its reference."""


class Scorer(Protocol):
    """Computes a family of scores that share an image's features."""

    @property
    def provenance(self) -> Mapping[str, Mapping[str, str]]:
        """The origin of the numbers, by family of scores: backbone, weights id, preprocessing."""
        ...

    def features(self, image_BHWC: Tensor) -> Features:
        """Features of uint8 images, on the scorer's device. A row must not depend on the other rows."""
        ...

    def compare(
        self, cells: Sequence[Cell], edited: Features, reference: Features
    ) -> Sequence[Mapping[str, Score]]:
        """Scores of every cell, from its image's features and its reference's.

        The features may have more rows than there are cells, because batches are padded. A cell without edits
        gets only scores that need no reference.
        """
        ...


def score(
    scorers: Sequence[Scorer], cells: Sequence[Cell], images: Mapping[str, np.ndarray], batch_size: int
) -> list[dict[str, Score]]:
    """Score cells against their references; scores that do not apply are absent or NaN.

    A cell whose reference has no image gets only the scores in :data:`REFERENCE_FREE`.

    Every distinct image passes through every scorer once, in batches padded to `batch_size`. So a score
    depends neither on the other cells nor on their order: on one device it is bitwise reproducible.

    Args:
        scorers: from :func:`sega_bench.scores.build`.
        cells: edited cells and references.
        images: key -> uint8 image (H, W, 3) of every cell and, where there is one, of its reference; all of
            one size.
        batch_size: images in a batch.

    Returns:
        One dict per cell, in the order of `cells`.
    """
    ordered = _references_first(cells, images)
    values: dict[str, dict[str, Score]] = defaultdict(dict)
    with torch.inference_mode(), reproducible():
        for scorer in scorers:
            for batch, scores in _stream(scorer, _batches(ordered, images, batch_size)):
                for cell, cell_scores in zip(batch.cells, scores, strict=True):
                    values[cell.key] |= cell_scores
    return [
        {
            name: value
            for name, value in values[cell.key].items()
            if cell.reference().key in images or _is_reference_free(name)
        }
        for cell in cells
    ]


def _is_reference_free(name: str) -> bool:
    return name in REFERENCE_FREE or re.sub(r"_\d+$", "", name) in REFERENCE_FREE


def existing_scores(scores: Mapping[str, Score]) -> dict[str, float | tuple[str, ...]]:
    """The scores without those that are :class:`Unscored`."""
    return {name: score for name, score in scores.items() if not isinstance(score, Unscored)}


def unscored_reasons(scores: Mapping[str, Score]) -> list[str]:
    """One line for each :class:`Unscored` score: its name and the reason."""
    return [f"{name}: {score.reason}" for name, score in scores.items() if isinstance(score, Unscored)]


def edited_only(cells: Sequence[Cell], **values_B: Tensor) -> list[dict[str, float]]:
    """One dict of named values per cell; empty for cells without edits, which are their own reference."""
    columns = {name: value_B.tolist() for name, value_B in values_B.items()}
    return [
        {name: column[row] for name, column in columns.items()} if cell.edits else {}
        for row, cell in enumerate(cells)
    ]


@contextmanager
def reproducible() -> Iterator[None]:
    """Make results independent of the place in the batch: one CPU thread, and no TF32 on CUDA.

    Several CPU threads split the rows of a matrix product unevenly, and a row's rounding then depends on its
    place. One thread is also faster for small networks; large ones belong on a GPU.
    """
    with threads(1), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@dataclass(frozen=True)
class _Batch:
    """Images of consecutive cells and the rows of their references.

    Args:
        cells: one for each row before the padding.
        image_BHWC: zeros after the last cell.
        reference_B: row of each image's reference; the image's own row if the reference has no image.
        inherited: number of rows, at the beginning, whose reference was in the batch before.
    """

    cells: Sequence[Cell]
    image_BHWC: Tensor
    reference_B: Tensor
    inherited: int


def _references_first(cells: Sequence[Cell], images: Mapping[str, np.ndarray]) -> list[Cell]:
    """Each distinct cell once, grouped by reference, each group beginning with the reference itself."""
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
        reference_keys = [cell.reference().key for cell in cells]
        # None: the reference has an image, but in the batch before.
        rows = [row_of.get(key, None if key in images else row) for row, key in enumerate(reference_keys)]
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
    """Score batches in turn. Only the last reference's features are kept for the next batch."""
    last_reference: Features = ()
    for batch in batches:
        features = scorer.features(batch.image_BHWC)
        # Indexing with a tensor copies, so the inherited rows can be overwritten below.
        reference = tuple(feature[batch.reference_B] for feature in features)
        for feature, inherited in zip(reference, last_reference, strict=False):
            feature[: batch.inherited] = inherited
        yield batch, scorer.compare(batch.cells, features, reference)
        # Clone: a view would keep the whole batch's features in memory.
        last_reference = tuple(feature[len(batch.cells) - 1].clone() for feature in reference)

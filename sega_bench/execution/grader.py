"""Scores records against their references; a cell that cannot be scored keeps its image and a note why."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sega_bench.cell import Cell
from sega_bench.errors import error_summary
from sega_bench.execution.resume import NOT_APPLICABLE, NOT_SCORED, REFERENCE_FAILED
from sega_bench.scores.locality import LocalityScorer
from sega_bench.scores.scoring import Score, Scorer, existing_scores, score, unscored_reasons
from sega_bench.store import UNREADABLE, CellImage, Record, Store

SEPARATOR = "; "
"""Separates the notes in a record's ``error``."""

_NO_IMAGE = f"{NOT_SCORED}its image is not there or cannot be read"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grader:
    """Scores cells that have an image.

    Args:
        store: reads references that are not in memory.
        scorers: see :func:`sega_bench.scores.build`.
        batch_size: images per scorer batch.
    """

    store: Store
    scorers: Sequence[Scorer]
    batch_size: int

    def references(self, cells: Iterable[Cell], in_memory: Mapping[str, CellImage]) -> dict[str, CellImage]:
        """The reference images of cells by key, from memory or the store; failed references are left out."""
        keys = dict.fromkeys(cell.reference().key for cell in cells)
        images = {key: in_memory[key] if key in in_memory else self.read(key) for key in keys}
        return {key: image for key, image in images.items() if image is not None}

    def read(self, name: str) -> CellImage | None:
        """A stored image by its key or path; None if it is missing or damaged."""
        try:
            return self.store.read_cell_image(name)
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            log.warning("the image of cell %s cannot be read: %s", name, error_summary(error))
            return None

    def grade(
        self, records: Sequence[Record], images: Mapping[str, CellImage], references: Mapping[str, CellImage]
    ) -> list[Record]:
        """Add scores to records, and to ``error`` a note on the scores that are missing.

        Args:
            records: without scores; the ``error`` of a cell that did not fail follows the new notes.
            images: by key, of the cells that have one.
            references: by key, as far as they exist.
        """
        cells = [record.cell for record in records if record.cell.key in images]
        known = {**references, **images}
        scores: dict[str, dict[str, Score]] = {cell.key: {} for cell in cells}
        notes: dict[str, str] = {}
        for scorer in (*self.scorers, LocalityScorer(_guided_masks(known))):
            for cell, values, error in self._run_scorer(scorer, cells, known):
                scores[cell.key] |= values
                if error is not None:
                    notes.setdefault(cell.key, f"{NOT_SCORED}{', '.join(scorer.provenance)}: {error}")
        if notes:
            first = next(iter(notes.values()))
            log.warning("%d of %d cells %s; retry_failed=true tries again", len(notes), len(cells), first)
        # Not counted in the warning: a missing image and a failed reference are reported by themselves.
        for cell in (record.cell for record in records):
            if cell.key not in images:
                notes[cell.key] = _NO_IMAGE
            elif cell.reference().key not in known:
                notes[cell.key] = REFERENCE_FAILED
        return [_with_scores(r, scores.get(r.cell.key, {}), notes.get(r.cell.key)) for r in records]

    def _run_scorer(
        self, scorer: Scorer, cells: Sequence[Cell], images: Mapping[str, CellImage]
    ) -> Iterator[tuple[Cell, Mapping[str, Score], str | None]]:
        """One scorer's values per cell. Cells that raise are bisected until each failing one is alone."""
        arrays = {key: image.image_HWC for key, image in images.items()}
        try:
            values = score((scorer,), cells, arrays, self.batch_size) if cells else []
        except Exception as error:
            if len(cells) == 1:
                yield cells[0], {}, error_summary(error)
                return
            middle = len(cells) // 2
            yield from self._run_scorer(scorer, cells[:middle], images)
            yield from self._run_scorer(scorer, cells[middle:], images)
        else:
            yield from zip(cells, values, itertools.repeat(None), strict=False)


def _guided_masks(images: Mapping[str, CellImage]) -> dict[str, NDArray[np.bool_]]:
    return {key: image.is_guided_HW for key, image in images.items() if image.is_guided_HW is not None}


def _with_scores(record: Record, scores: Mapping[str, Score], note: str | None) -> Record:
    """A record with its scores and with the notes on them before its other notes."""
    if record.status == "failed":
        return record
    notes = [note, *(NOT_APPLICABLE + reason for reason in unscored_reasons(scores))]
    parts = [note.replace(SEPARATOR, ", ") for note in notes if note]  # other_notes() splits at the separator
    error = SEPARATOR.join([*parts, *filter(None, [record.error])]) or None
    return replace(record, scores=existing_scores(scores), error=error)


def other_notes(error: str | None) -> str | None:
    """The notes in a done record's ``error`` that are not about its scores."""
    notes = (error or "").split(SEPARATOR)
    return SEPARATOR.join(n for n in notes if not n.startswith((NOT_SCORED, NOT_APPLICABLE))) or None

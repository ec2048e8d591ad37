"""Records and pictures through the scorers; what cannot be scored keeps everything else, and says why."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sega_bench.cell import Cell
from sega_bench.errors import named
from sega_bench.execution.resume import NOT_APPLICABLE, NOT_SCORED, REFERENCE_FAILED
from sega_bench.scores.locality import LocalityScorer
from sega_bench.scores.scoring import Score, Scorer, reasons, score, taken
from sega_bench.store import UNREADABLE, Picture, Record, Store

SEPARATOR = "; "
"""Between the notes in ``error``."""

_NO_IMAGE = f"{NOT_SCORED}its image is not there or cannot be read"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grader:
    """Scores cells whose pictures are made.

    Args:
        store: where references are looked for.
        scorers: the networks.
        batch_size: pictures that go through one of them together.
    """

    store: Store
    scorers: Sequence[Scorer]
    batch_size: int

    def references(self, cells: Iterable[Cell], at_hand: Mapping[str, Picture]) -> dict[str, Picture]:
        """The references' pictures by their keys, from memory or the disk; without those that failed."""
        keys = dict.fromkeys(cell.reference().key for cell in cells)
        found = {key: at_hand[key] if key in at_hand else self.read(key) for key in keys}
        return {key: picture for key, picture in found.items() if picture is not None}

    def read(self, name: str) -> Picture | None:
        """A stored picture by its key or path; None if it is not there or cannot be read."""
        try:
            return self.store.read_picture(name)
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            log.warning("the image of cell %s cannot be read: %s", name, named(error))
            return None

    def grade(
        self, records: Sequence[Record], pictures: Mapping[str, Picture], references: Mapping[str, Picture]
    ) -> list[Record]:
        """The records with scores, and in ``error`` what a reader must know of those that they lack.

        Args:
            records: without scores; what ``error`` says of a cell that did not fail stays behind it.
            pictures: of those that have one, by key.
            references: of their references, as far as there are any.
        """
        cells = [record.cell for record in records if record.cell.key in pictures]
        known = {**references, **pictures}
        scores: dict[str, dict[str, Score]] = {cell.key: {} for cell in cells}
        lacking: dict[str, str] = {}
        for scorer in (*self.scorers, LocalityScorer(_guided(known))):
            for cell, values, error in self._take(scorer, cells, known):
                scores[cell.key] |= values
                if error is not None:
                    lacking.setdefault(cell.key, f"{NOT_SCORED}{', '.join(scorer.provenance)}: {error}")
        if lacking:
            first = next(iter(lacking.values()))
            log.warning("%d of %d cells %s; retry_failed=true tries again", len(lacking), len(cells), first)
        for cell in (record.cell for record in records):
            if cell.key not in pictures:
                lacking[cell.key] = _NO_IMAGE
            elif cell.reference().key not in known:
                lacking[cell.key] = REFERENCE_FAILED
        return [_graded(r, scores.get(r.cell.key, {}), lacking.get(r.cell.key)) for r in records]

    def _take(
        self, scorer: Scorer, cells: Sequence[Cell], pictures: Mapping[str, Picture]
    ) -> Iterator[tuple[Cell, Mapping[str, Score], str | None]]:
        """One scorer's scores. What raises is halved until the one cell that does is alone, without them."""
        images = {key: picture.image_HWC for key, picture in pictures.items()}
        try:
            values = score((scorer,), cells, images, self.batch_size) if cells else []
        except Exception as error:
            if len(cells) == 1:
                yield cells[0], {}, named(error)
                return
            middle = len(cells) // 2
            yield from self._take(scorer, cells[:middle], pictures)
            yield from self._take(scorer, cells[middle:], pictures)
        else:
            yield from zip(cells, values, itertools.repeat(None), strict=False)


def _guided(pictures: Mapping[str, Picture]) -> dict[str, NDArray[np.bool_]]:
    return {key: p.is_guided_HW for key, p in pictures.items() if p.is_guided_HW is not None}


def _graded(record: Record, scores: Mapping[str, Score], lacking: str | None) -> Record:
    if record.status == "failed":
        return record
    notes = [lacking, *(NOT_APPLICABLE + reason for reason in reasons(scores))]
    said = [note.replace(SEPARATOR, ", ") for note in notes if note]
    return replace(
        record, scores=taken(scores), error=SEPARATOR.join([*said, *filter(None, [record.error])]) or None
    )


def remarks(error: str | None) -> str | None:
    """What of a finished record's ``error`` does not speak of its scores."""
    notes = (error or "").split(SEPARATOR)
    kept = [note for note in notes if not note.startswith((NOT_SCORED, NOT_APPLICABLE))]
    return SEPARATOR.join(kept) or None

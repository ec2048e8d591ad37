"""Waves through the engine and the scorers, onto the disk."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sega_bench.cell import Cell
from sega_bench.config import Config
from sega_bench.resume import NOT_APPLICABLE, NOT_SCORED, REFERENCE_FAILED
from sega_bench.scores.scoring import Score, Scorer, reasons, score, taken
from sega_bench.sega.batching import Batching
from sega_bench.sega.denoiser import Denoiser
from sega_bench.sega.schedule import Wave, wave_of
from sega_bench.sega.steps import image_owner
from sega_bench.sega.wave import Outcome, count_timesteps, run_wave
from sega_bench.store import Record, Store

Image = npt.NDArray[np.uint8]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Maker:
    """Makes and scores cells; what it yields is on disk.

    Args:
        store: where it goes.
        denoiser, scorers: the networks.
        config: for ``fail_fast`` and the scorers' batch size.
        batching: sizes of the engine's batches, which it halves when memory runs out.
        worker, device, versions: what every record says.
        on_evaluations: called with the number of UNet evaluations just made.
    """

    store: Store
    denoiser: Denoiser
    scorers: Sequence[Scorer]
    config: Config
    batching: Batching
    worker: str
    device: str
    versions: str
    on_evaluations: Callable[[int], None]

    def make(self, waves: Iterable[Wave], unscored: Sequence[Record] = ()) -> Iterator[Record]:
        """Make waves, then score what is on disk already; with ``fail_fast`` only until a cell has failed.

        Args:
            waves: of cells to be made.
            unscored: records, still without scores, of cells that have their image.

        Raises:
            UserError: there is no space for more; what was written is kept.
        """
        if not (yield from self._make(waves)):
            yield from self._score_stored(unscored)

    def _make(self, waves: Iterable[Wave]) -> Generator[Record, None, bool]:
        """Records in the order in which they reach the disk, one wave behind the engine.

        Returns:
            Whether a failure stopped it.
        """
        recent: dict[str, Image] = {}
        is_stopped = False
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer") as writer:
            pending: Future[list[Record]] | None = None
            for wave in waves:
                start = time.perf_counter()
                outcomes = list(self._run(wave))
                made, recent = self._score(outcomes, recent)
                made = _share_time(made, time.perf_counter() - start)
                following = writer.submit(self._commit, made, {o.cell.key: o.image_HWC for o in outcomes})
                if pending is not None:
                    yield from pending.result()
                pending = following
                if is_stopped := self._stops(made):
                    break
            if pending is not None:
                yield from pending.result()
        return is_stopped

    def _stops(self, records: Iterable[Record]) -> bool:
        failed = next((record for record in records if record.status == "failed"), None)
        if failed is None or not self.config.fail_fast:
            return False
        log.warning("fail_fast: stopped, since cell %s failed: %s", failed.cell.key, failed.error)
        return True

    def _run(self, wave: Wave) -> Iterator[Outcome]:
        """A wave's outcomes. What raises is halved until the one cell that does is alone, and failed."""
        try:
            yield from run_wave(self.denoiser, wave, self.batching, self.on_evaluations)
        except Exception as error:
            if self.config.fail_fast:
                raise
            cells = wave.cells
            log.warning("a wave of %d cells raised %s", len(cells), _named(error))
            if len(cells) == 1:
                yield Outcome(cells[0], None, 0, _named(error))
                return
            for half in _halves(wave):
                yield from self._run(half)

    def _score(
        self, outcomes: Sequence[Outcome], recent: Mapping[str, Image]
    ) -> tuple[list[Record], dict[str, Image]]:
        """Records with scores, paths still to come, and the references that the next wave may need."""
        images = {o.cell.key: o.image_HWC for o in outcomes if o.image_HWC is not None}
        references = self._references((o.cell for o in outcomes), {**recent, **images})
        records = [self._record(outcome) for outcome in outcomes]
        return self._scored(records, images, references), references

    def _references(self, cells: Iterable[Cell], at_hand: Mapping[str, Image]) -> dict[str, Image]:
        """The references' images by their keys, from memory or the disk; without those that failed."""
        keys = dict.fromkeys(cell.reference().key for cell in cells)
        found = {key: at_hand[key] if key in at_hand else self._stored(key) for key in keys}
        return {key: image for key, image in found.items() if image is not None}

    def _stored(self, name: str) -> Image | None:
        """A stored image by its key or path; None if it is not there or cannot be read."""
        try:
            return self.store.read_image(name)
        except FileNotFoundError:
            return None
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow makes of a damaged file
            log.warning("the image of cell %s cannot be read: %s", name, _named(error))
            return None

    def _record(self, outcome: Outcome) -> Record:
        return Record(
            cell=outcome.cell,
            status="done" if outcome.image_HWC is not None else "failed",
            error=outcome.error,
            unet_evals=outcome.unet_evals,
            worker=self.worker,
            device=self.device,
            versions=self.versions,
        )

    def _scored(
        self, records: Sequence[Record], images: Mapping[str, Image], references: Mapping[str, Image]
    ) -> list[Record]:
        """The records with the scores of those that have an image, and what a reader must know of them."""
        cells = [r.cell for r in records if r.cell.key in images and r.cell.reference().key in references]
        scores: dict[str, dict[str, Score]] = {cell.key: {} for cell in cells}
        lacking: dict[str, str] = {}
        for scorer in self.scorers:
            for cell, values, error in self._take(scorer, cells, {**references, **images}):
                scores[cell.key] |= values
                if error is not None:
                    lacking.setdefault(cell.key, f"{NOT_SCORED}{', '.join(scorer.provenance)}: {error}")
        if lacking:
            first = next(iter(lacking.values()))
            log.warning("%d of %d cells %s; retry_failed=true tries again", len(lacking), len(cells), first)
        lacking |= {record.cell.key: REFERENCE_FAILED for record in records if record.cell.key not in scores}
        return [
            replace(
                record,
                scores=taken(values),
                error=record.error or self._note(record.cell, values, lacking.get(record.cell.key)),
            )
            for record in records
            for values in (scores.get(record.cell.key, {}),)
        ]

    def _take(
        self, scorer: Scorer, cells: Sequence[Cell], images: Mapping[str, Image]
    ) -> Iterator[tuple[Cell, Mapping[str, Score], str | None]]:
        """One scorer's scores. What raises is halved until the one cell that does is alone, without them."""
        try:
            values = score((scorer,), cells, images, self.config.scores.batch_size) if cells else []
        except Exception as error:
            if len(cells) == 1:
                yield cells[0], {}, _named(error)
                return
            middle = len(cells) // 2
            yield from self._take(scorer, cells[:middle], images)
            yield from self._take(scorer, cells[middle:], images)
        else:
            yield from zip(cells, values, itertools.repeat(None), strict=False)

    def _note(self, cell: Cell, scores: Mapping[str, Score], lacking: str | None) -> str | None:
        """What a reader of a finished cell must know: scores it lacks or cannot have, texts that were cut."""
        never = [f"{NOT_APPLICABLE}{reason}" for reason in reasons(scores)]
        cut = [self.denoiser.truncation(text) for text in dict.fromkeys(cell.texts)]
        return "; ".join(note for note in (lacking, *never, *cut) if note) or None

    def _commit(self, records: Sequence[Record], images: Mapping[str, Image | None]) -> list[Record]:
        """Images first, then the records that speak of them. Runs on the writer's thread."""
        files: dict[str, tuple[str, str]] = {}
        written: list[Record] = []
        try:
            for record in records:
                written.append(self._write(record, images[record.cell.key], files))
        finally:  # of a wave that does not fit on the disk, what does is kept
            self.store.append(self.worker, written)
        return written

    def _write(self, record: Record, image: Image | None, files: dict[str, tuple[str, str]]) -> Record:
        if image is None:
            return record
        owner = image_owner(record.cell, count_timesteps(record.cell))  # cells that are equal share a file
        if owner.key not in files:
            files[owner.key] = self.store.write_image(owner, image)
        name, digest = files[owner.key]
        return replace(record, image=name, image_sha256=digest)

    def _score_stored(self, unscored: Sequence[Record]) -> Iterator[Record]:
        """Score images that are on disk already; none is made or written again."""
        sizes: dict[tuple[int, int], list[Record]] = {}
        for record in unscored:
            sizes.setdefault((record.cell.height, record.cell.width), []).append(record)
        for records in sizes.values():
            for start in range(0, len(records), self.batching.wave_rows):
                chunk = records[start : start + self.batching.wave_rows]
                found = {record.cell.key: self._stored(str(record.image)) for record in chunk}
                images = {key: image for key, image in found.items() if image is not None}
                references = self._references((record.cell for record in chunk), images)
                scored = self._scored(chunk, images, references)
                self.store.append(self.worker, scored)
                yield from scored


def _share_time(records: Sequence[Record], seconds: float) -> list[Record]:
    """A wave's wall time, shared by evaluations, so that the column sums to what was spent."""
    total = sum(record.unet_evals for record in records)
    if total == 0:
        return [replace(record, seconds=seconds / len(records)) for record in records]
    return [replace(record, seconds=seconds * record.unet_evals / total) for record in records]


def _halves(wave: Wave) -> tuple[Wave, Wave]:
    """A wave of at least two cells as two, by trunks while there are several, then by cells."""
    groups = [trunk.cells for trunk in wave.trunks if trunk.cells]
    if len(groups) == 1:
        groups = [(cell,) for cell in groups[0]]
    middle = len(groups) // 2
    first, second = itertools.chain(*groups[:middle]), itertools.chain(*groups[middle:])
    return wave_of(tuple(first), wave.n), wave_of(tuple(second), wave.n)


def _named(error: BaseException) -> str:
    """An exception's type and the first line of what it says."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"

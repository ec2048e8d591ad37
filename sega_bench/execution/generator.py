"""Generates images from waves of cells, scores them, and writes images and records to the store."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from sega_bench.cell import Cell
from sega_bench.config import Config
from sega_bench.errors import error_summary
from sega_bench.execution.grader import SEPARATOR, Grader
from sega_bench.sega.batching import Batching
from sega_bench.sega.denoiser import Denoiser
from sega_bench.sega.schedule import Wave, wave_of
from sega_bench.sega.steps import image_owner
from sega_bench.sega.wave import Outcome, count_timesteps, run_waves
from sega_bench.store import CellImage, Record, Store

log = logging.getLogger(__name__)

WRITERS = 4
"""Threads that encode PNG files and wait for the disk; a few suffice to hide both behind the scorers."""

_Files = dict[str, Future[tuple[str, str]]]
"""Image files being written, by their owner's key; each resolves to its path and its SHA-256."""


@dataclass(frozen=True)
class ImageGenerator:
    """Generates and scores cells. A record is yielded once it and its image are on disk.

    Args:
        store: the sweep's folder.
        denoiser: the diffusion model.
        grader: scores the images.
        config: for ``fail_fast``.
        batching: sizes of the engine's batches, which it halves when memory runs out.
        worker, device, versions: columns that are the same in every record.
        on_evaluations: called with the number of UNet evaluations since its last call.
    """

    store: Store
    denoiser: Denoiser
    grader: Grader
    config: Config
    batching: Batching
    worker: str
    device: str
    versions: str
    on_evaluations: Callable[[int], None]

    def generate(
        self,
        waves: Sequence[Wave],
        unscored: Sequence[Record] = (),
        is_preempted: Callable[[], bool] = lambda: False,
    ) -> Iterator[Record]:
        """Generate waves, then score stored images; with ``fail_fast`` only until a cell fails.

        Args:
            waves: of the cells to generate.
            unscored: records, without scores, of cells whose image is stored.
            is_preempted: called after all records of a wave were yielded; whether to stop there.

        Raises:
            UserError: the disk is full or cannot be written; everything written before is kept.
        """
        if not (yield from self._generate_waves(waves, is_preempted)):
            yield from self._score_stored(unscored, is_preempted)

    def _generate_waves(
        self, waves: Sequence[Wave], is_preempted: Callable[[], bool]
    ) -> Generator[Record, None, bool]:
        """Generate waves one after the other; a wave's records are on disk before the next wave goes on.

        A kill therefore loses only the waves in flight: the oldest one, and what younger ones have computed
        in its gaps. Images are encoded while their wave is scored. At most one wave's images wait in memory
        for a slow disk.

        Returns:
            Whether generation stopped early, after a failure or a preemption.
        """
        recent: dict[str, CellImage] = {}
        # Threads suffice: zlib and fsync release the GIL.
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="writer") as writers:
            start = time.perf_counter()
            for outcomes in self._run(waves):
                files = self._write_images(outcomes, writers)
                records, recent = self._score(outcomes, recent)
                now = time.perf_counter()
                records, start = _share_time(records, now - start), now
                # On a writer's thread, so that a KeyboardInterrupt cannot separate images from their records.
                yield from writers.submit(self._commit, records, files).result()
                if self._fails_fast(records) or is_preempted():
                    return True
        return False

    def _fails_fast(self, records: Iterable[Record]) -> bool:
        failed = next((record for record in records if record.status == "failed"), None)
        if failed is None or not self.config.fail_fast:
            return False
        log.warning("fail_fast: stopped, since cell %s failed: %s", failed.cell.key, failed.error)
        return True

    def _run(self, waves: Sequence[Wave]) -> Iterator[list[Outcome]]:
        """Run waves through the engine. A wave that raises is bisected until each failing cell is alone."""
        results = run_waves(self.denoiser, waves, self.batching, self.on_evaluations)
        for wave, result in zip(waves, results, strict=True):
            yield self._bisect(wave, result) if isinstance(result, Exception) else result

    def _bisect(self, wave: Wave, error: Exception) -> list[Outcome]:
        """Run the halves of a wave that raised; a wave of one cell has failed."""
        if self.config.fail_fast:
            raise error
        cells = wave.cells
        # Usually one cell is to blame: about log2(n) halvings isolate it, and the others succeed.
        log.warning("a wave of %d cells raised %s", len(cells), error_summary(error))
        if len(cells) == 1:
            return [Outcome(cells[0], None, 0, error_summary(error))]
        return [outcome for half in _halves(wave) for outcomes in self._run([half]) for outcome in outcomes]

    def _score(
        self, outcomes: Sequence[Outcome], recent: Mapping[str, CellImage]
    ) -> tuple[list[Record], dict[str, CellImage]]:
        """Score one wave.

        Args:
            outcomes: of the wave.
            recent: the reference images of the wave before, since trunks that were split share a reference.

        Returns:
            Records with scores and without image paths, and the wave's reference images.
        """
        images = _images(outcomes)
        references = self.grader.references((o.cell for o in outcomes), {**recent, **images})
        records = [self._record(outcome) for outcome in outcomes]
        return self.grader.grade(records, images, references), references

    def _record(self, outcome: Outcome) -> Record:
        return Record(
            cell=outcome.cell,
            status="done" if outcome.image_HWC is not None else "failed",
            error=outcome.error or self._truncation_note(outcome.cell),
            unet_evals=outcome.unet_evals,
            worker=self.worker,
            device=self.device,
            versions=self.versions,
        )

    def _truncation_note(self, cell: Cell) -> str | None:
        """Which of the cell's texts are longer than the text encoder reads; None if none is."""
        notes = [self.denoiser.truncation(text) for text in dict.fromkeys(cell.texts)]
        return SEPARATOR.join(note for note in notes if note) or None

    def _write_images(self, outcomes: Iterable[Outcome], writers: Executor) -> _Files:
        """Start writing the images. Cells whose images are equal by construction share a file."""
        files: _Files = {}
        for cell, image in ((o.cell, _image(o)) for o in outcomes):
            owner = _owner(cell)
            if image is not None and owner.key not in files:
                files[owner.key] = writers.submit(self.store.write_cell_image, owner, image)
        return files

    def _commit(self, records: Sequence[Record], files: _Files) -> list[Record]:
        """Append the records once their images are on disk; returns them with the images' paths.

        When the disk is full, the records whose images were written are kept before the error is raised.
        """
        wait(files.values())
        written = {key: file.result() for key, file in files.items() if file.exception() is None}
        committed = [
            _with_path(record, written)
            for record in records
            if record.status == "failed" or _owner(record.cell).key in written
        ]
        self.store.append(self.worker, committed)
        for file in files.values():
            file.result()  # raises the first image's error
        return committed

    def _score_stored(self, unscored: Sequence[Record], is_preempted: Callable[[], bool]) -> Iterator[Record]:
        """Score stored images, a wave's worth at a time."""
        by_size: dict[tuple[int, int], list[Record]] = {}  # scorers take images of one size
        for record in unscored:
            by_size.setdefault((record.cell.height, record.cell.width), []).append(record)
        for records in by_size.values():
            for start in range(0, len(records), self.batching.wave_rows):
                scored = self._score_records(records[start : start + self.batching.wave_rows])
                self.store.append(self.worker, scored)
                yield from scored
                if is_preempted():
                    return

    def _score_records(self, records: Sequence[Record]) -> list[Record]:
        stored = {record.cell.key: self.grader.read(str(record.image)) for record in records}
        images = {key: image for key, image in stored.items() if image is not None}
        references = self.grader.references((record.cell for record in records), images)
        noted = [replace(record, error=self._truncation_note(record.cell)) for record in records]
        return self.grader.grade(noted, images, references)


def _image(outcome: Outcome) -> CellImage | None:
    return None if outcome.image_HWC is None else CellImage(outcome.image_HWC, outcome.is_guided_HW)


def _images(outcomes: Iterable[Outcome]) -> dict[str, CellImage]:
    images = {outcome.cell.key: _image(outcome) for outcome in outcomes}
    return {key: image for key, image in images.items() if image is not None}


def _owner(cell: Cell) -> Cell:
    """The cell under whose key a cell's image is stored."""
    return image_owner(cell, count_timesteps(cell))


def _with_path(record: Record, files: Mapping[str, tuple[str, str]]) -> Record:
    """A record with its image's path and hash, unless it failed."""
    if record.status == "failed":
        return record
    path, digest = files[_owner(record.cell).key]
    return replace(record, image=path, image_sha256=digest)


def _share_time(records: Sequence[Record], seconds: float) -> list[Record]:
    """Divide a wave's wall time in proportion to UNet evaluations, so that the column sums to the total."""
    total = sum(record.unet_evals for record in records)
    if total == 0:
        return [replace(record, seconds=seconds / len(records)) for record in records]
    return [replace(record, seconds=seconds * record.unet_evals / total) for record in records]


def _halves(wave: Wave) -> tuple[Wave, Wave]:
    """Divide a wave of at least two cells between trunks, or between the cells of its only trunk."""
    groups = [trunk.cells for trunk in wave.trunks if trunk.cells]
    if len(groups) == 1:
        groups = [(cell,) for cell in groups[0]]
    middle = len(groups) // 2
    first, second = itertools.chain(*groups[:middle]), itertools.chain(*groups[middle:])
    return wave_of(tuple(first), wave.n), wave_of(tuple(second), wave.n)

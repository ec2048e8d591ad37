"""Waves through the engine and the scorers, onto the disk."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from sega_bench.cell import Cell
from sega_bench.config import Config
from sega_bench.errors import named
from sega_bench.execution.grader import SEPARATOR, Grader
from sega_bench.sega.batching import Batching
from sega_bench.sega.denoiser import Denoiser
from sega_bench.sega.schedule import Wave, wave_of
from sega_bench.sega.steps import image_owner
from sega_bench.sega.wave import Outcome, count_timesteps, run_waves
from sega_bench.store import Picture, Record, Store

log = logging.getLogger(__name__)

WRITERS = 4
"""Threads that compress pictures and wait for the disk; a few suffice to hide both behind the scorers."""

_Files = dict[str, Future[tuple[str, str]]]
"""Pictures on their way to the disk by the keys of the cells that own them, as the store returns them."""


@dataclass(frozen=True)
class Maker:
    """Makes and scores cells; what it yields is on disk.

    Args:
        store: where it goes.
        denoiser: the networks.
        grader: scores what they made.
        config: for ``fail_fast``.
        batching: sizes of the engine's batches, which it halves when memory runs out.
        worker, device, versions: what every record says.
        on_evaluations: called with the number of UNet evaluations just made.
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

    def make(
        self,
        waves: Sequence[Wave],
        unscored: Sequence[Record] = (),
        is_leaving: Callable[[], bool] = lambda: False,
    ) -> Iterator[Record]:
        """Make waves, then score what is on disk already; with ``fail_fast`` only until a cell has failed.

        Args:
            waves: of cells to be made.
            unscored: records, still without scores, of cells that have their image.
            is_leaving: whether not to go on, asked behind each wave once all its records have left.

        Raises:
            UserError: there is no space for more; what was written is kept.
        """
        if not (yield from self._make(waves, is_leaving)):
            yield from self._score_stored(unscored, is_leaving)

    def _make(self, waves: Sequence[Wave], is_leaving: Callable[[], bool]) -> Generator[Record, None, bool]:
        """Records in the order in which they reach the disk, each wave's before the next one goes on.

        A wave's pictures are written while it is scored. So a kill costs the waves that are under way: the
        oldest, and what younger ones did in its gaps; at the end, on several threads, two that end together.
        No more pictures than a wave's wait for a slow disk, and what was counted is there.

        Returns:
            Whether it was stopped, by a failure or to leave.
        """
        recent: dict[str, Picture] = {}
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="writer") as writers:
            start = time.perf_counter()
            for outcomes in self._run(waves):
                files = self._write(outcomes, writers)
                made, recent = self._score(outcomes, recent)
                now = time.perf_counter()
                made, start = _share_time(made, now - start), now
                yield from writers.submit(self._commit, made, files).result()
                if self._stops(made) or is_leaving():
                    return True
        return False

    def _stops(self, records: Iterable[Record]) -> bool:
        failed = next((record for record in records if record.status == "failed"), None)
        if failed is None or not self.config.fail_fast:
            return False
        log.warning("fail_fast: stopped, since cell %s failed: %s", failed.cell.key, failed.error)
        return True

    def _run(self, waves: Sequence[Wave]) -> Iterator[list[Outcome]]:
        """Each wave's outcomes. What raises is halved until the one cell that does is alone, and failed."""
        results = run_waves(self.denoiser, waves, self.batching, self.on_evaluations)
        for wave, made in zip(waves, results, strict=True):
            yield made if not isinstance(made, Exception) else self._halved(wave, made)

    def _halved(self, wave: Wave, error: Exception) -> list[Outcome]:
        """The outcomes of a wave that raised, cell by cell if need be."""
        if self.config.fail_fast:
            raise error
        cells = wave.cells
        log.warning("a wave of %d cells raised %s", len(cells), named(error))
        if len(cells) == 1:
            return [Outcome(cells[0], None, 0, named(error))]
        return [outcome for half in _halves(wave) for made in self._run([half]) for outcome in made]

    def _score(
        self, outcomes: Sequence[Outcome], recent: Mapping[str, Picture]
    ) -> tuple[list[Record], dict[str, Picture]]:
        """Records with scores, paths still to come, and the references that the next wave may need."""
        pictures = _pictures(outcomes)
        references = self.grader.references((o.cell for o in outcomes), {**recent, **pictures})
        records = [self._record(outcome) for outcome in outcomes]
        return self.grader.grade(records, pictures, references), references

    def _record(self, outcome: Outcome) -> Record:
        return Record(
            cell=outcome.cell,
            status="done" if outcome.image_HWC is not None else "failed",
            error=outcome.error or self._cut(outcome.cell),
            unet_evals=outcome.unet_evals,
            worker=self.worker,
            device=self.device,
            versions=self.versions,
        )

    def _cut(self, cell: Cell) -> str | None:
        """Which of the cell's texts the model does not read to their end."""
        cut = [self.denoiser.truncation(text) for text in dict.fromkeys(cell.texts)]
        return SEPARATOR.join(note for note in cut if note) or None

    def _write(self, outcomes: Iterable[Outcome], writers: Executor) -> _Files:
        """Begin to write the pictures; cells that are equal share a file."""
        files: _Files = {}
        for cell, picture in ((o.cell, _picture(o)) for o in outcomes):
            owner = _owner(cell)
            if picture is not None and owner.key not in files:
                files[owner.key] = writers.submit(self.store.write_picture, owner, picture)
        return files

    def _commit(self, records: Sequence[Record], files: _Files) -> list[Record]:
        """The records, once the pictures that they speak of are on disk.

        Runs on a thread of the writers, so that an interruption does not come between it and the disk. Of a
        wave that does not fit there, what does is kept.
        """
        wait(files.values())
        done = {key: file.result() for key, file in files.items() if file.exception() is None}
        written = [
            _at(record, done)
            for record in records
            if record.status == "failed" or _owner(record.cell).key in done
        ]
        self.store.append(self.worker, written)
        for file in files.values():
            file.result()  # raises what it met
        return written

    def _score_stored(self, unscored: Sequence[Record], is_leaving: Callable[[], bool]) -> Iterator[Record]:
        """Score images that are on disk already; none is made or written again."""
        sizes: dict[tuple[int, int], list[Record]] = {}
        for record in unscored:
            sizes.setdefault((record.cell.height, record.cell.width), []).append(record)
        for records in sizes.values():
            for start in range(0, len(records), self.batching.wave_rows):
                chunk = records[start : start + self.batching.wave_rows]
                found = {record.cell.key: self.grader.read(str(record.image)) for record in chunk}
                pictures = {key: picture for key, picture in found.items() if picture is not None}
                references = self.grader.references((record.cell for record in chunk), pictures)
                noted = [replace(record, error=self._cut(record.cell)) for record in chunk]
                scored = self.grader.grade(noted, pictures, references)
                self.store.append(self.worker, scored)
                yield from scored
                if is_leaving():
                    return


def _picture(outcome: Outcome) -> Picture | None:
    return None if outcome.image_HWC is None else Picture(outcome.image_HWC, outcome.is_guided_HW)


def _pictures(outcomes: Iterable[Outcome]) -> dict[str, Picture]:
    found = {outcome.cell.key: _picture(outcome) for outcome in outcomes}
    return {key: picture for key, picture in found.items() if picture is not None}


def _owner(cell: Cell) -> Cell:
    """The cell under whose key a cell's picture is kept."""
    return image_owner(cell, count_timesteps(cell))


def _at(record: Record, files: Mapping[str, tuple[str, str]]) -> Record:
    """A record with the place of its picture, if it has one."""
    if record.status == "failed":
        return record
    image, digest = files[_owner(record.cell).key]
    return replace(record, image=image, image_sha256=digest)


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

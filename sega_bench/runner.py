"""Runs a plan: what the store lacks goes through the engine and the scorers, and into the store.

Resuming is a set difference. Records leave as an iterator once they are on disk; progress bars, logging and
views are their reader's business.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sega_bench import manifest, scores
from sega_bench.cell import Cell
from sega_bench.config import Config
from sega_bench.planner import Plan, plan
from sega_bench.scores import ScoreSettings
from sega_bench.scores.scoring import Scorer, score
from sega_bench.sega.models import load, resolve_device
from sega_bench.sega.schedule import Trunk, Wave, form_waves, image_owner
from sega_bench.sega.wave import Batching, Denoiser, Outcome, count_timesteps, run_wave
from sega_bench.store import Record, Store

Image = npt.NDArray[np.uint8]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is left to do of a plan.

    Args:
        plan: the whole.
        store: where it goes.
        waves: the missing cells as the engine will run them.
        done: cells of the plan that the store has.
        batching: sizes of the batches, those of an earlier run of the same sweep if there was one.
        stored: plan.json as it was found, if there was one.
    """

    plan: Plan
    store: Store
    waves: tuple[Wave, ...]
    done: int
    batching: Batching
    stored: Mapping[str, Any] | None

    @property
    def is_news(self) -> bool:
        """Whether the folder's views do not show this plan yet."""
        keys = [cell.key for cell in self.plan.cells]
        return self.stored is None or bool(self.waves) or self.stored["keys"] != keys

    @property
    def missing(self) -> int:
        """Cells to make."""
        return sum(len(wave.cells) for wave in self.waves)

    @property
    def unet_evals(self) -> int:
        """UNet evaluations to make them."""
        return sum(sum(wave.count_evaluations().values()) for wave in self.waves)


def prepare(made: Plan) -> Job:
    """Compare a plan with its folder; nothing is loaded and nothing is written but the folder itself.

    Raises:
        UserError: the folder holds another sweep, cannot be written, or a scorer has no such weights.
    """
    config = made.config
    resolve_device(config.engine.device)
    scores.check(ScoreSettings(**asdict(config.scores)))
    store = Store(Path(config.output_dir) / made.name)
    stored = store.read_plan()
    if stored is not None:
        manifest.check_same_sweep(made, stored)
    store.prepare()
    done = store.done_keys()
    skipped = set() if config.retry_failed else _failed_keys(store) - done
    missing = [cell for cell in made.cells if cell.key not in done and cell.key not in skipped]
    batching = _batching(config, made, stored or {})
    return Job(
        plan=made,
        store=store,
        waves=form_waves(missing, batching.wave_rows, count_timesteps),
        done=sum(cell.key in done for cell in made.cells),
        batching=batching,
        stored=stored,
    )


def _failed_keys(store: Store) -> set[str]:
    rows, _ = store.rows()
    return {row["key"] for row in rows if row["status"] == "failed"}


def _batching(config: Config, made: Plan, stored: Mapping[str, dict[str, int]]) -> Batching:
    """As asked for; else as the sweep began, since images are exact for one size; else by the device."""
    before = stored.get("engine", {})
    micro = config.engine.micro_batch_size or before.get("micro_batch_size") or _estimate_micro(config, made)
    return Batching(micro=micro, decode=config.engine.decode_batch_size, wave_rows=config.engine.wave_rows)


def _estimate_micro(config: Config, made: Plan) -> int:
    """A power of two: 16 on a CPU; on a GPU what should fit, and the engine halves it if it does not."""
    device = resolve_device(config.engine.device)
    if device.type != "cuda":
        return 16
    free_bytes, _ = torch.cuda.mem_get_info(device)
    pixels = max(cell.height * cell.width for cell in made.cells)
    # An assumption, not a measurement: bytes a pixel that SD 1.5's UNet needs in half precision.
    fits = int(free_bytes / (1200 * pixels))
    return max(1, min(64, 1 << max(fits, 1).bit_length() - 1))


def run(config: Config) -> Iterator[Record]:
    """Plan, resume and run a sweep; yields a record for every cell newly made, once it is on disk.

    Raises:
        UserError: anything wrong with what was asked.
    """
    return execute(prepare(plan(config)))


def execute(
    job: Job,
    on_evaluations: Callable[[int], None] = lambda count: None,
    worker: str = "0",
) -> Iterator[Record]:
    """Load the model and the scorers once and make what is missing.

    Args:
        job: from :func:`prepare`.
        on_evaluations: called with the number of UNet evaluations just made.
        worker: names this process's records file.
    """
    if not job.waves:
        if job.is_news and job.stored is not None:  # the sweep shrank
            about = job.stored["engine"], job.stored["scores"]
            job.store.write_plan(manifest.document(job.plan, *about))
        return
    config = job.plan.config
    if config.engine.threads is not None:
        torch.set_num_threads(config.engine.threads)
    device = resolve_device(config.engine.device)
    scorers = scores.build(ScoreSettings(**asdict(config.scores)), device)
    provenance = {name: dict(about) for scorer in scorers for name, about in scorer.provenance.items()}
    manifest.check_same_scores(provenance, job.stored or {})
    denoiser = load(job.plan.model, device, job.plan.cells[0].dtype)
    _write_plan(job, provenance, device)
    began_with = job.batching.micro
    versions = "; ".join(f"{name} {version}" for name, version in manifest.versions().items())
    maker = _Maker(job, denoiser, scorers, worker, _device_name(device), versions, on_evaluations)
    yield from maker.records()
    if job.batching.micro != began_with:  # memory ran out: a resume begins with what fitted
        _write_plan(job, provenance, device)


def _write_plan(job: Job, provenance: Mapping[str, Any], device: torch.device) -> None:
    engine = {
        "device": _device_name(device),
        "dtype": job.plan.cells[0].dtype,
        "micro_batch_size": job.batching.micro,
        "decode_batch_size": job.batching.decode,
        "wave_rows": job.batching.wave_rows,
        "threads": torch.get_num_threads(),
    }
    job.store.write_plan(manifest.document(job.plan, engine, provenance))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()}"


@dataclass
class _Maker:
    """Makes waves while the last one is being written."""

    job: Job
    denoiser: Denoiser
    scorers: Sequence[Scorer]
    worker: str
    device: str
    versions: str
    on_evaluations: Callable[[int], None]

    def records(self) -> Iterator[Record]:
        """Records in the order in which they reach the disk, one wave behind the engine."""
        recent: dict[str, Image] = {}
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer") as writer:
            pending: Future[list[Record]] | None = None
            for wave in self.job.waves:
                start = time.perf_counter()
                outcomes = list(self._make(wave))
                made, recent = self._score(outcomes, recent)
                made = _share_time(made, time.perf_counter() - start)
                following = writer.submit(self._commit, made, {o.cell.key: o.image_HWC for o in outcomes})
                if pending is not None:
                    yield from pending.result()
                pending = following
            if pending is not None:
                yield from pending.result()

    def _make(self, wave: Wave) -> Iterator[Outcome]:
        """A wave's outcomes. What raises is halved until the one cell that does is alone, and failed."""
        try:
            yield from run_wave(self.denoiser, wave, self.job.batching, self.on_evaluations)
        except Exception as error:
            if self.job.plan.config.fail_fast:
                raise
            cells = wave.cells
            log.warning("a wave of %d cells raised %s: %s", len(cells), type(error).__name__, error)
            if len(cells) == 1:
                yield Outcome(cells[0], None, 0, f"{type(error).__name__}: {_one_line(error)}")
                return
            for half in _halves(wave):
                yield from self._make(half)

    def _score(
        self, outcomes: Sequence[Outcome], recent: Mapping[str, Image]
    ) -> tuple[list[Record], dict[str, Image]]:
        """Records with scores, paths still to come, and the references that the next wave may need."""
        images = {o.cell.key: o.image_HWC for o in outcomes if o.image_HWC is not None}
        at_hand = {**recent, **images}
        references = {
            key: image
            for key in {o.cell.reference().key for o in outcomes}
            if (image := at_hand[key] if key in at_hand else self._stored(key)) is not None
        }
        scored = [o.cell for o in outcomes if o.cell.key in images and o.cell.reference().key in references]
        size = self.job.plan.config.scores.batch_size
        values = score(self.scorers, scored, references | images, size) if scored else []
        by_key = dict(zip((cell.key for cell in scored), values, strict=True))
        return [self._record(outcome, by_key) for outcome in outcomes], references

    def _stored(self, key: str) -> Image | None:
        path = self.job.store.image_path(key)
        return self.job.store.read_image(key) if path.exists() else None

    def _record(self, outcome: Outcome, by_key: Mapping[str, Mapping[str, float]]) -> Record:
        error = outcome.error
        if error is None:
            error = self._note(outcome.cell, is_scored=outcome.cell.key in by_key)
        return Record(
            cell=outcome.cell,
            status="done" if outcome.image_HWC is not None else "failed",
            scores=by_key.get(outcome.cell.key, {}),
            error=error,
            unet_evals=outcome.unet_evals,
            worker=self.worker,
            device=self.device,
            versions=self.versions,
        )

    def _note(self, cell: Cell, *, is_scored: bool) -> str | None:
        """What a reader of a finished cell must know: an unscored image, a text that was cut."""
        notes = [] if is_scored else ["not scored: its reference failed"]
        for text in dict.fromkeys(cell.texts):
            if cut := self.denoiser.truncation(text):
                notes.append(cut)
        return "; ".join(notes) or None

    def _commit(self, records: Sequence[Record], images: Mapping[str, Image | None]) -> list[Record]:
        """Images first, then the records that speak of them. Runs on the writer's thread."""
        written = [self._write(record, images[record.cell.key]) for record in records]
        self.job.store.append(self.worker, written)
        return written

    def _write(self, record: Record, image: Image | None) -> Record:
        if image is None:
            return record
        owner = image_owner(record.cell, count_timesteps(record.cell))  # cells that are equal share a file
        name, digest = self.job.store.write_image(owner, image)
        return replace(record, image=name, image_sha256=digest)


def _share_time(records: Sequence[Record], seconds: float) -> list[Record]:
    """A wave's wall time, shared by evaluations, so that the column sums to what was spent."""
    total = sum(record.unet_evals for record in records)
    if total == 0:
        return [replace(record, seconds=seconds / len(records)) for record in records]
    return [replace(record, seconds=seconds * record.unet_evals / total) for record in records]


def _halves(wave: Wave) -> tuple[Wave, Wave]:
    """A wave of at least two cells as two, by trunks while there are several, then by cells."""
    if len(wave.trunks) > 1:
        middle = len(wave.trunks) // 2
        return Wave(wave.trunks[:middle], wave.n), Wave(wave.trunks[middle:], wave.n)
    trunk = wave.trunks[0]
    middle = len(trunk.cells) // 2
    first, second = trunk.cells[:middle], trunk.cells[middle:]
    return (
        Wave((Trunk(trunk.reference, first),), wave.n),
        Wave((Trunk(trunk.reference, second),), wave.n),
    )


def _one_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:300] if lines else ""

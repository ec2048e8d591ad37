"""Runs a plan: what the store lacks goes through the engine and the scorers, and into the store.

Resuming is a set difference. Records leave as an iterator once they are on disk; progress bars, logging and
views are their reader's business.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from sega_bench import scores
from sega_bench.cell import shown
from sega_bench.config import Config
from sega_bench.errors import UserError
from sega_bench.execution.generator import Maker
from sega_bench.execution.grader import Grader
from sega_bench.execution.jobs import EXACT, Job, locked
from sega_bench.planning import manifest
from sega_bench.planning.launch_options import device_of
from sega_bench.planning.planner import plan
from sega_bench.scores import ScoreSettings
from sega_bench.scores.scoring import Scorer
from sega_bench.sega.batching import Batching
from sega_bench.sega.checkpoints.locate import check_unchanged
from sega_bench.sega.checkpoints.settings import ModelSettings
from sega_bench.sega.denoiser import Denoiser
from sega_bench.sega.models import load, resolve_device
from sega_bench.store import Record
from sega_bench.system import gc_control
from sega_bench.system.threads import threads

log = logging.getLogger(__name__)


class Networks:
    """The model and the scorers: loaded when they are first needed, kept for the jobs that follow.

    All those jobs have the same model, device, precision and scorers.
    """

    def __init__(self) -> None:
        self._denoiser: Denoiser | None = None
        self._scorers: tuple[Scorer, ...] | None = None

    def denoiser(self, job: Job) -> Denoiser:
        """The model of a job.

        Raises:
            UserError: it is not the one that was planned with.
        """
        if self._denoiser is None:
            device, model = _device(job), job.plan.model
            check_unchanged(ModelSettings.of(asdict(job.plan.config.model)), model)
            self._denoiser = load(model, device, job.plan.cells[0].dtype, compile=job.compile)
        return self._denoiser

    def scorers(self, job: Job) -> tuple[Scorer, ...]:
        """The scorers of a job."""
        if self._scorers is None:
            self._scorers = _scorers(job, _device(job))
        return self._scorers


def _device(job: Job) -> torch.device:
    """The device of this process, which has to be there."""
    return resolve_device(str(device_of(job.plan.config)))


def _scorers(job: Job, device: torch.device) -> tuple[Scorer, ...]:
    settings = ScoreSettings(**asdict(job.plan.config.scores))
    return scores.build(settings, device, job.plan.model.safety_checker)


def _checked(job: Job, scorers: tuple[Scorer, ...]) -> tuple[Scorer, ...]:
    """The scorers, if they are those of the job's folder."""
    manifest.check_same_scores(scores.provenance(scorers), job.stored or {})
    return scorers


def run(config: Config) -> Iterator[Record]:
    """Plan, resume and run a sweep; yields a record for every cell newly made, once it is on disk.

    Its folder is locked from the first record that is asked for until the last, or until it is closed.

    Raises:
        UserError: anything wrong with what was asked.
    """
    made = plan(config)
    if (name := config.launch.name) != "inline":
        raise UserError(f"launch.name is {shown(name)}, but this is one process: inline, or the command line")

    def records() -> Iterator[Record]:
        with locked(made) as job:
            yield from execute(job)

    return records()


def execute(
    job: Job,
    on_evaluations: Callable[[int], None] = lambda count: None,
    worker: str = "0",
    networks: Networks | None = None,
) -> Iterator[Record]:
    """Load the model and the scorers once and make what is missing.

    Args:
        job: from :func:`sega_bench.execution.jobs.prepare`.
        on_evaluations: called with the number of UNet evaluations just made.
        worker: names this process's records file.
        networks: of jobs that were executed before; None are this job's alone.
    """
    networks = networks or Networks()
    if job.done and job.stored is None:
        log.warning("plan.json was lost or damaged: it is written again, with the sizes of this command")
    if not job.missing and job.stored is not None:
        if job.is_news:  # the sweep shrank, or says the same in other words
            job.store.write_plan(manifest.renewed(job.plan, job.stored))
        return
    scorers = _checked(job, networks.scorers(job))
    with threads(job.threads), gc_control.frozen():
        if not job.missing:  # plan.json was lost, and nothing else
            _write_plan(job, scorers)
            return
        maker = _maker(job, networks, on_evaluations, worker)
        engine = _write_plan(job, scorers)
        _tell_changes(job, engine)
        for record in maker.make(job.waves, job.unscored):
            if smaller := _changes(engine, _engine(job)):
                log.warning("out of memory: %s", smaller)
                engine = _write_plan(job, scorers)  # a resume begins with what fitted
            job.confirm()
            yield record


def begin(job: Job) -> None:
    """Write the plan.json of a job whose parts other processes do; what the scorers lack is told here.

    Raises:
        UserError: scorers' weights cannot be had, or are others than this folder's.
    """
    with threads(job.threads):
        _tell_changes(job, _write_plan(job, _checked(job, _scorers(job, torch.device("cpu")))))


def work(
    job: Job, worker: str, is_leaving: Callable[[], bool], on_record: Callable[[Record], None]
) -> Batching:
    """Do a part of a job, in a process that leaves everything but its records and images to who launched it.

    Args:
        job: a part of one.
        worker: names this process's records file.
        is_leaving: whether not to go on, asked behind each wave.
        on_record: called with every record, once it is on disk.

    Returns:
        The sizes of the batches, smaller if memory ran out.

    Raises:
        UserError: this machine lacks the device.
    """
    networks = Networks()
    _checked(job, networks.scorers(job))
    with threads(job.threads), gc_control.frozen():
        maker = _maker(job, networks, lambda count: None, worker)
        for record in maker.make(job.waves, job.unscored, is_leaving):
            on_record(record)
    return job.batching


def shrink(job: Job, micro: int, decode: int) -> None:
    """Go on with what fitted into a worker's memory, and note it in plan.json, so that a resume does too."""
    before = _engine(job)
    job.batching.micro = min(job.batching.micro, micro)
    job.batching.decode = min(job.batching.decode, decode)
    stored = job.store.read_plan()
    if stored is not None and (smaller := _changes(before, _engine(job))):
        log.warning("out of memory: %s", smaller)
        sizes = {"micro_batch_size": job.batching.micro, "decode_batch_size": job.batching.decode}
        job.store.write_plan({**stored, "engine": {**stored["engine"], **sizes}})


def _maker(job: Job, networks: Networks, on_evaluations: Callable[[int], None], worker: str) -> Maker:
    """The model, loaded, and all that makes images with it."""
    config = job.plan.config
    return Maker(
        store=job.store,
        denoiser=networks.denoiser(job),
        grader=Grader(job.store, networks.scorers(job), config.scores.batch_size),
        config=config,
        batching=job.batching,
        worker=worker,
        device=_device_name(_device(job)),
        versions="; ".join(f"{name} {version}" for name, version in manifest.versions().items()),
        on_evaluations=on_evaluations,
    )


def _write_plan(job: Job, scorers: Sequence[Scorer]) -> dict[str, Any]:
    """Write plan.json; returns what it says of how the images are computed."""
    engine = _engine(job)
    job.store.write_plan(manifest.document(job.plan, engine, scores.provenance(scorers)))
    return engine


def _tell_changes(job: Job, engine: Mapping[str, Any]) -> None:
    """A word of what differs from how this folder's other images were computed."""
    if others := manifest.changes(job.stored or {}, engine, job.plan.config):
        words = ", ".join(others)
        log.warning("%s: new images and scores may differ from this folder's others by rounding", words)


def _engine(job: Job) -> dict[str, Any]:
    """What plan.json says of how the images are computed."""
    return {
        "device": _device_name(device_of(job.plan.config)),
        "dtype": job.plan.cells[0].dtype,
        "micro_batch_size": job.batching.micro,
        "decode_batch_size": job.batching.decode,
        "wave_rows": job.batching.wave_rows,
        "threads": torch.get_num_threads(),
        "compile": job.compile,
    }


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which of the sizes that images are exact for are others than they were, as words."""
    changed = [name for name in EXACT if before.get(name) not in (None, now[name])]
    return ", ".join(f"{name} is {now[name]} and was {before[name]}" for name in changed)


def _device_name(where: torch.device) -> str:
    if where.type == "cuda":  # of a cluster's nodes one can't know before
        return torch.cuda.get_device_name(where) if torch.cuda.is_available() else "cuda"
    return f"{where.type} {platform.machine()}"

"""Executes a job: loads the model and the scorers, generates the missing cells and updates plan.json.

Records are yielded once they are on disk. Progress bars, logging and views belong to the caller.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from sega_bench import scores
from sega_bench.cell import abbreviated
from sega_bench.config import Config
from sega_bench.errors import UserError
from sega_bench.execution.generator import ImageGenerator
from sega_bench.execution.grader import Grader
from sega_bench.execution.jobs import BIT_EXACT_SETTINGS, Job, locked
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
    """The model and the scorers, loaded on first use and shared by consecutive jobs.

    The jobs must have the same model, device, precision and scorers.
    """

    def __init__(self) -> None:
        self._denoiser: Denoiser | None = None
        self._scorers: tuple[Scorer, ...] | None = None

    def denoiser(self, job: Job) -> Denoiser:
        """The diffusion model of a job.

        Raises:
            UserError: the weights have changed since the job was planned.
        """
        if self._denoiser is None:
            device, model = _device(job), job.plan.model
            # Cell keys hold the hash of the planned weights; a file may have been replaced since.
            check_unchanged(ModelSettings.of(asdict(job.plan.config.model)), model)
            self._denoiser = load(model, device, job.plan.cells[0].dtype, compile=job.compile)
        return self._denoiser

    def scorers(self, job: Job) -> tuple[Scorer, ...]:
        """The scorers of a job."""
        if self._scorers is None:
            self._scorers = _scorers(job, _device(job))
        return self._scorers


def _device(job: Job) -> torch.device:
    """The job's device on this machine.

    Raises:
        UserError: this machine lacks it.
    """
    return resolve_device(str(device_of(job.plan.config)))


def _scorers(job: Job, device: torch.device) -> tuple[Scorer, ...]:
    settings = ScoreSettings(**asdict(job.plan.config.scores))
    return scores.build(settings, device, job.plan.model.safety_checker)


def _checked(job: Job, scorers: tuple[Scorer, ...]) -> tuple[Scorer, ...]:
    """The same scorers, after a check that their weights are those of the job's folder."""
    manifest.check_same_scores(scores.provenance(scorers), job.stored or {})
    return scorers


def run(config: Config) -> Iterator[Record]:
    """Plan a sweep and generate what its folder lacks; yields each new record once it is on disk.

    Planning happens at once. The folder is locked from the first ``next()`` until the iterator ends or is
    closed.

    Raises:
        UserError: a mistake in the configuration.
    """
    resolved = plan(config)
    if (name := config.launch.name) != "inline":
        raise UserError(
            f"launch.name is {abbreviated(name)}, but this is one process: inline, or the command line"
        )

    def records() -> Iterator[Record]:
        with locked(resolved) as job:
            yield from execute(job)

    return records()


def execute(
    job: Job,
    on_evaluations: Callable[[int], None] = lambda count: None,
    worker: str = "0",
    networks: Networks | None = None,
) -> Iterator[Record]:
    """Execute a job in this process and write its plan.json.

    Args:
        job: from :func:`sega_bench.execution.jobs.prepare`.
        on_evaluations: called with the number of UNet evaluations since its last call.
        worker: names this process's records file.
        networks: shared with earlier jobs; None loads them for this job.
    """
    networks = networks or Networks()
    if job.done and job.stored is None:
        log.warning("plan.json was lost or damaged: it is written again, with the sizes of this command")
    if not job.missing and job.stored is not None:
        if job.needs_update:  # the sweep shrank, or its settings describe the same cells differently
            job.store.write_plan(manifest.updated(job.plan, job.stored))
        return
    scorers = _checked(job, networks.scorers(job))
    with threads(job.threads), gc_control.frozen():
        if not job.missing:  # plan.json was lost, and nothing else
            _write_plan(job, scorers)
            return
        generator = _image_generator(job, networks, on_evaluations, worker)
        engine = _write_plan(job, scorers)
        _warn_of_changes(job, engine)
        for record in generator.generate(job.waves, job.unscored):
            if changes := _setting_changes(engine, _engine(job)):
                log.warning("out of memory: %s", changes)
                engine = _write_plan(job, scorers)  # a resume starts with the sizes that fitted
            job.confirm()  # stop before the next wave if another command has taken over the folder
            yield record


def write_plan_for_workers(job: Job) -> None:
    """Write plan.json, in the launcher, of a job whose shards workers execute.

    Raises:
        UserError: scorer weights cannot be had, or differ from this folder's.
    """
    with threads(job.threads):
        # On the CPU: only their provenance is needed, and the workers need the GPUs' memory.
        scorers = _checked(job, _scorers(job, torch.device("cpu")))
        _warn_of_changes(job, _write_plan(job, scorers))


def execute_shard(
    job: Job, worker: str, is_preempted: Callable[[], bool], on_record: Callable[[Record], None]
) -> Batching:
    """Execute a shard in a worker process, which writes only images and its own records file.

    Args:
        job: the shard.
        worker: names the records file.
        is_preempted: called after each wave; whether to stop there.
        on_record: called with every record once it is on disk.

    Returns:
        The batch sizes, reduced if memory ran out.

    Raises:
        UserError: this machine lacks the device.
    """
    networks = Networks()
    _checked(job, networks.scorers(job))
    with threads(job.threads), gc_control.frozen():
        generator = _image_generator(job, networks, lambda count: None, worker)
        for record in generator.generate(job.waves, job.unscored, is_preempted):
            on_record(record)
    return job.batching


def shrink_batches(job: Job, micro: int, decode: int) -> None:
    """Reduce a job's batch sizes to those that fitted a worker's memory, and record them in plan.json."""
    engine = _engine(job)
    job.batching.micro = min(job.batching.micro, micro)
    job.batching.decode = min(job.batching.decode, decode)
    stored = job.store.read_plan()
    if stored is not None and (changes := _setting_changes(engine, _engine(job))):
        log.warning("out of memory: %s", changes)
        sizes = {"micro_batch_size": job.batching.micro, "decode_batch_size": job.batching.decode}
        job.store.write_plan({**stored, "engine": {**stored["engine"], **sizes}})


def _image_generator(
    job: Job, networks: Networks, on_evaluations: Callable[[int], None], worker: str
) -> ImageGenerator:
    config = job.plan.config
    return ImageGenerator(
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
    """Write plan.json; returns its ``engine`` section."""
    engine = _engine(job)
    job.store.write_plan(manifest.document(job.plan, engine, scores.provenance(scorers)))
    return engine


def _warn_of_changes(job: Job, engine: Mapping[str, Any]) -> None:
    """Warn if new images will be computed differently from those that the folder already holds."""
    if changes := manifest.environment_changes(job.stored or {}, engine, job.plan.config):
        text = ", ".join(changes)
        log.warning("%s: new images and scores may differ from this folder's others by rounding", text)


def _engine(job: Job) -> dict[str, Any]:
    """The ``engine`` section of plan.json: how images are computed."""
    return {
        "device": _device_name(device_of(job.plan.config)),
        "dtype": job.plan.cells[0].dtype,
        "micro_batch_size": job.batching.micro,
        "decode_batch_size": job.batching.decode,
        "wave_rows": job.batching.wave_rows,
        "threads": torch.get_num_threads(),
        "compile": job.compile,
    }


def _setting_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The bit-exact settings that differ between two ``engine`` sections, in words; empty if none does."""
    changed = [name for name in BIT_EXACT_SETTINGS if before.get(name) not in (None, now[name])]
    return ", ".join(f"{name} is {now[name]} and was {before[name]}" for name in changed)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":  # a launcher without a GPU cannot know which ones the nodes have
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else "cuda"
    return f"{device.type} {platform.machine()}"

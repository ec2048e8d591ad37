"""Launches a sweep on several processes, on this machine or a Slurm cluster, through submitit.

Each worker loads the model once and writes only images and its own records file. The launcher writes
everything else in the folder and holds its lock: it follows the records as they grow and retries workers that
die. Slurm workers may outlive their launcher; the same command attaches to them through workers.json.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import torch

from sega_bench.cell import Cell, abbreviated
from sega_bench.config import Config
from sega_bench.errors import UserError
from sega_bench.execution import jobs, runner
from sega_bench.execution.jobs import Job, Processes
from sega_bench.launch import local, slurm
from sega_bench.launch.sharding import Sharding, shard_cells
from sega_bench.launch.supervisor import Backend, LaunchState, Supervisor, attached_workers, new_workers
from sega_bench.launch.worker import shard_job
from sega_bench.planning.planner import Plan
from sega_bench.tracking import run_ids
from sega_bench.tracking.login import resolve_mode

__all__ = ["Launch", "describe_sharding", "requested_processes"]


def requested_processes(config: Config) -> Processes:
    """The processes that a configuration requests, after a check that they can be had.

    Raises:
        UserError: there are fewer GPUs, Slurm is not available, or submitit is not installed.
    """
    launch = config.launch
    if config.study.space and not launch.wait:
        raise UserError("launch.wait is false, but a study asks on once its batch is done: launch.wait=true")
    if launch.name != "inline" and importlib.util.find_spec("submitit") is None:
        raise UserError(f"launch={launch.name} needs submitit: pip install 'sega-bench[slurm]'")
    if launch.name != "inline" and ":" in (config.engine.device or ""):
        raise UserError(
            f"engine.device is {abbreviated(config.engine.device)}, but launch={launch.name} gives every "
            "worker a GPU of its own: name the kind alone, engine.device=cuda"
        )
    if launch.name == "slurm" and not config.dry_run:
        slurm.check(launch)
    return _processes(config)


def _processes(config: Config) -> Processes:
    if config.launch.name == "inline":
        return Processes()
    if config.launch.name == "slurm":
        return Processes(config.launch.workers, threads=slurm.cpus_per_task(config.launch), are_remote=True)
    count = local.worker_count(config)
    return Processes(count, threads=max(1, torch.get_num_threads() // count) if count > 1 else None)


def describe_sharding(plan: Plan) -> dict[str, str]:
    """The line ``launch`` of a dry run: how evenly the whole plan divides among workers. Empty if inline."""
    config = plan.config
    if config.launch.name == "inline":
        return {}
    workers = requested_processes(config).count
    return {"launch": str(shard_cells(plan.cells, workers, config.engine.wave_rows))}


class Launch:
    """A job's missing cells on other processes: a context manager that leaves none of them running.

    Args:
        job: of a folder whose lock this process holds.
    """

    def __init__(self, job: Job) -> None:
        config = job.plan.config
        self._job, self._workers = job, _processes(config).count
        self._attached = attached_workers(job) if config.launch.name == "slurm" else []
        self._sharding = self._shard([] if self._attached else job.cells)
        self._supervisor = Supervisor(job, _backend(job), self._attached)

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *error: object) -> None:
        """End all processes, unless the launch has detached from them."""
        self._supervisor.cancel()

    def __str__(self) -> str:
        """How the cells are divided among the workers, or which Slurm jobs this launch attaches to."""
        if not self._attached:
            return str(self._sharding)
        array_jobs = sorted({str(worker.handle).partition("_")[0] for worker in self._attached})
        return f"attached to Slurm job {', '.join(array_jobs)}: {len(self._attached)} tasks had not ended"

    @property
    def unet_evals(self) -> int:
        """UNet evaluations in all, with those that cutting trunks repeats."""
        return sum(shard.unet_evals for shard in self._sharding.shards) or self._job.unet_evals

    def rows(self) -> Generator[tuple[dict[str, Any], int], None, None]:
        """Run the workers and follow their records; with ``launch.wait=false`` only submit them.

        Yields:
            Every row that is added to the records, and the number of workers that are running.

        Raises:
            UserError: a worker met a mistake of the user's, or Slurm refuses the job.
        """
        if self._attached:
            yield from self._supervisor.run(self._attached)
        else:
            self._prepare()
            shards = self._shard_jobs(self._job, self._sharding, self._workers)
            yield from self._supervisor.run(new_workers(shards))
        if self._supervisor.state is LaunchState.ACTIVE:
            yield from self._remaining_rows()
            self._remove_logs()

    def _prepare(self) -> None:
        """Write what workers read, and clear what an earlier launch left."""
        if self._job.missing:
            runner.write_plan_for_workers(self._job)
        if resolve_mode(self._job.plan.config.wandb.mode) != "disabled":
            run_ids.run_id(self._job.store)  # the workers' W&B runs are grouped by it
        shutil.rmtree(self._job.store.launch_dir, ignore_errors=True)

    def _remaining_rows(self) -> Generator[tuple[dict[str, Any], int], None, None]:
        """Run what the first round could not finish.

        These are scores against a reference that another worker generated, and cells that were added to the
        sweep after the attached workers were submitted.
        """
        plan = self._job.plan
        # With retry_failed this round would repeat the failures of the first.
        plan = replace(plan, config=replace(plan.config, retry_failed=False))
        job = jobs.prepare(plan, _processes(plan.config))
        if self._attached and job.needs_update:
            runner.write_plan_for_workers(job)
        # A worker loads its scorers first: one with less than a wave to score is not worth its start.
        scorers = max(1, min(self._workers, len(job.unscored) // job.batching.wave_rows))
        shards = self._shard_jobs(job, self._shard(job.cells), scorers)
        yield from self._supervisor.run(new_workers(shards))

    def _remove_logs(self) -> None:
        """Remove the launch folder, unless its logs tell of a fault or workers still use it."""
        if not self._supervisor.has_faults and self._supervisor.state is not LaunchState.DETACHED:
            shutil.rmtree(self._job.store.launch_dir, ignore_errors=True)

    def _shard(self, cells: Sequence[Cell]) -> Sharding:
        return shard_cells(cells, self._workers, self._job.plan.config.engine.wave_rows)

    @staticmethod
    def _shard_jobs(job: Job, sharding: Sharding, scorers: int) -> list[Job]:
        """A job per worker; the first ``scorers`` of them share the cells that only lack scores."""
        cells = [shard.cells for shard in sharding.shards]
        cells += [()] * (sharding.workers - len(cells))
        return [
            shard_job(job, own, job.unscored[number::scorers] if number < scorers else ())
            for number, own in enumerate(cells)
        ]


def _backend(job: Job) -> Backend:
    config = job.plan.config
    if config.launch.name == "slurm":
        return slurm.SlurmBackend(job.store, config.launch, job.plan.name)
    return local.LocalBackend(job.store, local.visible_gpus(config))

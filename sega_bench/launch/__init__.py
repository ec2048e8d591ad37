"""A sweep on several processes: its shards go to workers through submitit, its rows come back from the store.

A worker loads the model once, and writes images and a records file of its own. Everything else in the folder
is the launcher's, which holds the lock: it reads the records as they grow, and gives what a dead worker left
undone to a new one. Workers on a cluster may outlive their launcher; the same command finds them by a note.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch

from sega_bench.cell import shown
from sega_bench.config import Config
from sega_bench.errors import UserError
from sega_bench.execution import jobs, runner
from sega_bench.execution.jobs import Job, Processes
from sega_bench.launch import local, slurm
from sega_bench.launch.sharding import Deal, deal
from sega_bench.launch.supervisor import Crew, Host, enlisted, enlisted_before
from sega_bench.launch.worker import part_of
from sega_bench.planning.planner import Plan
from sega_bench.tracking import run_ids
from sega_bench.tracking.login import resolve_mode

__all__ = ["Launch", "asked", "dealt"]


def asked(config: Config) -> Processes:
    """The processes that a sweep is asked to run on.

    Raises:
        UserError: there are not so many GPUs, no cluster, or submitit is not installed.
    """
    launch = config.launch
    if config.study.space and not launch.wait:
        raise UserError("launch.wait is false, but a study asks on once its batch is done: launch.wait=true")
    if launch.name != "inline" and importlib.util.find_spec("submitit") is None:
        raise UserError(f"launch={launch.name} needs submitit: pip install 'sega-bench[slurm]'")
    if launch.name != "inline" and ":" in (config.engine.device or ""):
        raise UserError(
            f"engine.device is {shown(config.engine.device)}, but launch={launch.name} gives every worker a "
            "GPU of its own: name the kind alone, engine.device=cuda"
        )
    if launch.name == "slurm" and not config.dry_run:
        slurm.check(launch)
    return _processes(config)


def _processes(config: Config) -> Processes:
    if config.launch.name == "inline":
        return Processes()
    if config.launch.name == "slurm":
        return Processes(config.launch.workers, threads=slurm.cpus(config.launch), are_elsewhere=True)
    count = local.workers(config)
    return Processes(count, threads=max(1, torch.get_num_threads() // count) if count > 1 else None)


def dealt(made: Plan) -> dict[str, str]:
    """How a whole plan would be shared, in words; nothing if it would not."""
    config = made.config
    if config.launch.name == "inline":
        return {}
    return {"launch": str(deal(made.cells, asked(config).count, config.engine.wave_rows))}


class Launch:
    """What is missing of a sweep, made on other processes; a context on leaving which they have ended.

    Args:
        job: of a folder whose lock this process holds.
    """

    def __init__(self, job: Job) -> None:
        config = job.plan.config
        self._job, self._count = job, _processes(config).count
        self._before = enlisted_before(job) if config.launch.name == "slurm" else []
        cells = [] if self._before else [cell for wave in job.waves for cell in wave.cells]
        self._deal = deal(cells, self._count, config.engine.wave_rows)
        self._crew = Crew(job, _host(job), self._before)

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *error: object) -> None:
        """End all processes, unless they are to go on alone."""
        self._crew.call_off()

    def __str__(self) -> str:
        """Who makes it."""
        if not self._before:
            return str(self._deal)
        jobs = sorted({str(worker.handle).partition("_")[0] for worker in self._before})
        return f"attached to Slurm job {', '.join(jobs)}: {len(self._before)} tasks had not ended"

    @property
    def unet_evals(self) -> int:
        """UNet evaluations to make it."""
        return sum(shard.unet_evals for shard in self._deal.shards) or self._job.unet_evals

    def rows(self) -> Generator[tuple[dict[str, Any], int], None, None]:
        """Make it; if it is not to wait for processes that go on alone, only begin with it.

        Yields:
            Every row that is added to the records, and how many workers are at work.

        Raises:
            UserError: what a worker could not do and the user can mend, or what a cluster says to it.
        """
        job, crew = self._job, self._crew
        if self._before:
            yield from crew.work(self._before)
        else:
            if job.missing:
                runner.begin(job)
            if resolve_mode(job.plan.config.wandb.mode) != "disabled":
                run_ids.run_id(job.store)  # before there are workers, whose runs' group is named by it
            shutil.rmtree(job.store.launch_dir, ignore_errors=True)
            yield from crew.work(enlisted(_parts(job, self._deal, self._count)))
        if crew.is_stopped or crew.is_detached:
            return
        yield from self._rest()
        if not crew.has_faults and not crew.is_detached:
            shutil.rmtree(job.store.launch_dir, ignore_errors=True)

    def _rest(self) -> Generator[tuple[dict[str, Any], int], None, None]:
        """What is scored against another worker's cell waited for it; and what was asked for meanwhile.

        Failures are tried again once only.
        """
        plan = self._job.plan
        once = replace(plan, config=replace(plan.config, retry_failed=False))
        rest = jobs.prepare(once, _processes(plan.config))
        if self._before and rest.is_news:  # the sweep grew meanwhile
            runner.begin(rest)
        cells = [cell for wave in rest.waves for cell in wave.cells]
        few = max(1, min(self._count, len(rest.unscored) // rest.batching.wave_rows))
        yield from self._crew.work(
            enlisted(_parts(rest, deal(cells, self._count, rest.batching.wave_rows), few))
        )


def _parts(job: Job, dealt: Deal, scorers: int) -> list[Job]:
    """What each worker is given; the first ``scorers`` share what has its image and is only to be scored."""
    shards = [shard.cells for shard in dealt.shards] + [()] * (dealt.workers - len(dealt.shards))
    return [
        part_of(job, cells, job.unscored[i::scorers] if i < scorers else ()) for i, cells in enumerate(shards)
    ]


def _host(job: Job) -> Host:
    config = job.plan.config
    if config.launch.name == "slurm":
        return slurm.Slurm(job.store, config.launch, job.plan.name)
    return local.Local(job.store, local.gpus(config))

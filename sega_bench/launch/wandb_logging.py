"""Logs one worker's records to a W&B run of its own, in the group of its sweep."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sega_bench.execution.jobs import Job
from sega_bench.store import Record
from sega_bench.store.tail import rows_since
from sega_bench.tracking.login import resolve_mode

FINISH_SECONDS = 30.0
"""Time limit for closing the run. A preempted worker has no more."""


@contextmanager
def logging_to_wandb(job: Job, worker: str) -> Iterator[Callable[[Record], None]]:
    """Open the worker's W&B run and yield a function that logs one record to it.

    A later attempt of the same worker resumes the same run.

    Raises:
        UserError: this machine's WANDB_MODE is no mode of W&B.
    """
    store, settings = job.store, job.plan.config.wandb
    if (mode := resolve_mode(settings.mode)) == "disabled":
        yield lambda record: None
        return
    from sega_bench.tracking.wandb_run import WandbRun, guarded

    # The launcher's environment names its own W&B service, which may run on another machine.
    os.environ.pop("WANDB_SERVICE", None)
    done = {row["key"] for row in rows_since(store, worker, 0) if row["status"] == "done"}
    run = WandbRun(
        store,
        guarded(lambda: store.read_plan() or {}) or {},
        mode,
        project=settings.project,
        entity=settings.entity,
        already=len(done),
        worker=worker,
    )
    try:
        yield lambda record: run.log([record])
    finally:
        with suppress(TimeoutError):
            run.close(lambda run: None, FINISH_SECONDS)

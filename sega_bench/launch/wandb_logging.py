"""What a worker tells W&B while it works: live curves of its shard, in the group of its sweep."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sega_bench.execution.jobs import Job
from sega_bench.store import Record
from sega_bench.store.following import rows_since
from sega_bench.tracking.login import resolve_mode

PATIENCE_SECONDS = 30.0
"""How long a worker waits for its run to be closed, if its server answers; the pre-empted have no more."""


@contextmanager
def telling(part: Job, worker: str) -> Iterator[Callable[[Record], None]]:
    """What to call with each record; a run of the worker's own, with which its next life goes on.

    Raises:
        UserError: this machine's WANDB_MODE is none.
    """
    store, settings = part.store, part.plan.config.wandb
    if (mode := resolve_mode(settings.mode)) == "disabled":
        yield lambda record: None
        return
    from sega_bench.tracking.wandb_run import WandbRun, guarded

    os.environ.pop("WANDB_SERVICE", None)  # the launcher's, perhaps on another machine
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
            run.close(lambda run: None, PATIENCE_SECONDS)

"""The task that a worker process executes: one shard of a sweep, from any state, on any machine.

An attempt skips the cells that earlier attempts recorded. A worker may therefore be killed, preempted or
requeued at any time, by anyone, and started again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import sega_bench
from sega_bench import version
from sega_bench.cell import Cell
from sega_bench.errors import UserError, error_summary
from sega_bench.execution import jobs, runner
from sega_bench.execution.jobs import Job
from sega_bench.launch.wandb_logging import logging_to_wandb
from sega_bench.planning import manifest
from sega_bench.sega.batching import Batching
from sega_bench.sega.schedule import form_waves
from sega_bench.sega.wave import count_timesteps
from sega_bench.store import Record, Store
from sega_bench.store.tail import rows_since
from sega_bench.system import gc_control, signals
from sega_bench.system.atomic import is_running

MAX_ATTEMPTS = 3
"""Consecutive attempts at a shard that may end early and record nothing. After them its cells fail."""


@dataclass(frozen=True)
class WorkerOutcome:
    """How a worker's last attempt ended, as its outcome file says; its fields are the file's JSON keys.

    Args:
        micro, decode: batch sizes that fitted into the worker's memory.
        mistake: message of a :class:`UserError`, which ends the whole launch.
        fault: why the attempt ended early; the worker is retried.
    """

    micro: int | None = None
    decode: int | None = None
    mistake: str | None = None
    fault: str | None = None


def read_outcome(store: Store, number: int) -> WorkerOutcome | None:
    """A worker's outcome; None while it runs, or if it was killed before it could write one."""
    try:
        return WorkerOutcome(**json.loads(store.outcome_path(number).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def clear_outcome(store: Store, number: int) -> None:
    """Remove a worker's outcome and attempt count before a new process is submitted for it."""
    store.outcome_path(number).unlink(missing_ok=True)
    store.starts_path(number).unlink(missing_ok=True)


def shard_job(job: Job, cells: Sequence[Cell], unscored: Sequence[Record]) -> Job:
    """A job of some of a job's cells. It holds no lock: the launcher holds the folder's."""
    return replace(
        job,
        plan=replace(job.plan, cells=(*cells, *(record.cell for record in unscored))),
        waves=form_waves(cells, job.plan.config.engine.wave_rows, count_timesteps),
        unscored=tuple(unscored),
        stored=None,
        confirm=jobs.no_lock,
    )


def remaining_job(job: Job, number: int, records_offset: int) -> Job:
    """The cells of a shard's job that its worker has not recorded.

    Args:
        job: from :func:`shard_job`.
        number: of the worker.
        records_offset: first byte of the worker's records file that belongs to this job.
    """
    recorded = {row["key"] for row in rows_since(job.store, str(number), records_offset)}
    cells = [cell for cell in job.cells if cell.key not in recorded]
    return shard_job(job, cells, [record for record in job.unscored if record.cell.key not in recorded])


@dataclass(frozen=True)
class WorkerTask:
    """The callable that submitit pickles and calls in the worker's process.

    Args:
        job: the shard, from :func:`shard_job`.
        number: of the worker, which names its records file.
        records_offset: first byte of that file that belongs to this job.
        versions: the launcher's :func:`code_versions`.
        launcher: process id to exit with; None if the worker outlives its launcher.
    """

    job: Job
    number: int
    records_offset: int
    versions: Mapping[str, str]
    launcher: int | None = None

    def __call__(self) -> None:
        """Execute the shard and write the outcome. On USR2, finish the wave in flight, then requeue."""
        gc_control.skip_at_exit()
        preempted = threading.Event()
        # USR2 is Slurm's notice of a preemption or a time limit. Submitit's handler would requeue at once and
        # lose the wave in flight, so it is called only after the wave.
        requeue: Any = signal.signal(signal.SIGUSR2, lambda number, frame: preempted.set())
        if self.launcher is None:
            signal.signal(signal.SIGTERM, self._exit_if_cancelled)
        else:
            threading.Thread(target=_exit_with_launcher, args=(self.launcher,), daemon=True).start()
            signals.listen()
        # The backend starts Python with USR2 blocked; one that came before the handler is delivered here.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
        outcome = self._run_attempt(preempted.is_set)
        if outcome is None:
            requeue(signal.SIGUSR2, None)  # submits the checkpoint, requeues the job and exits
        else:
            store = self.job.store
            store.write_text(store.outcome_path(self.number), json.dumps(asdict(outcome)) + "\n")

    def checkpoint(self) -> Any:
        """The submission that submitit requeues: this same task, since the records hold its progress."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run_attempt(self, is_preempted: Callable[[], bool]) -> WorkerOutcome | None:
        """Execute the rest of the shard; None if it was preempted and must be requeued."""
        try:
            self._check_versions()
            job = remaining_job(self.job, self.number, self.records_offset)
            if self._count_attempt(job.missing) > MAX_ATTEMPTS:
                return WorkerOutcome(
                    fault=f"began {MAX_ATTEMPTS} times and recorded nothing, interrupted each time"
                )
            batching = self._execute(job, is_preempted) if job.missing else job.batching
            if is_preempted() and remaining_job(job, self.number, self.records_offset).missing:
                return None
            return WorkerOutcome(batching.micro, batching.decode)
        except UserError as error:
            return WorkerOutcome(mistake=str(error))
        except Exception as error:
            logging.getLogger("submitit").exception("worker %s", self.number)
            return WorkerOutcome(fault=f"raised {error_summary(error)}")

    def _execute(self, job: Job, is_preempted: Callable[[], bool]) -> Batching:
        worker = str(self.number)
        with logging_to_wandb(job, worker) as log_record:
            return runner.execute_shard(job, worker, is_preempted, log_record)

    def _check_versions(self) -> None:
        if differences := version_differences(code_versions(), self.versions):
            raise UserError(
                f"launch: worker {self.number} on {os.uname().nodename} has {differences} than the launching "
                f"command, in {Path(sega_bench.__file__).parent}: install the same for both"
            )

    def _count_attempt(self, missing: int) -> int:
        """Count this attempt among the consecutive ones that began with ``missing`` cells.

        A requeued task has no supervisor to count its attempts, so the count is kept in a file.
        """
        path = self.job.store.starts_path(self.number)
        try:
            previous = json.loads(path.read_bytes())
        except (OSError, ValueError):
            previous = {}
        attempts = previous.get("starts", 0) + 1 if previous.get("missing") == missing else 1
        self.job.store.write_text(path, json.dumps({"missing": missing, "starts": attempts}) + "\n")
        return int(attempts)

    def _exit_if_cancelled(self, number: int, frame: FrameType | None) -> None:
        """Handle Slurm's SIGTERM: exit if the launch was cancelled, otherwise work on until SIGKILL.

        Slurm does not requeue a preempted job that exits by itself.
        """
        if not self.job.store.launch_path.exists():
            os._exit(signals.INTERRUPTED)


@cache
def code_versions() -> dict[str, str]:
    """Versions that all processes of a sweep must share: Python, the libraries, this package's source."""
    folder = Path(sega_bench.__file__).parent
    lines = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))
    source = f"{version.__version__} ({hashlib.sha256(lines).hexdigest()[:8]})"
    return {"Python": platform.python_version(), **manifest.versions(), "sega_bench": source}


def version_differences(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """The differences between two processes' :func:`code_versions` in words; empty if there are none."""
    names = [name for name in {**there, **here} if here.get(name) != there.get(name)]
    return ", ".join(f"another {name} ({here.get(name)}, not {there.get(name)})" for name in names)


def _exit_with_launcher(launcher: int) -> None:
    """Exit once the launcher has: without it no process would hold the folder's lock."""
    while is_running(launcher):
        time.sleep(1.0)
    os._exit(signals.INTERRUPTED)

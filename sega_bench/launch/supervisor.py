"""Supervises the workers of one launch: submits them, follows their records, retries them, gives up on them.

A worker stands for one shard. Each attempt at the shard is a new process under the worker's number, and
continues its records file.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any, Protocol

from sega_bench.errors import UserError
from sega_bench.execution import runner
from sega_bench.execution.jobs import Job
from sega_bench.launch.worker import (
    MAX_ATTEMPTS,
    WorkerOutcome,
    WorkerTask,
    clear_outcome,
    code_versions,
    read_outcome,
    remaining_job,
    shard_job,
    version_differences,
)
from sega_bench.store import Record, Store
from sega_bench.store.tail import RecordTail

LAUNCHER = "launcher"
"""Name of the records file for cells that no worker could generate."""

POLL_SECONDS = 0.05
"""Polling interval per worker, so that many workers do not keep a shared file system busy."""
_MAX_POLL_SECONDS = 5.0

log = logging.getLogger(__name__)

Row = dict[str, Any]


class Backend(Protocol):
    """Where worker processes run. A handle is submitit's job id of one process."""

    outlives_launcher: bool
    """Whether processes go on after the launching process has exited."""

    def submit(self, tasks: Sequence[WorkerTask]) -> list[str]:
        """Start a process for each task; returns their handles, which are valid in other processes too."""
        ...

    def running(self, handles: Collection[str]) -> set[str]:
        """The handles whose process has not ended, or so recently that its outcome may not be visible yet."""
        ...

    def cancel(self, handles: Collection[str]) -> None:
        """End the processes and wait until they have ended."""
        ...

    def stderr_path(self, handle: str) -> str:
        """The process's log of errors. The file exists from the process's start on."""
        ...


class WorkerState(Enum):
    """The states of a worker: PENDING -> RUNNING, then DONE, GIVEN_UP or, for a retry, PENDING again."""

    PENDING = auto()
    """To be submitted."""
    RUNNING = auto()
    """Its process was submitted and has not been seen to end."""
    DONE = auto()
    """Its process ended in good order, or everything in its shard is recorded."""
    GIVEN_UP = auto()
    """Too many consecutive attempts recorded nothing; the rest of its shard is recorded as failed."""


class LaunchState(Enum):
    """The states of a launch: ACTIVE unless it is left before its workers are DONE or GIVEN_UP."""

    ACTIVE = auto()
    STOPPED = auto()
    """A cell failed and ``fail_fast`` is set: workers are cancelled."""
    DETACHED = auto()
    """``launch.wait`` is false: workers go on without this process, and a later command may attach."""


@dataclass
class Worker:
    """One shard and the processes that work on it, one at a time.

    Args:
        number: names its records file.
        job: the part of its shard that was missing at the latest submission.
        records_offset: first byte of its records file that belongs to this launch.
        handle: of its latest process; None before the first.
        faults: why its latest consecutive attempts, those that recorded nothing, ended early.
        state: where it stands.
    """

    number: int
    job: Job
    records_offset: int
    handle: str | None = None
    faults: list[str] = field(default_factory=list)
    state: WorkerState = WorkerState.PENDING


def new_workers(shards: Sequence[Job]) -> list[Worker]:
    """A worker for each shard that has something missing, numbered by its position."""
    return [
        Worker(number, shard, shard.store.journal.size(str(number)))
        for number, shard in enumerate(shards)
        if shard.missing
    ]


def attached_workers(job: Job) -> list[Worker]:
    """The workers of an earlier launch that may still run, without cells that this plan no longer has.

    Raises:
        UserError: they run other code than this command.
    """
    noted = read_launch_file(job.store)
    array_jobs = sorted({entry["handle"].partition("_")[0] for entry in noted["workers"] if entry["handle"]})
    if array_jobs and (differences := version_differences(code_versions(), noted["code"])):
        raise UserError(
            f"launch: this command has {differences} than the workers of {job.store.root}: attach with what "
            f"they were started with, or scancel {' '.join(array_jobs)} and remove {job.store.launch_path}"
        )
    cells = {cell.key: cell for cell in job.plan.cells}
    unscored = {record.cell.key: record for record in job.unscored}
    return [
        Worker(
            number=entry["number"],
            job=shard_job(
                job,
                [cells[key] for key in entry["cells"] if key in cells],
                [unscored[key] for key in entry["unscored"] if key in unscored],
            ),
            records_offset=entry["since"],
            handle=entry["handle"],
            faults=entry["faults"],
            state=WorkerState.RUNNING if entry["handle"] else WorkerState.PENDING,
        )
        for entry in noted["workers"]
    ]


def read_launch_file(store: Store) -> dict[str, Any]:
    """The contents of workers.json; without workers if the file is missing or damaged."""
    try:
        noted: dict[str, Any] = json.loads(store.launch_path.read_bytes())
        return {"code": noted["code"], "workers": noted["workers"]}
    except (OSError, ValueError, TypeError, KeyError):
        return {"code": {}, "workers": []}


class Supervisor:
    """Runs the workers of one launch to their end.

    Args:
        job: the whole job, whose folder this process has locked.
        backend: where the workers run.
        attached: workers of an earlier launch, cancelled together with this one.
    """

    def __init__(self, job: Job, backend: Backend, attached: Sequence[Worker] = ()) -> None:
        self._job, self._backend = job, backend
        self._workers = list(attached)
        self.state = LaunchState.ACTIVE
        self.has_faults = False  # any attempt ended early: its log is worth keeping

    def run(self, workers: Sequence[Worker]) -> Generator[tuple[Row, int], None, None]:
        """Submit workers and follow them until each is DONE or GIVEN_UP, or the launch is left early.

        Yields:
            Every new row of the records, and the number of workers that were running.

        Raises:
            UserError: a worker met a mistake, or another command has taken over the folder.
        """
        self._workers = list(workers)
        tail = RecordTail(self._job.store, {str(one.number): one.records_offset for one in workers})
        self._submit_pending()
        while (running := self._in_state(WorkerState.RUNNING)) and self.state is LaunchState.ACTIVE:
            # The order matters: a process writes its last record before it ends, so the rows that are read
            # after its end was seen are all it has written.
            ended = self._ended(running)
            for row in tail.rows():
                self._stop_if_failed(row)
                yield row, len(running)
            self._job.confirm()  # nothing is submitted after another command has taken over the folder
            for worker, outcome in ended:
                self._settle(worker, outcome)
            self._submit_pending()
            if self._detaches():
                self.state = LaunchState.DETACHED
                return
            time.sleep(min(_MAX_POLL_SECONDS, POLL_SECONDS * len(self._in_state(WorkerState.RUNNING))))
        self.cancel()
        yield from ((row, 0) for row in tail.rows())  # rows written while workers were being cancelled

    def cancel(self) -> None:
        """End all processes and remove workers.json, unless this launch has detached from its workers."""
        if self.state is LaunchState.DETACHED:
            return
        # The file goes first: a Slurm worker that receives SIGTERM exits only if it is gone.
        self._job.store.launch_path.unlink(missing_ok=True)
        self._backend.cancel([worker.handle for worker in self._unfinished() if worker.handle is not None])

    def _in_state(self, state: WorkerState) -> list[Worker]:
        return [worker for worker in self._workers if worker.state is state]

    def _unfinished(self) -> list[Worker]:
        return [one for one in self._workers if one.state in (WorkerState.PENDING, WorkerState.RUNNING)]

    def _stop_if_failed(self, row: Row) -> None:
        if row["status"] == "failed" and self._job.plan.config.fail_fast:
            self.state = LaunchState.STOPPED

    def _detaches(self) -> bool:
        """Whether to leave the workers that still run to themselves."""
        is_waiting = self._job.plan.config.launch.wait or not self._backend.outlives_launcher
        return not is_waiting and bool(self._in_state(WorkerState.RUNNING))

    def _submit_pending(self) -> None:
        """Start a process for every PENDING worker."""
        workers = self._in_state(WorkerState.PENDING)
        if not workers:
            return
        for worker in workers:
            clear_outcome(self._job.store, worker.number)
        launcher = None if self._backend.outlives_launcher else os.getpid()
        tasks = [
            WorkerTask(one.job, one.number, one.records_offset, code_versions(), launcher) for one in workers
        ]
        # Written before the submission, since a worker takes a missing file for a cancelled launch; and again
        # after it, with the new handles.
        self._write_launch_file()
        for worker, handle in zip(workers, self._backend.submit(tasks), strict=True):
            worker.handle, worker.state = handle, WorkerState.RUNNING
        self._write_launch_file()

    def _write_launch_file(self) -> None:
        """Write workers.json, from which another command can attach to the unfinished workers."""
        if not self._backend.outlives_launcher:
            return
        entries = [
            {
                "number": worker.number,
                "handle": worker.handle,
                "since": worker.records_offset,
                "faults": worker.faults,
                "cells": [cell.key for cell in worker.job.cells],
                "unscored": [record.cell.key for record in worker.job.unscored],
            }
            for worker in self._unfinished()
        ]
        text = json.dumps({"code": code_versions(), "workers": entries}) + "\n"
        self._job.store.write_text(self._job.store.launch_path, text)

    def _ended(self, running: Sequence[Worker]) -> list[tuple[Worker, WorkerOutcome | None]]:
        """The workers whose process has ended, each with its outcome, None if it left none."""
        store = self._job.store
        handles = self._backend.running([str(worker.handle) for worker in running])
        if len(handles) < len(running):
            # An NFS client caches which files are missing: an outcome could be there and not be visible yet,
            # and its worker would be taken for killed.
            store.refresh_nfs()
        outcomes = [(worker, read_outcome(store, worker.number)) for worker in running]
        # On a cluster an outcome is as good as an end: the scheduler takes seconds to report one.
        is_final = self._backend.outlives_launcher
        return [
            (worker, outcome)
            for worker, outcome in outcomes
            if worker.handle not in handles or (is_final and outcome is not None)
        ]

    def _settle(self, worker: Worker, outcome: WorkerOutcome | None) -> None:
        """Move a worker whose process has ended to its next state."""
        outcome = outcome or WorkerOutcome(fault=self._fault_without_outcome(worker))
        if outcome.mistake is not None:
            raise UserError(outcome.mistake)
        if outcome.micro is not None and outcome.decode is not None:
            runner.shrink_batches(self._job, outcome.micro, outcome.decode)
        missing_before = worker.job.missing
        worker.job = remaining_job(worker.job, worker.number, worker.records_offset)
        if outcome.fault is None or not worker.job.missing:
            worker.state = WorkerState.DONE
            return
        self.has_faults = True
        if worker.job.missing < missing_before:
            # Any progress resets the count: a long shard may be preempted often and is still finished.
            worker.faults.clear()
        else:
            worker.faults.append(outcome.fault)
        self._retry_or_give_up(worker, outcome.fault)

    def _retry_or_give_up(self, worker: Worker, fault: str) -> None:
        message = f"worker {worker.number} {fault} with {worker.job.missing} cells to go"
        if len(worker.faults) < MAX_ATTEMPTS:
            stderr = self._backend.stderr_path(str(worker.handle))
            log.warning("%s, see %s: a new one goes on", message, stderr)
            worker.state = WorkerState.PENDING
            return
        attempts = len(worker.faults)
        log.warning("%s, as the %dth in a row that recorded nothing: they are given up", message, attempts)
        self._record_given_up(worker)
        worker.state = WorkerState.GIVEN_UP

    def _fault_without_outcome(self, worker: Worker) -> str:
        """The fault of a process that ended without writing an outcome."""
        has_begun = Path(self._backend.stderr_path(str(worker.handle))).exists()
        return "was killed" if has_begun else "never began, or its machine does not see this folder,"

    def _record_given_up(self, worker: Worker) -> None:
        """Record the rest of a shard as failed.

        A cell that has its image and lacks only scores keeps its older record: the store prefers ``done``.
        """
        reason = (
            f"given up: {MAX_ATTEMPTS} workers in a row recorded nothing of this shard, "
            f"the last one {worker.faults[-1]}"
        )
        failed = [Record(cell, "failed", error=reason, worker=LAUNCHER) for cell in worker.job.plan.cells]
        self._job.store.append(LAUNCHER, failed)

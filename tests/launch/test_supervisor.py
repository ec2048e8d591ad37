"""Retries, giving up and attaching, on a backend that runs no worker process."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from support.stub_sweep import fake_networks, small_plan

from sega_bench import launch
from sega_bench.errors import UserError
from sega_bench.execution import jobs
from sega_bench.launch import supervisor
from sega_bench.launch.local import LocalBackend
from sega_bench.launch.worker import MAX_ATTEMPTS, WorkerOutcome, WorkerTask, code_versions, remaining_job
from sega_bench.store import Record, Store
from sega_bench.system.atomic import is_running


class DyingBackend:
    """Runs no process: each attempt records some cells when it is submitted, and has then ended.

    Args:
        attempts: number of cells that each worker's consecutive attempts record, by its number.
        running: handles of workers that never end. A handle is the worker's number.
        stderr_path: of every attempt.
        outcome: written by every attempt that ends; None writes none, as a killed process does.
    """

    outlives_launcher = False

    def __init__(
        self,
        attempts: Mapping[int, Sequence[int]],
        running: Collection[str] = (),
        stderr_path: str = __file__,
        outcome: WorkerOutcome | None = None,
    ) -> None:
        self._attempts = {number: iter(counts) for number, counts in attempts.items()}
        self._running, self._stderr_path, self._outcome = set(running), stderr_path, outcome
        self.submitted: list[int] = []
        self.cancelled: set[str] = set()

    def submit(self, tasks: Sequence[WorkerTask]) -> list[str]:
        for task in tasks:
            self.submitted.append(task.number)
            self._record(task, next(self._attempts[task.number]))
        return [str(task.number) for task in tasks]

    def _record(self, task: WorkerTask, count: int) -> None:
        worker, store = str(task.number), task.job.store
        for cell in remaining_job(task.job, task.number, task.records_offset).plan.cells[:count]:
            image, digest = store.write_image(cell, np.zeros((16, 16, 3), np.uint8))
            store.append(worker, [Record(cell, "done", image, digest, worker=worker)])
        if self._outcome is not None and worker not in self._running:
            store.write_text(store.outcome_path(task.number), json.dumps(asdict(self._outcome)))

    def running(self, handles: Collection[str]) -> set[str]:
        return self._running.intersection(handles)

    def cancel(self, handles: Collection[str]) -> None:
        self.cancelled.update(handles)

    def stderr_path(self, handle: str) -> str:
        return self._stderr_path


def launch_rows(folder: Path, backend: DyingBackend, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The rows of a launch of twelve cells on two workers, six each."""
    monkeypatch.setattr(launch, "_backend", lambda job: backend)
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.0)
    plan = small_plan(folder, "seeds=4", "launch=local", "launch.workers=2")
    processes = launch.requested_processes(plan.config)
    with fake_networks(), jobs.locked(plan, processes) as job, launch.Launch(job) as launched:
        assert [len(shard.cells) for shard in launched._sharding.shards] == [6, 6]
        return [row for row, _ in launched.rows()]


def test_a_shard_is_given_up_after_three_consecutive_attempts_without_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts that record a cell in between reset the count; the other worker is not affected."""
    backend = DyingBackend({0: [1, 0, 0, 1, *[0] * MAX_ATTEMPTS], 1: [6]})
    rows = launch_rows(tmp_path, backend, monkeypatch)
    assert (backend.submitted.count(0), backend.submitted.count(1)) == (4 + MAX_ATTEMPTS, 1)
    failed = [row for row in rows if row["status"] == "failed"]
    assert {row["worker"] for row in failed} == {supervisor.LAUNCHER}
    assert {row["error"] for row in failed} == {
        "given up: 3 workers in a row recorded nothing of this shard, the last one was killed"
    }
    assert len({row["key"] for row in failed}) == 4
    assert len({row["key"] for row in rows}) == 12
    assert backend.cancelled == set()


def test_a_shard_that_makes_progress_is_never_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here its worker is killed after each cell."""
    backend = DyingBackend({0: [1] * 6, 1: [6]})
    rows = launch_rows(tmp_path, backend, monkeypatch)
    assert backend.submitted.count(0) == 6 > MAX_ATTEMPTS
    assert [row["status"] for row in rows] == ["done"] * 12


def test_workers_without_a_log_file_are_reported_as_never_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example because the nodes of a cluster do not see the folder."""
    backend = DyingBackend({0: [0] * MAX_ATTEMPTS, 1: [6]}, stderr_path=str(tmp_path / "nowhere"))
    rows = launch_rows(tmp_path, backend, monkeypatch)
    failed = {row["error"] for row in rows if row["status"] == "failed"}
    assert len(failed) == 1
    assert "the last one never began, or its machine does not see this folder" in failed.pop()


def test_the_file_system_is_refreshed_before_a_worker_counts_as_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outcome exists, but becomes visible only with the refresh."""

    def refresh_nfs(store: Store) -> None:
        store.write_text(store.outcome_path(0), json.dumps(asdict(WorkerOutcome(mistake="launch: was late"))))

    monkeypatch.setattr(Store, "refresh_nfs", refresh_nfs)
    with pytest.raises(UserError, match="launch: was late"):
        launch_rows(tmp_path, DyingBackend({0: [0], 1: [6]}), monkeypatch)


def test_one_workers_mistake_cancels_all_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake = WorkerOutcome(mistake="launch: worker 0 is different")
    backend = DyingBackend({0: [0], 1: [1]}, running={"1"}, outcome=mistake)
    with pytest.raises(UserError, match="worker 0 is different"):
        launch_rows(tmp_path, backend, monkeypatch)
    assert backend.cancelled == {"0", "1"}


def test_a_command_with_other_versions_refuses_to_attach(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    entry = {"number": 0, "handle": "7_0", "since": 0, "faults": [], "cells": [], "unscored": []}
    state = {"code": code_versions() | {"torch": "1.0"}, "workers": [entry]}
    with jobs.locked(plan, jobs.Processes(2, are_remote=True)) as job:
        job.store.write_text(job.store.launch_path, json.dumps(state))
        message = (
            r"^launch: this command has another torch \(.*, not 1.0\) than the workers .* scancel 7 and "
        )
        with pytest.raises(UserError, match=message):
            supervisor.attached_workers(job)
        job.store.write_text(job.store.launch_path, json.dumps(state | {"code": code_versions()}))
        assert [worker.handle for worker in supervisor.attached_workers(job)] == ["7_0"]


class Unpicklable:
    """A task that cannot be sent to a process."""

    number = 1

    def __reduce__(self) -> str:
        raise OSError("no space")


def test_cancel_ends_the_processes_of_a_submission_that_failed_halfway(tmp_path: Path) -> None:
    backend = LocalBackend(Store(tmp_path), [])
    sleeper = partial(time.sleep, 1000)
    sleeper.number = 0  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="no space"):
        backend.submit(cast(Any, [sleeper, Unpicklable()]))
    (process,) = backend._jobs
    assert is_running(int(process))
    backend.cancel([])
    assert backend.running([process]) == set()

"""The workers of one command: who is at work, who takes over from whom, and what is given up."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sega_bench.errors import UserError
from sega_bench.execution import runner
from sega_bench.execution.jobs import Job
from sega_bench.launch.worker import (
    ATTEMPTS,
    Errand,
    Outcome,
    clear,
    code,
    differences,
    left,
    part_of,
    read_outcome,
)
from sega_bench.store import Record, Store
from sega_bench.store.following import Following

LAUNCHER = "launcher"
"""The records file of what no worker could do."""

POLL_SECONDS = 0.05
"""Between two looks at the folder, for each worker: a file system that many share is not kept busy by it."""
_MOST_POLL_SECONDS = 5.0

log = logging.getLogger(__name__)

Row = dict[str, Any]


class Host(Protocol):
    """Where workers run."""

    outlives_launcher: bool
    """Whether they go on when the launching process is gone."""

    def start(self, errands: Sequence[Errand]) -> list[str]:
        """Start a worker for each errand; returns a handle of each, which another process can use."""
        ...

    def alive(self, handles: Collection[str]) -> set[str]:
        """Which of them have not ended, or have and may yet be heard of."""
        ...

    def end(self, handles: Collection[str]) -> None:
        """End them, and wait until they have."""
        ...

    def log(self, handle: str) -> str:
        """The file, there from its beginning on, in which one of them said what went wrong."""
        ...


@dataclass
class Worker:
    """One shard's process, and what came of those before it.

    Args:
        number: names its records file.
        part: what it is to make.
        since: bytes of its records that are older than the part.
        handle: of its process; None before it has one.
        faults: of those before it that recorded nothing, since one that did: why they ended.
    """

    number: int
    part: Job
    since: int
    handle: str | None = None
    faults: list[str] = field(default_factory=list)


def enlisted(parts: Sequence[Job]) -> list[Worker]:
    """A worker for each part that has something to make."""
    return [
        Worker(number, part, part.store.journal.size(str(number)))
        for number, part in enumerate(parts)
        if part.missing
    ]


def enlisted_before(job: Job) -> list[Worker]:
    """Workers of a launch that its command left alone, as far as their cells are still asked for.

    Raises:
        UserError: they run other code than this command.
    """
    state = read_state(job.store)
    started = sorted({one["handle"].partition("_")[0] for one in state["workers"] if one["handle"]})
    if started and (others := differences(code(), state["code"])):
        raise UserError(
            f"launch: this command has {others} than the workers of {job.store.root}: attach with what they "
            f"were started with, or scancel {' '.join(started)} and remove {job.store.launch_path}"
        )
    cells = {cell.key: cell for cell in job.plan.cells}
    unscored = {record.cell.key: record for record in job.unscored}
    return [
        Worker(
            part=part_of(
                job,
                [cells[key] for key in one.pop("cells") if key in cells],
                [unscored[key] for key in one.pop("unscored") if key in unscored],
            ),
            **one,
        )
        for one in state["workers"]
    ]


def read_state(store: Store) -> dict[str, Any]:
    """What a launch noted of its workers that outlive it; no workers if there is none, or it is damaged."""
    try:
        state: dict[str, Any] = json.loads(store.launch_path.read_bytes())
        return {"code": state["code"], "workers": state["workers"]}
    except (OSError, ValueError, TypeError, KeyError):
        return {"code": {}, "workers": []}


class Crew:
    """The processes of one command.

    Args:
        job: the whole.
        host: where they run.
        before: those that another command of this job has left alone.
    """

    def __init__(self, job: Job, host: Host, before: Sequence[Worker] = ()) -> None:
        self._job, self._host = job, host
        self._running = list(before)
        self.has_faults = self.is_stopped = self.is_detached = False

    def work(self, workers: Sequence[Worker]) -> Generator[tuple[Row, int], None, None]:
        """Rows as they come, and how many are at work, until every part is done or given up.

        With workers that go on alone it returns before, if it is not to wait.
        """
        following = Following(self._job.store, {str(worker.number): worker.since for worker in workers})
        config = self._job.plan.config
        is_waiting = config.launch.wait or not self._host.outlives_launcher
        self._running = list(workers)
        self._start([worker for worker in workers if worker.handle is None])
        while self._running and not self.is_stopped:
            running = self._running
            alive = self._host.alive([str(worker.handle) for worker in running])
            if len(alive) < len(running):
                self._job.store.look_anew()  # before who has ended is taken for silent
            heard = {worker.number: read_outcome(self._job.store, worker.number) for worker in running}
            for row in following.rows():  # whoever has ended has written all it will
                self.is_stopped |= row["status"] == "failed" and config.fail_fast
                yield row, len(running)
            self._job.confirm()
            ended = {
                worker.number: heard[worker.number]
                for worker in running
                if worker.handle not in alive or (self._host.outlives_launcher and heard[worker.number])
            }
            self._replace(ended)
            if self._running and not is_waiting:
                self.is_detached = True
                return
            time.sleep(min(_MOST_POLL_SECONDS, POLL_SECONDS * len(self._running)))
        self.call_off()
        yield from ((row, 0) for row in following.rows())

    def call_off(self) -> None:
        """End all that are still at work, unless they are to go on alone."""
        if not self.is_detached:
            self._job.store.launch_path.unlink(missing_ok=True)
            self._host.end([worker.handle for worker in self._running if worker.handle is not None])

    def _start(self, workers: Sequence[Worker]) -> None:
        if not workers:
            return
        store = self._job.store
        for worker in workers:
            clear(store, worker.number)
        launcher = None if self._host.outlives_launcher else os.getpid()
        errands = [Errand(one.part, one.number, one.since, code(), launcher) for one in workers]
        self._note()  # before there is one: a worker that is called off must know
        for worker, handle in zip(workers, self._host.start(errands), strict=True):
            worker.handle = handle
        self._note()

    def _note(self) -> None:
        """Who is at work, for another command to find them by."""
        if not self._host.outlives_launcher:
            return
        noted = [
            {
                "number": worker.number,
                "handle": worker.handle,
                "since": worker.since,
                "faults": worker.faults,
                "cells": [cell.key for wave in worker.part.waves for cell in wave.cells],
                "unscored": [record.cell.key for record in worker.part.unscored],
            }
            for worker in self._running
        ]
        text = json.dumps({"code": code(), "workers": noted}) + "\n"
        self._job.store.write_text(self._job.store.launch_path, text)

    def _replace(self, ended: Mapping[int, Outcome | None]) -> None:
        """Leave out those that have ended, and give those a successor that did so before their time."""
        self._running = [
            worker for worker in self._running if worker.number not in ended or self._goes_on(worker, ended)
        ]
        self._start([worker for worker in self._running if worker.number in ended])

    def _goes_on(self, worker: Worker, ended: Mapping[int, Outcome | None]) -> bool:
        """Whether a worker that has ended gets a successor; three in a row that recorded nothing give up."""
        outcome = ended[worker.number] or Outcome(fault=self._silence(worker))
        if outcome.mistake is not None:
            raise UserError(outcome.mistake)
        if outcome.micro is not None and outcome.decode is not None:
            runner.shrink(self._job, outcome.micro, outcome.decode)
        to_go = worker.part.missing
        worker.part = left(worker.part, worker.number, worker.since)
        if outcome.fault is None or not worker.part.missing:
            return False
        self.has_faults = True
        if worker.part.missing < to_go:  # however long a shard is and however often its worker is killed
            worker.faults.clear()
        else:
            worker.faults.append(outcome.fault)
        said = f"worker {worker.number} {outcome.fault} with {worker.part.missing} cells to go"
        if len(worker.faults) == ATTEMPTS:
            log.warning("%s, as the %dth in a row that recorded nothing: they are given up", said, ATTEMPTS)
            self._give_up(worker)
            return False
        log.warning("%s, see %s: a new one goes on", said, self._host.log(str(worker.handle)))
        return True

    def _silence(self, worker: Worker) -> str:
        """How a worker ended that left no word."""
        has_begun = Path(self._host.log(str(worker.handle))).exists()
        return "was killed" if has_begun else "never began, or its machine does not see this folder,"

    def _give_up(self, worker: Worker) -> None:
        cells = worker.part.plan.cells  # of one that is made and lacks scores the older record counts
        last = worker.faults[-1]
        reason = f"given up: {ATTEMPTS} workers in a row recorded nothing of this shard, the last one {last}"
        failed = [Record(cell, "failed", error=reason, worker=LAUNCHER) for cell in cells]
        self._job.store.append(LAUNCHER, failed)

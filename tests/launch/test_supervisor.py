"""Who takes over from whom, what is given up, and whom a command may attach to: no process is started."""

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
from support.stub_sweep import planned, stand_ins

from sega_bench import launch
from sega_bench.errors import UserError
from sega_bench.execution import jobs
from sega_bench.launch import supervisor
from sega_bench.launch.local import Local
from sega_bench.launch.worker import ATTEMPTS, Errand, Outcome, code, left
from sega_bench.store import Record, Store
from sega_bench.system.atomic import is_running


class Mortuary:
    """Where each worker's lives record so many cells, one after the other, and are over without a word."""

    outlives_launcher = False

    def __init__(
        self,
        lives: Mapping[int, Sequence[int]],
        alive: Collection[str] = (),
        log: str = __file__,
        outcome: Outcome | None = None,
    ) -> None:
        self._lives = {worker: iter(counts) for worker, counts in lives.items()}
        self._alive, self._log, self._outcome = set(alive), log, outcome
        self.started: list[int] = []
        self.ended: set[str] = set()

    def start(self, errands: Sequence[Errand]) -> list[str]:
        for errand in errands:
            worker = str(errand.number)
            self.started.append(errand.number)
            part = left(errand.part, errand.number, errand.since)
            for cell in part.plan.cells[: next(self._lives[errand.number])]:
                image, digest = part.store.write_image(cell, np.zeros((16, 16, 3), np.uint8))
                part.store.append(worker, [Record(cell, "done", image, digest, worker=worker)])
            if self._outcome is not None and worker not in self._alive:
                part.store.write_text(
                    part.store.outcome_path(errand.number), json.dumps(asdict(self._outcome))
                )
        return [str(errand.number) for errand in errands]

    def alive(self, handles: Collection[str]) -> set[str]:
        return self._alive.intersection(handles)

    def end(self, handles: Collection[str]) -> None:
        self.ended.update(handles)

    def log(self, handle: str) -> str:
        return self._log


def rows_of(folder: Path, host: Mortuary, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What two such workers leave of twelve cells, six each."""
    monkeypatch.setattr(launch, "_host", lambda job: host)
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.0)
    made = planned(folder, "seeds=4", "launch=local", "launch.workers=2")
    with stand_ins(), jobs.locked(made, launch.asked(made.config)) as job, launch.Launch(job) as launched:
        assert [len(shard.cells) for shard in launched._deal.shards] == [6, 6]
        return [row for row, _ in launched.rows()]


def test_a_shard_of_which_three_in_a_row_record_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two lives that did record something; the other worker does what it should."""
    host = Mortuary({0: [1, 0, 0, 1, *[0] * ATTEMPTS], 1: [6]})
    seen = rows_of(tmp_path, host, monkeypatch)
    assert (host.started.count(0), host.started.count(1)) == (4 + ATTEMPTS, 1)
    failed = [row for row in seen if row["status"] == "failed"]
    assert {row["worker"] for row in failed} == {supervisor.LAUNCHER}
    assert {row["error"] for row in failed} == {
        "given up: 3 workers in a row recorded nothing of this shard, the last one was killed"
    }
    assert len({row["key"] for row in failed}) == 4
    assert len({row["key"] for row in seen}) == 12
    assert host.ended == set()


def test_a_shard_that_comes_on_is_never_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often its worker is killed: here after each cell."""
    host = Mortuary({0: [1] * 6, 1: [6]})
    seen = rows_of(tmp_path, host, monkeypatch)
    assert host.started.count(0) == 6 > ATTEMPTS
    assert [row["status"] for row in seen] == ["done"] * 12


def test_workers_that_leave_not_even_a_log_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the nodes of a cluster do not see the folder."""
    host = Mortuary({0: [0] * ATTEMPTS, 1: [6]}, log=str(tmp_path / "nowhere"))
    failed = {row["error"] for row in rows_of(tmp_path, host, monkeypatch) if row["status"] == "failed"}
    assert len(failed) == 1
    assert "the last one never began, or its machine does not see this folder" in failed.pop()


def test_what_a_shared_file_system_shows_late_is_asked_for_before_a_worker_counts_as_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here an outcome that is there, but is not seen before the folder is looked at anew."""

    def look_anew(store: Store) -> None:
        store.write_text(store.outcome_path(0), json.dumps(asdict(Outcome(mistake="launch: was late"))))

    monkeypatch.setattr(Store, "look_anew", look_anew)
    with pytest.raises(UserError, match="launch: was late"):
        rows_of(tmp_path, Mortuary({0: [0], 1: [6]}), monkeypatch)


def test_one_worker_of_other_code_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is at work, and is told to end."""
    host = Mortuary({0: [0], 1: [1]}, alive={"1"}, outcome=Outcome(mistake="launch: worker 0 is different"))
    with pytest.raises(UserError, match="worker 0 is different"):
        rows_of(tmp_path, host, monkeypatch)
    assert host.ended == {"0", "1"}


def test_a_command_of_other_code_does_not_attach(tmp_path: Path) -> None:
    """Nor does it end the tasks that it finds."""
    made = planned(tmp_path)
    noted = {"number": 0, "handle": "7_0", "since": 0, "faults": [], "cells": [], "unscored": []}
    state = {"code": code() | {"torch": "1.0"}, "workers": [noted]}
    with jobs.locked(made, jobs.Processes(2, are_elsewhere=True)) as job:
        job.store.write_text(job.store.launch_path, json.dumps(state))
        said = r"^launch: this command has another torch \(.*, not 1.0\) than the workers .* scancel 7 and "
        with pytest.raises(UserError, match=said):
            supervisor.enlisted_before(job)
        job.store.write_text(job.store.launch_path, json.dumps(state | {"code": code()}))
        assert [worker.handle for worker in supervisor.enlisted_before(job)] == ["7_0"]


class Unpicklable:
    """Nothing that can be sent to a process."""

    number = 1

    def __reduce__(self) -> str:
        raise OSError("no space")


def test_what_was_started_before_a_start_failed_is_ended(tmp_path: Path) -> None:
    host = Local(Store(tmp_path), [])
    sleeper = partial(time.sleep, 1000)
    sleeper.number = 0  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="no space"):
        host.start(cast(Any, [sleeper, Unpicklable()]))
    (process,) = host._jobs
    assert is_running(int(process))
    host.end([])
    assert host.alive([process]) == set()

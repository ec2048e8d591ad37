"""A study on several processes, for real: it comes to what one process does, whoever dies."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support.command_line import call
from support.launched import LOCAL, rows_by_worker, start_command, wait_for_rows, worker_pids
from support.small_sweep import hashes, store
from support.study_runs import study, written

from sega_bench import launch
from sega_bench.errors import UserError

FEW = ("study.trials=4", "study.batch=2", "study.min_resource=null", "engine.threads=1", "engine.wave_rows=4")


def answers(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store(folder).answers_dir / "answers.json").read_text())
    return found


def test_a_study_on_two_workers_one_of_them_killed_comes_to_what_one_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    process = start_command(*written(two, *FEW, *LOCAL))
    wait_for_rows(two, "1", 3, process)
    (victim,) = worker_pids(two, "1")
    os.kill(victim, signal.SIGKILL)
    said, wrong = process.communicate()
    assert process.returncode == 0, wrong
    assert "worker 1 was killed with" in " ".join(wrong.split())
    assert "4 trials: 2 of them on 4 prompts x seeds" in said
    assert call(monkeypatch, *written(one, *FEW)) == 0
    assert answers(two)["best"] == answers(one)["best"]  # evaluations differ where trunks are cut
    assert hashes(two) == hashes(one)
    assert set(rows_by_worker(two)) == {"0", "1"}
    trials = [(store(folder).answers_dir / "trials.csv").read_text() for folder in (one, two)]
    assert trials[0] == trials[1]


def test_a_study_waits_for_its_workers(tmp_path: Path) -> None:
    made = study(tmp_path, "launch=slurm", "launch.workers=2", "launch.wait=false", "dry_run=true")
    with pytest.raises(UserError, match=r"^launch\.wait is false, but a study"):
        launch.requested_processes(made.config)

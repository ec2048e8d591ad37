"""A study on real worker processes gives the results of one process, even if a worker is killed."""

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
from support.study_runs import command_line, small_study

from sega_bench import launch
from sega_bench.errors import UserError

FEW = ("study.trials=4", "study.batch=2", "study.min_resource=null", "engine.threads=1", "engine.wave_rows=4")


def read_answers(folder: Path) -> dict[str, Any]:
    answers: dict[str, Any] = json.loads((store(folder).answers_dir / "answers.json").read_text())
    return answers


def test_two_workers_give_the_results_of_one_process_even_if_one_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    process = start_command(*command_line(two, *FEW, *LOCAL))
    wait_for_rows(two, "1", 3, process)
    (victim,) = worker_pids(two, "1")
    os.kill(victim, signal.SIGKILL)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "worker 1 was killed with" in " ".join(errors.split())
    assert "4 trials: 2 of them on 4 prompts x seeds" in output
    assert call(monkeypatch, *command_line(one, *FEW)) == 0
    assert read_answers(two)["best"] == read_answers(one)["best"]  # costs differ: shards split trunks
    assert hashes(two) == hashes(one)
    assert set(rows_by_worker(two)) == {"0", "1"}
    trials = [(store(folder).answers_dir / "trials.csv").read_text() for folder in (one, two)]
    assert trials[0] == trials[1]


def test_a_study_refuses_to_launch_without_waiting(tmp_path: Path) -> None:
    resolved = small_study(tmp_path, "launch=slurm", "launch.workers=2", "launch.wait=false", "dry_run=true")
    with pytest.raises(UserError, match=r"^launch\.wait is false, but a study"):
        launch.requested_processes(resolved.config)

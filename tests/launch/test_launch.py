"""Launches with real worker processes on one machine, and the tasks that workers execute."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.launched import LOCAL, comparable_rows, rows_by_worker, start_command, wait_for_rows, worker_pids
from support.small_sweep import hashes, overrides, run, small, store
from support.stub_sweep import fake_networks, small_plan

from sega_bench import launch
from sega_bench.config import Config
from sega_bench.errors import UserError
from sega_bench.execution import jobs
from sega_bench.execution.resume import REFERENCE_FAILED
from sega_bench.launch import local
from sega_bench.launch.worker import MAX_ATTEMPTS, WorkerTask, code_versions, shard_job
from sega_bench.planning.planner import plan

THREE_TRUNKS = ("seeds=3", "axes.edit_threshold=[0.5,0.6,0.7,0.8,0.9]", "engine.threads=1")


def lacks_reference(row: dict[str, Any]) -> bool:
    """Whether a row has no scores because its reference was missing."""
    return REFERENCE_FAILED in (row["error"] or "")


@pytest.mark.parametrize(
    ("count", "message"), [(2, "2 workers; at most"), (4, "4 workers, more than the 3 trunks; at most")]
)
def test_workers_generate_the_same_sweep_as_one_process(count: int, message: str, tmp_path: Path) -> None:
    """One of the three trunks is cut, so some cells are scored only after the other workers have ended."""
    one, several = tmp_path / "one", tmp_path / "several"
    process = start_command(*overrides(several, *THREE_TRUNKS, "launch=local", f"launch.workers={count}"))
    stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, "")
    assert message in stdout
    run(one, *THREE_TRUNKS)
    assert hashes(several) == hashes(one)
    assert comparable_rows(several) == comparable_rows(one)
    rows = rows_by_worker(several)
    assert set(rows) == {str(number) for number in range(count)}
    for worker, own in rows.items():
        assert {row["worker"] for row in own if lacks_reference(row)} <= {worker}
    keys = [row["key"] for own in rows.values() for row in own]
    recorded_twice = {key for key in keys if keys.count(key) > 1}
    assert {row["key"] for own in rows.values() for row in own if lacks_reference(row)} == recorded_twice
    plans = [store(folder).read_plan() for folder in (one, several)]
    assert plans[0] is not None
    assert plans[1] is not None
    assert plans[0]["engine"] == plans[1]["engine"]
    assert plans[0]["keys"] == plans[1]["keys"]
    assert {path.name for path in store(several).root.iterdir()} >= {"results.parquet", "report", "grids"}
    assert not store(several).launch_dir.exists()


def test_a_sweep_survives_killed_workers_and_launchers(tmp_path: Path) -> None:
    """A killed worker is retried; workers end on Ctrl-C and when their launcher dies."""
    words = ("seeds=40", "engine.wave_rows=3", "engine.threads=1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start_command(*overrides(killed, *words, *LOCAL))
    wait_for_rows(killed, "0", 3, process)
    (victim,) = worker_pids(killed, "0")
    os.kill(victim, signal.SIGKILL)
    before = len(rows_by_worker(killed)["0"])
    wait_for_rows(killed, "0", before + 9, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "worker 0 was killed with" in " ".join(stderr.split())
    assert "the same command continues it" in stderr
    assert "Traceback" not in stderr
    assert worker_pids(killed) == []
    assert not store(killed).lock_path.exists()

    process = start_command(*overrides(killed, *words, *LOCAL))
    before = len(rows_by_worker(killed)["1"])
    wait_for_rows(killed, "1", before + 1, process)
    process.kill()
    process.communicate()
    while worker_pids(killed):
        time.sleep(0.1)

    process = start_command(*overrides(killed, *words, *LOCAL))
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    run(whole, *words)
    assert hashes(killed) == hashes(whole)
    assert comparable_rows(killed) == comparable_rows(whole)
    rows = [row for own in rows_by_worker(killed).values() for row in own]
    keys = [row["key"] for row in rows if not lacks_reference(row)]
    assert len(keys) == len(set(keys)) == 120


def test_the_dry_run_reports_more_workers_than_trunks(tmp_path: Path) -> None:
    line = launch.describe_sharding(plan(small(tmp_path, "launch=local", "launch.workers=9")))["launch"]
    assert line.startswith("9 workers, more than the 2 trunks; ")
    assert "have nothing to make" in line
    assert "UNet evaluations each" in line


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "device_of", lambda config: torch.device(config.engine.device))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


def local_config(*words: str) -> Config:
    return small(Path("nowhere"), "launch=local", *words)


@pytest.mark.usefixtures("three_gpus")
def test_each_gpu_gets_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch.requested_processes(local_config("engine.device=cuda")).count == 3
    assert launch.requested_processes(local_config("engine.device=cuda", "launch.workers=2")).count == 2
    assert local.visible_gpus(local_config("engine.device=cuda")) == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5ab,4,7")
    assert local.visible_gpus(local_config("engine.device=cuda")) == ["GPU-5ab", "4", "7"]
    with pytest.raises(UserError, match=r"^launch.workers is 4, but there are 3 GPUs"):
        launch.requested_processes(local_config("engine.device=cuda", "launch.workers=4"))


def test_cpu_workers_divide_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    sweep = plan(small(tmp_path))
    threads = {}
    for count in ("auto", 2, 3, 20):
        processes = launch.requested_processes(local_config("engine.device=cpu", f"launch.workers={count}"))
        threads[count] = (processes.count, jobs.prepare(sweep, processes).threads)
    assert threads == {"auto": (1, None), 2: (2, 4), 3: (3, 2), 20: (20, 1)}


CLUSTER = ("launch=slurm", "launch.workers=2")


def test_a_cluster_sweep_is_planned_for_gpus_that_the_launching_machine_lacks(tmp_path: Path) -> None:
    cells = plan(small(tmp_path, *CLUSTER)).cells
    assert {cell.dtype for cell in cells} == {"float16"}
    cells = plan(small(tmp_path, *CLUSTER, "launch.gpus_per_worker=0")).cells
    assert {cell.dtype for cell in cells} == {"float32"}


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"sega_bench": "0.1 (ab)"}, "has another sega_bench ("),
        (
            {"torch": "1.0"},
            f"has another torch ({code_versions()['torch']}, not 1.0) than the launching command",
        ),
        ({"Python": "3.9.1"}, "has another Python ("),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_worker_with_other_versions_than_its_launcher_generates_nothing(
    versions: dict[str, str], message: str, tmp_path: Path
) -> None:
    with fake_networks(), jobs.locked(small_plan(tmp_path)) as job:
        outcome = WorkerTask(job, 0, 0, code_versions() | versions)._run_attempt(lambda: False)
    assert outcome is not None
    assert str(outcome.mistake).startswith("launch: worker 0 on ")
    assert message in str(outcome.mistake)
    assert job.store.rows() == ([], 0)


def test_a_worker_that_is_always_preempted_finishes_a_wave_in_each_attempt(tmp_path: Path) -> None:
    with fake_networks(), jobs.locked(small_plan(tmp_path, "engine.wave_rows=3")) as job:
        task = WorkerTask(shard_job(job, job.plan.cells, ()), 0, 0, code_versions())
        preemptions = 0
        while task._run_attempt(lambda: True) is None:
            preemptions += 1
    assert preemptions == 1  # two waves in all
    assert len(job.store.done_keys(job.store.rows()[0])) == 6


def test_a_worker_gives_up_after_three_attempts_that_recorded_nothing(tmp_path: Path) -> None:
    with fake_networks(), jobs.locked(small_plan(tmp_path)) as job:
        task = WorkerTask(shard_job(job, job.plan.cells, ()), 0, 0, code_versions())
        for _ in range(MAX_ATTEMPTS):  # each is killed before it records anything
            assert task._count_attempt(6) <= MAX_ATTEMPTS
        outcome = task._run_attempt(lambda: False)
    assert outcome is not None
    assert outcome.fault == "began 3 times and recorded nothing, interrupted each time"


def test_workers_on_a_cluster_keep_the_folder_locked(tmp_path: Path) -> None:
    sweep = small_plan(tmp_path)
    with jobs.locked(sweep) as job:
        job.store.write_text(job.store.launch_path, "{}")
    with pytest.raises(UserError, match="has workers on a cluster"), jobs.locked(sweep):
        pass
    assert not job.store.lock_path.exists()
    with jobs.locked(sweep, jobs.Processes(2, are_remote=True)):
        pass

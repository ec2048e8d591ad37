"""The W&B runs of a sweep on several workers: one of each, and one of what they come to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import stub_sweep
from support.launched import start_command
from support.small_sweep import overrides, store
from support.stub_sweep import fake_networks, small_plan
from support.wandb_runs import read, updates, without_account
from support.wandb_server import FAULTS, Backend, faulty, serving

from sega_bench.execution import jobs, runner
from sega_bench.execution.jobs import Job
from sega_bench.launch import wandb_logging
from sega_bench.launch.worker import WorkerOutcome, WorkerTask, code_versions, shard_job
from sega_bench.store import Store
from sega_bench.tracking import run_ids, wandb_run


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with without_account(tmp_path, monkeypatch):
        yield


def task(job: Job, number: int) -> WorkerTask:
    """A worker's, of all cells, in the folder of a launch that has begun."""
    runner.write_plan_for_workers(job)
    run_ids.run_id(job.store)
    return WorkerTask(shard_job(job, job.plan.cells, ()), number, 0, code_versions())


def offline(made: Store) -> list[list[dict[str, Any]]]:
    """Every run that was kept, in order of time and name."""
    return [read(path) for path in sorted(made.wandb_dir.glob("offline-run-*"))]


def started(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What a run is."""
    (run,) = [record["run"] for record in records if record["type"] == "run"]
    return {name: run[name] for name in ("display_name", "run_group", "job_type", "run_id")}


def points(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def test_two_workers_and_what_they_come_to_are_a_group_of_three_runs(tmp_path: Path) -> None:
    process = start_command(*overrides(tmp_path, "launch=local", "launch.workers=2", "wandb.mode=offline"))
    said, wrong = process.communicate()
    assert (process.returncode, wrong) == (0, "")
    made = store(tmp_path)
    found = {started(records)["display_name"]: records for records in offline(made)}
    types = {name: started(records)["job_type"] for name, records in found.items()}
    assert types == {"small-local": "report", "small-local/0": "shard", "small-local/1": "shard"}
    groups = {started(records)["run_group"] for records in found.values()}
    assert groups == {f"small-local-{run_ids.run_id(made)}"}
    report = found.pop("small-local")
    assert started(report)["run_id"] == run_ids.run_id(made)
    summary = updates(report)
    assert (summary["cells.nrows"], summary["cells_done"], summary["cells_in_all"]) == (6, 6, 6)
    assert any(record["type"] == "artifact" and record["artifact"]["type"] == "results" for record in report)
    for records in found.values():  # pictures, tables and files are in the report alone
        assert not any(record["type"] == "artifact" for record in records)
        assert [point["cells_done"] for point in points(records)] == [1, 2, 3]
        last = points(records)[-1]
        assert {"cells_failed", "cells_per_second", "clip_concept_delta_so_far"} < set(last)
        assert all(isinstance(value, int | float) for value in last.values())
    assert f"wandb sync {made.wandb_dir}" in " ".join(said.split())


def test_a_requeued_worker_goes_on_with_its_run(tmp_path: Path) -> None:
    with (
        fake_networks(),
        jobs.locked(small_plan(tmp_path, "engine.wave_rows=3", "wandb.mode=offline")) as job,
    ):
        mine = task(job, 3)
        assert mine._run_attempt(lambda: True) is None
        half = len(job.store.rows()[0])
        time.sleep(1)  # W&B names an offline run by the second
        outcome = mine._run_attempt(lambda: True)
    assert outcome is not None
    assert outcome.fault is outcome.mistake is None
    lives = offline(job.store)
    assert len({started(records)["run_id"] for records in lives}) == 1
    assert started(lives[0])["run_id"] == run_ids.run_id(job.store, "3") != run_ids.run_id(job.store)
    done = sorted(point["cells_done"] for records in lives for point in points(records))
    assert 0 < half < 6
    assert done == [1, 2, 3, 4, 5, 6]


def test_a_workers_run_is_sent_while_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Backend) as address:
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", address)
        with fake_networks(), jobs.locked(small_plan(tmp_path, "wandb.mode=online")) as job:
            outcome = task(job, 0)._run_attempt(lambda: False)
    assert outcome == WorkerOutcome(job.batching.micro, job.batching.decode)
    assert b'\\"cells_done\\":6' in Backend.uploads["file_stream"]
    assert not any(name.startswith("media/") for name in Backend.uploads)
    assert run_ids.places(job.store, None) == {}  # nothing was kept offline


@pytest.mark.parametrize("fault", FAULTS)
def test_a_dead_server_changes_nothing_of_a_worker(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_logging, "FINISH_SECONDS", 2.0)
    limits = {"init_timeout": 2.0, "finish_timeout": 4.0}
    monkeypatch.setattr(wandb_run, "_SETTINGS", wandb_run._SETTINGS.model_copy(update=limits))
    with faulty(fault) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with fake_networks(), jobs.locked(small_plan(tmp_path, "wandb.mode=online")) as job:
            outcome = task(job, 0)._run_attempt(lambda: False)
    assert outcome == WorkerOutcome(job.batching.micro, job.batching.decode)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert stub_sweep.run_sweep(tmp_path / "alone") == 0
    assert stub_sweep.results(tmp_path) == stub_sweep.results(tmp_path / "alone")


def test_a_run_that_cannot_be_told_of_costs_the_worker_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "read_plan", lambda self: None)
    with fake_networks(), jobs.locked(small_plan(tmp_path, "wandb.mode=offline")) as job:
        outcome = task(job, 0)._run_attempt(lambda: False)
    assert outcome == WorkerOutcome(job.batching.micro, job.batching.decode)


def test_what_is_to_be_sent_is_one_command(tmp_path: Path) -> None:
    made = Store(tmp_path / "a sweep")
    assert run_ids.places(made, None) == {}
    one = made.wandb_dir / "offline-run-1" / "run-a.wandb"
    made.write_text(one, "")
    sync = f"wandb sync '{one.parent}'"
    assert run_ids.places(made, sync) == {"W&B": sync}
    made.write_text(made.wandb_dir / "offline-run-2" / "run-b.wandb", "")
    everything = f"wandb sync '{made.wandb_dir}'"
    assert run_ids.places(made, sync) == {"W&B": everything}
    assert run_ids.places(made, "https://w/r") == {"W&B": "https://w/r", "W&B, offline": everything}
    for path in made.wandb_dir.glob("*/*.wandb"):
        made.write_text(path.with_suffix(".wandb.synced"), "")
    assert run_ids.places(made, "https://w/r") == {"W&B": "https://w/r"}

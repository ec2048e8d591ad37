"""Several processes on one machine, for real: what they come to, and what they survive."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.launched import LOCAL, command, lines, scores, wait_for, work_pids
from support.small_sweep import hashes, overrides, run, small, store
from support.stub_sweep import planned, stand_ins

from sega_bench import launch
from sega_bench.config import Config
from sega_bench.errors import UserError
from sega_bench.execution import jobs
from sega_bench.execution.resume import REFERENCE_FAILED
from sega_bench.launch import local
from sega_bench.launch.worker import ATTEMPTS, Errand, code, part_of
from sega_bench.planning.planner import plan

THREE_TRUNKS = ("seeds=3", "axes.edit_threshold=[0.5,0.6,0.7,0.8,0.9]", "engine.threads=1")


def waits(row: dict[str, Any]) -> bool:
    """Whether it lacks scores for want of a reference."""
    return REFERENCE_FAILED in (row["error"] or "")


@pytest.mark.parametrize(
    ("count", "words"), [(2, "2 workers; at most"), (4, "4 workers, more than the 3 trunks; at most")]
)
def test_workers_come_to_what_one_process_does(count: int, words: str, tmp_path: Path) -> None:
    """Three trunks on two or four: one is cut, so that some cells are scored once the others have ended."""
    one, several = tmp_path / "one", tmp_path / "several"
    process = command(*overrides(several, *THREE_TRUNKS, "launch=local", f"launch.workers={count}"))
    said, wrong = process.communicate()
    assert (process.returncode, wrong) == (0, "")
    assert words in said
    run(one, *THREE_TRUNKS)
    assert hashes(several) == hashes(one)
    assert scores(several) == scores(one)
    written = lines(several)
    assert set(written) == {str(number) for number in range(count)}
    for worker, own in written.items():
        assert {row["worker"] for row in own if waits(row)} <= {worker}
    made = [row["key"] for own in written.values() for row in own]
    again = [key for key in made if made.count(key) > 1]
    assert {row["key"] for own in written.values() for row in own if waits(row)} == set(again)
    plans = [store(folder).read_plan() for folder in (one, several)]
    assert plans[0] is not None
    assert plans[1] is not None
    assert plans[0]["engine"] == plans[1]["engine"]
    assert plans[0]["keys"] == plans[1]["keys"]
    assert {path.name for path in store(several).root.iterdir()} >= {"results.parquet", "report", "grids"}
    assert not store(several).launch_dir.exists()


def test_killed_workers_and_launchers_are_made_good(tmp_path: Path) -> None:
    """A killed worker has a successor, Ctrl-C ends all workers, and so does the launcher's own death."""
    words = ("seeds=40", "engine.wave_rows=3", "engine.threads=1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = command(*overrides(killed, *words, *LOCAL))
    wait_for(killed, "0", 3, process)
    (victim,) = work_pids(killed, "0")
    os.kill(victim, signal.SIGKILL)
    before = len(lines(killed)["0"])
    wait_for(killed, "0", before + 9, process)
    process.send_signal(signal.SIGINT)
    _, wrong = process.communicate()
    assert process.returncode == 130, wrong
    assert "worker 0 was killed with" in " ".join(wrong.split())
    assert "the same command goes on" in wrong
    assert "Traceback" not in wrong
    assert work_pids(killed) == []
    assert not store(killed).lock_path.exists()

    process = command(*overrides(killed, *words, *LOCAL))
    so_far = len(lines(killed)["1"])
    wait_for(killed, "1", so_far + 1, process)
    process.kill()
    process.communicate()
    while work_pids(killed):
        time.sleep(0.1)

    process = command(*overrides(killed, *words, *LOCAL))
    _, wrong = process.communicate()
    assert process.returncode == 0, wrong
    run(whole, *words)
    assert hashes(killed) == hashes(whole)
    assert scores(killed) == scores(whole)
    made = [row["key"] for own in lines(killed).values() for row in own if not waits(row)]
    assert len(made) == len(set(made)) == 120


def test_more_workers_than_trunks_is_said(tmp_path: Path) -> None:
    said = launch.dealt(plan(small(tmp_path, "launch=local", "launch.workers=9")))["launch"]
    assert said.startswith("9 workers, more than the 2 trunks; ")
    assert "have nothing to make" in said
    assert "UNet evaluations each" in said


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "device_of", lambda config: torch.device(config.engine.device))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


def asked(*words: str) -> Config:
    return small(Path("nowhere"), "launch=local", *words)


@pytest.mark.usefixtures("three_gpus")
def test_every_gpu_has_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch.asked(asked("engine.device=cuda")).count == 3
    assert launch.asked(asked("engine.device=cuda", "launch.workers=2")).count == 2
    assert local.gpus(asked("engine.device=cuda")) == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5ab,4,7")
    assert local.gpus(asked("engine.device=cuda")) == ["GPU-5ab", "4", "7"]
    with pytest.raises(UserError, match=r"^launch.workers is 4, but there are 3 GPUs"):
        launch.asked(asked("engine.device=cuda", "launch.workers=4"))


def test_on_a_cpu_threads_are_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    made = plan(small(tmp_path))
    threads = {}
    for count in ("auto", 2, 3, 20):
        on = launch.asked(asked("engine.device=cpu", f"launch.workers={count}"))
        threads[count] = (on.count, jobs.prepare(made, on).threads)
    assert threads == {"auto": (1, None), 2: (2, 4), 3: (3, 2), 20: (20, 1)}


CLUSTER = ("launch=slurm", "launch.workers=2")


def test_a_clusters_nodes_are_not_asked_what_they_have(tmp_path: Path) -> None:
    """Nor is there a GPU where a sweep is launched."""
    cells = plan(small(tmp_path, *CLUSTER)).cells
    assert {cell.dtype for cell in cells} == {"float16"}
    cells = plan(small(tmp_path, *CLUSTER, "launch.gpus_per_worker=0")).cells
    assert {cell.dtype for cell in cells} == {"float32"}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"sega_bench": "0.1 (ab)"}, "has another sega_bench ("),
        ({"torch": "1.0"}, f"has another torch ({code()['torch']}, not 1.0) than the launching command"),
        ({"Python": "3.9.1"}, "has another Python ("),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_worker_of_other_code_does_nothing(other: dict[str, str], said: str, tmp_path: Path) -> None:
    with stand_ins(), jobs.locked(planned(tmp_path)) as job:
        outcome = Errand(job, 0, 0, code() | other)._do(lambda: False)
    assert outcome is not None
    assert str(outcome.mistake).startswith("launch: worker 0 on ")
    assert said in str(outcome.mistake)
    assert job.store.rows() == ([], 0)


def test_a_worker_that_is_always_sent_away_makes_a_wave_each_time(tmp_path: Path) -> None:
    with stand_ins(), jobs.locked(planned(tmp_path, "engine.wave_rows=3")) as job:
        errand = Errand(part_of(job, job.plan.cells, ()), 0, 0, code())
        lives = 0
        while errand._do(lambda: True) is None:
            lives += 1
    assert lives == 1  # and one more, of two waves
    assert len(job.store.done_keys(job.store.rows()[0])) == 6


def test_a_worker_that_records_nothing_gives_up(tmp_path: Path) -> None:
    with stand_ins(), jobs.locked(planned(tmp_path)) as job:
        errand = Errand(part_of(job, job.plan.cells, ()), 0, 0, code())
        for _ in range(ATTEMPTS):  # each is killed in its first wave
            assert errand._starts(6) <= ATTEMPTS
        outcome = errand._do(lambda: False)
    assert outcome is not None
    assert outcome.fault == "began 3 times and recorded nothing, interrupted each time"


def test_who_works_on_a_cluster_keeps_others_out(tmp_path: Path) -> None:
    made = planned(tmp_path)
    with jobs.locked(made) as job:
        job.store.write_text(job.store.launch_path, "{}")
    with pytest.raises(UserError, match="has workers on a cluster"), jobs.locked(made):
        pass
    assert not job.store.lock_path.exists()
    with jobs.locked(made, jobs.Processes(2, are_elsewhere=True)):
        pass

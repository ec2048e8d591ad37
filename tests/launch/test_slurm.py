"""Launches on a real Slurm cluster: preemption, requeues, time limits, attaching and cancelling."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support.launched import comparable_rows, rows_by_worker, start_command
from support.slurm_cluster import GPUS, HIGH, LOW, Cluster
from support.small_sweep import done_keys, hashes, overrides, run, small, store

from sega_bench import launch
from sega_bench.errors import UserError
from sega_bench.execution import jobs
from sega_bench.planning.planner import plan

pytestmark = pytest.mark.slurm

ARRAY = ("launch=slurm", "engine.device=cpu", "engine.threads=1", f"launch.partition={LOW}")

IN_TRANSITION = 2021 & 0xFF
"""The exit status of a command that Slurm refuses while it is starting or ending a job."""


def count_rows(folder: Path, worker: str = "*") -> int:
    """Rows recorded so far, by all workers or by one."""
    return sum(path.read_bytes().count(b"\n") for path in store(folder).records_dir.glob(f"{worker}.jsonl"))


def wait_until(predicate: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until the predicate holds; fails if the command ends before."""
    while not predicate():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a command, which must succeed; returns its output."""
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    return stdout + stderr


def test_four_tasks_generate_the_same_sweep_as_one_process(slurm: Cluster, tmp_path: Path) -> None:
    words = ("seeds=4", "engine.threads=1", "engine.device=cpu")
    one, four, gpus = tmp_path / "one", tmp_path / "four", tmp_path / "gpus"
    print_gpu = f'echo "$SLURM_ARRAY_TASK_ID $CUDA_VISIBLE_DEVICES" >> {gpus}'
    process = start_command(
        *overrides(four, *words, *ARRAY, "launch.workers=4", f"launch.setup=['{print_gpu}']")
    )
    output = finish(process)
    assert "4 workers; at most" in output
    run(one, *words)
    assert hashes(four) == hashes(one)
    assert comparable_rows(four) == comparable_rows(one)
    assert set(rows_by_worker(four)) == {"0", "1", "2", "3"}
    tasks = dict(line.split() for line in gpus.read_text().splitlines())
    assert set(tasks) == {"0", "1", "2", "3"}
    assert len(set(tasks.values())) == 4
    assert not store(four).launch_dir.exists()


def test_killed_and_preempted_tasks_continue_where_they_stopped(slurm: Cluster, tmp_path: Path) -> None:
    """One task is killed, then a job of the higher partition preempts all."""
    words = overrides(tmp_path, "seeds=160", "engine.wave_rows=3", "sampling.num_inference_steps=30", *ARRAY)
    process = start_command(*words, "launch.workers=2", f"launch.gpus_per_worker={GPUS // 2}")
    wait_until(lambda: count_rows(tmp_path) >= 6, process)
    (job,) = {task.partition("_")[0] for task in slurm.states()}
    slurm.run("scancel", "--signal=KILL", f"{job}_1")
    slurm.submit(f"--partition={HIGH}", f"--gpus={GPUS}", script="sleep 1")
    wait_until(lambda: slurm.field(f"{job}_0", "Restarts") == "1", process)
    output = finish(process)
    assert "worker 1 was killed with" in " ".join(output.split())
    assert len(done_keys(tmp_path)) == 480
    keys = Counter(row["key"] for own in rows_by_worker(tmp_path).values() for row in own)
    assert set(keys.values()) == {1}


def test_a_task_requeued_by_hand_loses_only_its_wave_in_flight(slurm: Cluster, tmp_path: Path) -> None:
    """``scontrol requeue`` sends no USR2."""
    words = overrides(tmp_path, "seeds=80", "engine.wave_rows=3", "sampling.num_inference_steps=30", *ARRAY)
    process = start_command(*words, "launch.workers=2")
    wait_until(lambda: count_rows(tmp_path, "0") >= 3, process)
    job = next(task.partition("_")[0] for task in slurm.states())
    slurm.scontrol("requeue", f"{job}_0")
    wait_until(lambda: slurm.field(f"{job}_0", "Restarts") == "1", process)
    output = finish(process)
    assert "was killed" not in output
    assert len(done_keys(tmp_path)) == 240
    keys = Counter(row["key"] for own in rows_by_worker(tmp_path).values() for row in own)
    assert set(keys.values()) == {1}
    assert set(rows_by_worker(tmp_path)) == {"0", "1"}


def test_a_sweep_finishes_despite_a_time_limit_that_is_too_short(slurm: Cluster, tmp_path: Path) -> None:
    """Slurm sends USR2 ahead of the limit, at any time within the minute; each attempt finishes a wave."""
    limit = ("launch.timeout_min=1", "+launch.extra.signal=USR2@59", "launch.workers=1")
    long = ("seeds=80", "engine.wave_rows=3", "sampling.num_inference_steps=30")
    process = start_command(*overrides(tmp_path, *long, *ARRAY, *limit))
    wait_until(slurm.states, process)
    (job,) = slurm.states()

    def send_usr2() -> bool:
        try:
            slurm.run("scancel", "--signal=USR2", job)
        except subprocess.CalledProcessError as refused:
            if refused.returncode != IN_TRANSITION:
                raise
            return False
        return True

    wait_until(send_usr2, process)  # while the worker is still importing, or even before Python has begun
    wait_until(lambda: count_rows(tmp_path), process)
    wait_until(lambda: count_attempts(slurm, job) >= 2 or send_usr2(), process)
    finish(process)
    assert count_attempts(slurm, job) >= 2
    assert len(done_keys(tmp_path)) == 240


def count_attempts(slurm: Cluster, job: str) -> int:
    """Attempts since a job: requeues, and new jobs where USR2 came before Python had begun."""
    jobs = slurm.run("squeue", "--states=all", "--noheader", "--format=%A").split()
    first = int(job.partition("_")[0])
    return sum(1 + int(slurm.field(one, "Restarts")) for one in set(jobs) if int(one) >= first)


def test_a_launch_can_be_detached_from_attached_to_and_cancelled(slurm: Cluster, tmp_path: Path) -> None:
    long = ("seeds=200", "sampling.num_inference_steps=30", "engine.wave_rows=3")  # longer than the test
    words = overrides(tmp_path, *long, *ARRAY, "launch.workers=2")
    output = finish(start_command(*words, "launch.wait=false"))
    assert "the cluster goes on alone: the same command attaches" in output
    assert len(slurm.states()) == 2
    with pytest.raises(UserError, match="has workers on a cluster"), jobs.locked(plan(small(tmp_path))):
        pass
    attached = start_command(*words)
    assert attached.stdout is not None
    assert any(line.startswith("attached to Slurm job ") for line in attached.stdout)
    attached.send_signal(signal.SIGINT)
    _, stderr = attached.communicate()
    assert attached.returncode == 130, stderr
    assert slurm.states() == {}
    assert not store(tmp_path).launch_path.exists()
    assert not store(tmp_path).lock_path.exists()


def test_a_request_that_slurm_refuses_is_reported_in_one_line(slurm: Cluster, tmp_path: Path) -> None:
    sweep = plan(small(tmp_path, *ARRAY, "launch.workers=1", "launch.partition=nowhere"))
    with jobs.locked(sweep, launch.requested_processes(sweep.config)) as job:
        message = r"^launch=slurm: .*[Ii]nvalid partition.*nowhere"
        with pytest.raises(UserError, match=message), launch.Launch(job) as launched:
            list(launched.rows())
        assert not job.store.launch_path.exists()
    assert slurm.states() == {}
    sweep = plan(small(tmp_path, *ARRAY, "launch.workers=1", f"launch.gpus_per_worker={GPUS + 1}"))
    with jobs.locked(sweep, launch.requested_processes(sweep.config)) as job:
        message = r"^launch=slurm: .*Requested node configuration is not available"
        with pytest.raises(UserError, match=message), launch.Launch(job) as launched:
            list(launched.rows())
        assert not job.store.launch_path.exists()
    assert slurm.states() == {}
    with pytest.raises(UserError, match=r"^launch.extra.memm: did you mean mem\? sbatch has .*, mem, "):
        launch.requested_processes(small(tmp_path, *ARRAY, "launch.workers=1", "+launch.extra.memm=1G"))
    with pytest.raises(UserError, match=r"^launch.extra.time is not an extra: .* launch.timeout_min"):
        launch.requested_processes(small(tmp_path, *ARRAY, "launch.workers=1", "+launch.extra.time=5"))


def test_a_controller_that_does_not_answer_is_reported_in_one_line(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = (slurm.folder / "slurm.conf").read_text()
    port = next(line for line in configuration.splitlines() if line.startswith("SlurmctldPort="))
    (tmp_path / "slurm.conf").write_text(
        configuration.replace(port, "SlurmctldPort=9") + "\nMessageTimeout=2\n"
    )
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(UserError, match=r"^launch=slurm: .*wait until the cluster answers"):
        launch.requested_processes(small(tmp_path, *ARRAY, "launch.workers=1"))

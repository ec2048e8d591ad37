"""A sweep on a real Slurm cluster: what its tasks come to, and what they survive."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support.launched import command, lines, scores
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


def cells_of(folder: Path, worker: str = "*") -> int:
    """Lines recorded so far, by all or by one."""
    return sum(path.read_bytes().count(b"\n") for path in store(folder).records_dir.glob(f"{worker}.jsonl"))


def wait_until(predicate: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Until something holds, or the command has ended."""
    while not predicate():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def finished(process: subprocess.Popen[str]) -> str:
    """What a command that ends well says."""
    said, wrong = process.communicate()
    assert process.returncode == 0, wrong
    assert "Traceback" not in wrong
    return said + wrong


def test_four_tasks_come_to_what_one_process_does(slurm: Cluster, tmp_path: Path) -> None:
    words = ("seeds=4", "engine.threads=1", "engine.device=cpu")
    one, four, gpus = tmp_path / "one", tmp_path / "four", tmp_path / "gpus"
    seen = f'echo "$SLURM_ARRAY_TASK_ID $CUDA_VISIBLE_DEVICES" >> {gpus}'
    process = command(*overrides(four, *words, *ARRAY, "launch.workers=4", f"launch.setup=['{seen}']"))
    said = finished(process)
    assert "4 workers; at most" in said
    run(one, *words)
    assert hashes(four) == hashes(one)
    assert scores(four) == scores(one)
    assert set(lines(four)) == {"0", "1", "2", "3"}
    tasks = dict(line.split() for line in gpus.read_text().splitlines())
    assert set(tasks) == {"0", "1", "2", "3"}
    assert len(set(tasks.values())) == 4
    assert not store(four).launch_dir.exists()


def test_the_killed_and_the_preempted_are_made_good(slurm: Cluster, tmp_path: Path) -> None:
    """One task is killed, then all are pre-empted by a better partition's job; each goes on where it was."""
    words = overrides(tmp_path, "seeds=160", "engine.wave_rows=3", "sampling.num_inference_steps=30", *ARRAY)
    process = command(*words, "launch.workers=2", f"launch.gpus_per_worker={GPUS // 2}")
    wait_until(lambda: cells_of(tmp_path) >= 6, process)
    (job,) = {task.partition("_")[0] for task in slurm.states()}
    slurm.run("scancel", "--signal=KILL", f"{job}_1")
    slurm.submit(f"--partition={HIGH}", f"--gpus={GPUS}", script="sleep 1")
    wait_until(lambda: slurm.field(f"{job}_0", "Restarts") == "1", process)
    said = finished(process)
    assert "worker 1 was killed with" in " ".join(said.split())
    assert len(done_keys(tmp_path)) == 480
    made = Counter(row["key"] for own in lines(tmp_path).values() for row in own)
    assert set(made.values()) == {1}


def test_a_task_that_is_requeued_by_hand_goes_on(slurm: Cluster, tmp_path: Path) -> None:
    """Without a word to it: what it had recorded stays, and its wave in flight is made again."""
    words = overrides(tmp_path, "seeds=80", "engine.wave_rows=3", "sampling.num_inference_steps=30", *ARRAY)
    process = command(*words, "launch.workers=2")
    wait_until(lambda: cells_of(tmp_path, "0") >= 3, process)
    job = next(task.partition("_")[0] for task in slurm.states())
    slurm.scontrol("requeue", f"{job}_0")
    wait_until(lambda: slurm.field(f"{job}_0", "Restarts") == "1", process)
    said = finished(process)
    assert "was killed" not in said
    assert len(done_keys(tmp_path)) == 240
    made = Counter(row["key"] for own in lines(tmp_path).values() for row in own)
    assert set(made.values()) == {1}
    assert set(lines(tmp_path)) == {"0", "1"}


def test_a_time_limit_that_is_too_short_is_survived(slurm: Cluster, tmp_path: Path) -> None:
    """Slurm sends USR2 ahead of the limit, at any time within the minute: every life makes a wave."""
    limit = ("launch.timeout_min=1", "+launch.extra.signal=USR2@59", "launch.workers=1")
    long = ("seeds=80", "engine.wave_rows=3", "sampling.num_inference_steps=30")
    process = command(*overrides(tmp_path, *long, *ARRAY, *limit))
    wait_until(slurm.states, process)
    (job,) = slurm.states()

    def is_told() -> bool:
        try:
            slurm.run("scancel", "--signal=USR2", job)
        except subprocess.CalledProcessError as refused:
            if refused.returncode != IN_TRANSITION:
                raise
            return False
        return True

    wait_until(is_told, process)  # at once, too, while it is still importing, or lost before it has begun
    wait_until(lambda: cells_of(tmp_path), process)
    wait_until(lambda: lives_since(slurm, job) >= 2 or is_told(), process)
    finished(process)
    assert lives_since(slurm, job) >= 2
    assert len(done_keys(tmp_path)) == 240


def lives_since(slurm: Cluster, job: str) -> int:
    """Of workers since a job: requeued, or submitted anew where USR2 came before Python had begun."""
    jobs = slurm.run("squeue", "--states=all", "--noheader", "--format=%A").split()
    first = int(job.partition("_")[0])
    return sum(1 + int(slurm.field(one, "Restarts")) for one in set(jobs) if int(one) >= first)


def test_a_launch_is_left_alone_attached_to_and_called_off(slurm: Cluster, tmp_path: Path) -> None:
    long = ("seeds=200", "sampling.num_inference_steps=30", "engine.wave_rows=3")  # called off before its end
    words = overrides(tmp_path, *long, *ARRAY, "launch.workers=2")
    said = finished(command(*words, "launch.wait=false"))
    assert "the cluster goes on alone: the same command attaches" in said
    assert len(slurm.states()) == 2
    with pytest.raises(UserError, match="has workers on a cluster"), jobs.locked(plan(small(tmp_path))):
        pass
    attached = command(*words)
    assert attached.stdout is not None
    assert any(line.startswith("attached to Slurm job ") for line in attached.stdout)
    attached.send_signal(signal.SIGINT)
    _, wrong = attached.communicate()
    assert attached.returncode == 130, wrong
    assert slurm.states() == {}
    assert not store(tmp_path).launch_path.exists()
    assert not store(tmp_path).lock_path.exists()


def test_what_the_cluster_does_not_have_is_one_line(slurm: Cluster, tmp_path: Path) -> None:
    made = plan(small(tmp_path, *ARRAY, "launch.workers=1", "launch.partition=nowhere"))
    with jobs.locked(made, launch.asked(made.config)) as job:
        said = r"^launch=slurm: .*[Ii]nvalid partition.*nowhere"
        with pytest.raises(UserError, match=said), launch.Launch(job) as launched:
            list(launched.rows())
        assert not job.store.launch_path.exists()
    assert slurm.states() == {}
    made = plan(small(tmp_path, *ARRAY, "launch.workers=1", f"launch.gpus_per_worker={GPUS + 1}"))
    with jobs.locked(made, launch.asked(made.config)) as job:
        said = r"^launch=slurm: .*Requested node configuration is not available"
        with pytest.raises(UserError, match=said), launch.Launch(job) as launched:
            list(launched.rows())
        assert not job.store.launch_path.exists()
    assert slurm.states() == {}
    with pytest.raises(UserError, match=r"^launch.extra.memm: did you mean mem\? sbatch has .*, mem, "):
        launch.asked(small(tmp_path, *ARRAY, "launch.workers=1", "+launch.extra.memm=1G"))
    with pytest.raises(UserError, match=r"^launch.extra.time is not an extra: .* launch.timeout_min"):
        launch.asked(small(tmp_path, *ARRAY, "launch.workers=1", "+launch.extra.time=5"))


def test_a_cluster_that_does_not_answer_is_one_line(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = (slurm.folder / "slurm.conf").read_text()
    port = next(line for line in configuration.splitlines() if line.startswith("SlurmctldPort="))
    (tmp_path / "slurm.conf").write_text(
        configuration.replace(port, "SlurmctldPort=9") + "\nMessageTimeout=2\n"
    )
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(UserError, match=r"^launch=slurm: .*wait until the cluster answers"):
        launch.asked(small(tmp_path, *ARRAY, "launch.workers=1"))

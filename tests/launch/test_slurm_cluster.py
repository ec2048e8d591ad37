"""The properties of the test cluster that other tests rely on (``pytest -m slurm``)."""

from __future__ import annotations

import os
from pathlib import Path
from subprocess import CalledProcessError

import pytest
from support.slurm_cluster import CPUS, GPUS, HIGH, LOW, Cluster, cluster, processes

pytestmark = pytest.mark.slurm


def test_array_tasks_see_one_gpu_each(slurm: Cluster) -> None:
    script = "echo $CUDA_VISIBLE_DEVICES; until [ -e together ]; do sleep 0.1; done"
    folder = slurm.folder / "jobs"
    job = slurm.submit(f"--array=0-{GPUS - 1}", "--gres=gpu:1", f"--chdir={folder}", script=script)
    tasks = [f"{job}_{task}" for task in range(GPUS)]
    slurm.wait_for(lambda: all(map(slurm.output, tasks)), "a GPU for every task")
    (folder / "together").touch()
    assert sorted(map(slurm.output, tasks)) == [f"{gpu}\n" for gpu in range(GPUS)]


def test_slurm_refuses_more_gpus_than_the_node_has(slurm: Cluster) -> None:
    with pytest.raises(CalledProcessError) as raised:
        slurm.submit(f"--gres=gpu:{GPUS + 1}", script="true")
    assert "Requested node configuration is not available" in raised.value.stderr


def test_a_preempted_job_gets_usr2_and_can_requeue_itself(slurm: Cluster) -> None:
    """Submitit's way: on USR2 a checkpoint, then ``scontrol requeue`` of the same script."""
    whole_node = f"--cpus-per-task={CPUS}"
    script = (
        "trap 'echo preempted; scontrol requeue $SLURM_JOB_ID' USR2\n"
        "echo start ${SLURM_RESTART_COUNT:-0}\n"
        '[ -n "$SLURM_RESTART_COUNT" ] || while true; do sleep 0.1; done'
    )
    low = slurm.submit(f"--partition={LOW}", whole_node, "--requeue", "--signal=B:USR2@30", script=script)
    slurm.wait_for(lambda: "start 0" in slurm.output(low), "the low job's start")
    high = slurm.submit(f"--partition={HIGH}", whole_node, script="echo made way for")
    slurm.wait_for(lambda: not slurm.states(), "the end of both")
    assert slurm.output(high) == "made way for\n"
    lines = [line for line in slurm.output(low).splitlines() if "slurmstepd" not in line]
    assert lines == ["start 0", "preempted", "start 1"]
    assert slurm.field(low, "Restarts") == "1"


def test_submitit_runs_a_function_in_a_job(slurm: Cluster, tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit")
    executor = submitit.SlurmExecutor(tmp_path)
    executor.update_parameters(partition=LOW, time=5, gres="gpu:1", signal_delay_s=30)
    jobs = executor.map_array(os.path.join, ["a", "b"], ["c", "d"])
    assert [job.result() for job in jobs] == ["a/c", "b/d"]


def test_a_cluster_leaves_no_process_and_no_file() -> None:
    with cluster() as running:
        running.submit(script="sleep 1000 & sleep 1000")
        running.wait_for(lambda: "RUNNING" in running.states().values())
        assert processes(running.folder)
    assert not processes(running.folder)
    assert not running.folder.exists()

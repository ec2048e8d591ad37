"""A real Slurm cluster: one node on loopback, with eight fake GPUs, in one temporary folder.

    apt-get install --no-install-recommends slurmctld slurmd slurm-client munge

It reads and writes nothing outside the folder, and does not disturb a cluster that the machine belongs to.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

HIGH, LOW = "high", "low"
"""Partitions: jobs of the first preempt jobs of the second, which are requeued."""
GPUS = 8
CPUS = 8
GRACE_SECONDS = 20
"""Time that a preempted job has after USR2 to end by itself; Slurm checks it every 30 seconds."""
REQUEUE_SECONDS = 5
"""Delay of a requeued job: Slurm's minimum; its default is 120."""

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
_TIMEOUT_SECONDS = 60
"""Time limit of every wait: many times the usual duration, for loaded machines."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Args:
        folder: holds all of its files.
        environment: variables with which a process reaches this cluster and no other.
    """

    folder: Path
    environment: Mapping[str, str]

    def run(self, *command: str) -> str:
        """Run a Slurm command; returns its output, or raises CalledProcessError with its error message."""
        environment = without_slurm(os.environ) | self.environment
        process = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, process.stdout, process.stderr)
        return process.stdout

    def scontrol(self, *words: str) -> str:
        """Run ``scontrol``: ``scontrol("requeue", "7")``."""
        return self.run("scontrol", *words)

    def submit(self, *options: str, script: str) -> str:
        """Submit a batch job whose output :meth:`output` reads; returns its id.

        Args:
            options: of sbatch.
            script: lines of bash.
        """
        path = self.folder / "jobs" / f"{secrets.token_hex(4)}.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        output = "%A_%a.out" if any(option.startswith("--array") for option in options) else "%j.out"
        return self.run(
            "sbatch",
            "--parsable",
            f"--output={self.folder}/{output}",
            "--open-mode=append",
            *options,
            str(path),
        ).strip()

    def output(self, job: str) -> str:
        """The output so far of a job, or of an array task (``7_2``)."""
        path = self.folder / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def states(self) -> dict[str, str]:
        """States of the jobs in the queue by their id; an array task's is ``7_2``."""
        lines = self.run("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return {job: state for job, _, state in (line.partition(" ") for line in lines)}

    def field(self, job: str, name: str) -> str:
        """One field of ``scontrol show job``: ``field("7", "Restarts")``."""
        words = self.scontrol("--oneliner", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def wait_for(self, predicate: Callable[[], object], what: str = "") -> None:
        """Wait until the predicate holds; the error shows the queue and the daemons' logs."""
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not predicate():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{what or 'the condition'} did not come true\n{self.states()}\n{self.log()}"
                )
            time.sleep(0.1)

    def cancel_all(self) -> None:
        """Cancel every job and wait until the queue is empty."""
        self.run("scancel", "--partition", HIGH)
        self.run("scancel", "--partition", LOW)
        self.wait_for(lambda: not self.states(), "an empty queue")

    def log(self) -> str:
        """The end of each daemon's log."""
        paths = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in paths)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start a cluster and wait until its node is idle; skips the test where it cannot run."""
    if missing := [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]:
        pytest.skip(
            f"there is no {', '.join(missing)}: apt-get install --no-install-recommends "
            "slurmctld slurmd slurm-client munge"
        )
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons want root, which starts jobs as other users")
    # Not in pytest's folder, whose path may exceed the 107 characters of a socket's name.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        stack.callback(_end_stragglers, folder)
        _configure(folder)
        running = Cluster(folder, {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()})
        key, munge = str(folder / "munge.key"), str(folder / "munge.socket")
        stack.enter_context(
            _daemon(
                folder,
                "munged",
                *("--foreground", "--force", f"--key-file={key}", f"--socket={munge}"),
                *(f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")),
            )
        )
        running.wait_for((folder / "munge.socket").exists, "munged")
        stack.enter_context(_daemon(folder, "slurmctld", "-D"))
        stack.enter_context(_daemon(folder, "slurmd", "-D", "-N", socket.gethostname()))
        running.wait_for(lambda: _is_idle(running), "an idle node")
        stack.callback(running.cancel_all)  # before the daemons stop: jobs outlive slurmd
        yield running


def without_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without the variables of a cluster or of a job that the tests may run in."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(("SLURM_", "SBATCH_", "SRUN_"))
    }


def processes(folder: Path) -> list[int]:
    """Ids of the processes that the cluster in this folder started, found by their environment."""
    entry_prefix = f"SLURM_CONF={folder}/".encode()
    pids = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
        except OSError:  # it has ended, or belongs to another user
            continue
        if any(entry.startswith(entry_prefix) for entry in environment.split(b"\0")):
            pids.append(int(path.parent.name))
    return pids


def _path() -> str:
    """PATH with sbin, where the daemons are."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def _configure(folder: Path) -> None:
    """Write the configuration and make the fake devices; skips the test where mknod is forbidden."""
    for name in ("dev", "state", "spool", "jobs"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    for number in range(GPUS):
        try:
            os.mknod(folder / "dev" / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as /dev/null
        except OSError as error:
            pytest.skip(f"fake GPUs cannot be made: mknod: {error.strerror}")
    (folder / "gres.conf").write_text(
        f"AutoDetect=off\nName=gpu Type=fake File={folder}/dev/gpu[0-{GPUS - 1}]\n"
    )
    (folder / "slurm.conf").write_text(
        _CONFIGURATION.format(
            folder=folder,
            host=socket.gethostname(),
            controller=_free_port(),
            node=_free_port(),
            requeue=REQUEUE_SECONDS,
            grace=GRACE_SECONDS,
            cpus=CPUS,
            gpus=GPUS,
            high=HIGH,
            low=LOW,
        )
    )


_CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller}
SlurmdPort={node}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue}
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=64000 Gres=gpu:fake:{gpus} State=UNKNOWN
PartitionName=DEFAULT Nodes=ALL DefMemPerCPU=1000 MaxTime=60 State=UP
PartitionName={low} Default=YES PriorityTier=1 GraceTime={grace}
PartitionName={high} PriorityTier=2 PreemptMode=OFF
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _daemon(folder: Path, *command: str) -> Iterator[None]:
    """Run a daemon inside the block, in the foreground so that it can be terminated."""
    environment = without_slurm(os.environ) | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    with open(folder / f"{command[0]}.out.log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_idle(cluster: Cluster) -> bool:
    try:
        return cluster.run("sinfo", "--noheader", "--partition", LOW, "--format=%T").split() == ["idle"]
    except subprocess.CalledProcessError:  # the controller is not listening yet
        return False


def _end_stragglers(folder: Path) -> None:
    """Kill jobs that survived :meth:`Cluster.cancel_all`, so that none outlives the tests."""
    for process in processes(folder):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue

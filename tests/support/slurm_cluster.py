"""A real Slurm cluster of one node, on loopback, in one temporary folder, with eight pretended GPUs.

    apt-get install --no-install-recommends slurmctld slurmd slurm-client munge

Nothing outside the folder is read or written, so that it stands beside a cluster the machine may belong to.
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
"""Partitions: a job of the first pre-empts those of the second, which are requeued."""
GPUS = 8
CPUS = 8
GRACE_SECONDS = 20
"""What a pre-empted job has after USR2 to end by itself; Slurm looks every 30 seconds if they are over."""
REQUEUE_SECONDS = 5
"""What a requeued job waits: the least Slurm takes; its default is 120."""

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
_PATIENCE = 60
"""Seconds until a wait is given up: many times what any of them takes, for machines with other work."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs.

    Args:
        folder: all there is of it.
        environment: what a process needs to speak with it, and no other.
    """

    folder: Path
    environment: Mapping[str, str]

    def run(self, *command: str) -> str:
        """What a command of Slurm's prints; CalledProcessError, with its own words, if it fails."""
        environment = without_slurm(os.environ) | self.environment
        done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout

    def scontrol(self, *words: str) -> str:
        """``scontrol``, for what is done to a job: ``scontrol("requeue", "7")``."""
        return self.run("scontrol", *words)

    def submit(self, *options: str, script: str) -> str:
        """The number of a new batch job, whose output :meth:`output` reads.

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
        """What a job, or a task of an array (``7_2``), has printed so far."""
        path = self.folder / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def states(self) -> dict[str, str]:
        """Jobs that are pending or running, by number, an array's task as ``7_2``, and the state of each."""
        lines = self.run("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return {job: state for job, _, state in (line.partition(" ") for line in lines)}

    def field(self, job: str, name: str) -> str:
        """One field of ``scontrol show job``: ``field("7", "Restarts")``."""
        words = self.scontrol("--oneliner", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def wait_for(self, predicate: Callable[[], object], what: str = "") -> None:
        """Wait until something holds; the daemons' last words if it never does."""
        deadline = time.monotonic() + _PATIENCE
        while not predicate():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{what or 'the condition'} did not come true\n{self.states()}\n{self.log()}"
                )
            time.sleep(0.1)

    def cancel_all(self) -> None:
        """End every job, and wait until the node is idle."""
        self.run("scancel", "--partition", HIGH)
        self.run("scancel", "--partition", LOW)
        self.wait_for(lambda: not self.states(), "an empty queue")

    def log(self) -> str:
        """The end of what each daemon said."""
        paths = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in paths)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster whose node is idle; skips, with the reason, where there can be none."""
    if missing := [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]:
        pytest.skip(
            f"there is no {', '.join(missing)}: apt-get install --no-install-recommends "
            "slurmctld slurmd slurm-client munge"
        )
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons want root, which starts jobs as other users")
    # Not pytest's own folder: the name of a socket may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        stack.callback(_end_stragglers, folder)
        _configure(folder)
        made = Cluster(folder, {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()})
        key, munge = str(folder / "munge.key"), str(folder / "munge.socket")
        stack.enter_context(
            _daemon(
                folder,
                "munged",
                *("--foreground", "--force", f"--key-file={key}", f"--socket={munge}"),
                *(f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")),
            )
        )
        made.wait_for((folder / "munge.socket").exists, "munged")
        stack.enter_context(_daemon(folder, "slurmctld", "-D"))
        stack.enter_context(_daemon(folder, "slurmd", "-D", "-N", socket.gethostname()))
        made.wait_for(lambda: _is_idle(made), "an idle node")
        stack.callback(made.cancel_all)  # first of all: jobs outlive slurmd
        yield made


def without_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment that knows of no cluster, nor of a job that the tests themselves may run in."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(("SLURM_", "SBATCH_", "SRUN_"))
    }


def processes(folder: Path) -> list[int]:
    """Processes that the cluster in this folder started, by what their environment says."""
    mark = f"SLURM_CONF={folder}/".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
        except OSError:  # it has ended, or is none of ours
            continue
        if any(entry.startswith(mark) for entry in environment.split(b"\0")):
            found.append(int(path.parent.name))
    return found


def _path() -> str:
    """Daemons are in sbin, which a user's PATH may lack."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def _configure(folder: Path) -> None:
    """Every file that the daemons want; skips where pretended devices can't be made."""
    for name in ("dev", "state", "spool", "jobs"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    for number in range(GPUS):
        try:
            os.mknod(folder / "dev" / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as /dev/null
        except OSError as error:
            pytest.skip(f"pretended GPUs can't be made: mknod: {error.strerror}")
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
    """A daemon in the foreground, which keeps it ours to end."""
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


def _is_idle(made: Cluster) -> bool:
    try:
        return made.run("sinfo", "--noheader", "--partition", LOW, "--format=%T").split() == ["idle"]
    except subprocess.CalledProcessError:  # the controller does not listen yet
        return False


def _end_stragglers(folder: Path) -> None:
    """Nothing should be left by now; what is, must not outlive the tests."""
    for process in processes(folder):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue

"""Runs workers as tasks of Slurm job arrays through submitit, and asks Slurm for their states."""

from __future__ import annotations

import io
import logging
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr
from typing import Any

from sega_bench.cell import abbreviated
from sega_bench.config import LaunchConfig
from sega_bench.errors import UserError, check_count, nearest
from sega_bench.launch.worker import WorkerTask
from sega_bench.store import Store
from sega_bench.system.signals import deferred

log = logging.getLogger(__name__)

_COMMAND_SECONDS = 20.0
"""Time limit for a Slurm command. A controller that takes longer counts as unavailable."""
_QUEUE_SECONDS = 5.0
"""Minimum interval between two calls of squeue, and how long after a task's end its outcome is waited for."""
_CANCEL_SECONDS = 60.0
_MAX_REQUEUES = 1_000_000
"""Submitit's limit per task, in effect none: workers that make no progress give up by themselves."""

_PYTHON_WITH_USR2_BLOCKED = (
    "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
"""Blocks USR2, whose default action ends the process, until the worker has imported and set its handler."""

_RESERVED_OPTIONS = {
    "array": "launch.workers",
    "partition": "launch.partition",
    "time": "launch.timeout_min",
    "account": "launch.account",
    "gpus": "launch.gpus_per_worker",
    "gpus-per-node": "launch.gpus_per_worker",
    "output": "the folder launch/ of the sweep",
    "error": "the folder launch/ of the sweep",
    "job-name": "name",
    "wrap": "the command itself",
    "wait": "launch.wait",
    "parsable": "the command itself",
    "test-only": "dry_run=true",
}
"""Options of sbatch that other keys set, or that sega_bench itself must set."""


def check(launch: LaunchConfig) -> None:
    """Check that Slurm is available here and that its sbatch has every option of ``launch.extra``.

    Raises:
        UserError: Slurm is not installed, its controller does not answer, or an option is unknown.
    """
    for program in ("sbatch", "squeue", "scancel", "sinfo"):
        if shutil.which(program) is None:
            raise UserError(
                f"launch=slurm: there is no {program} here: run it where jobs are submitted, or launch=local"
            )
    status, output = _run_slurm("sinfo", "--noheader")
    if status != 0:
        raise UserError(f"launch=slurm: {output}: wait until the cluster answers, or launch=local")
    known = sorted(_sbatch_options() - {*_RESERVED_OPTIONS, "help"})
    for name in map(_option, launch.extra):
        if name in _RESERVED_OPTIONS:
            raise UserError(
                f"launch.extra.{name} is not an extra: it is decided by {_RESERVED_OPTIONS[name]}"
            )
        if name not in known:
            raise UserError(f"launch.extra.{name}: {nearest(name, known)}sbatch has {', '.join(known)}")


def _sbatch_options() -> set[str]:
    """The long options of this cluster's sbatch; they vary with its version."""
    return set(re.findall(r"--([a-z][a-z0-9-]+)", _run_slurm("sbatch", "--help")[1]))


def _option(name: Any) -> str:
    """An sbatch option's name with dashes, from one with dashes or underscores."""
    return str(name).replace("_", "-")


def _run_slurm(*command: str) -> tuple[int, str]:
    """Run a Slurm command; returns its exit status and its output, or its error message if it failed."""
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return 1, f"{command[0]} did not answer in {_COMMAND_SECONDS:.0f} seconds"
    if process.returncode == 0:
        return 0, process.stdout
    return process.returncode, process.stderr.strip() or process.stdout


def cpus_per_task(launch: LaunchConfig) -> int:
    """CPU cores of each task, which set the worker's thread count.

    Raises:
        UserError: the value is no positive whole number.
    """
    count = {_option(name): value for name, value in launch.extra.items()}.get("cpus-per-task", 1)
    if type(count) is not int:
        raise UserError(f"launch.extra.cpus-per-task is {abbreviated(count)}, but it must be a number")
    check_count("launch.extra.cpus-per-task", count, 1024)
    return count


class SlurmBackend:
    """Tasks of job arrays, which outlive the launching process. A handle is ``<array job>_<task>``.

    Args:
        store: the sweep's folder, which every node must see.
        launch: the resources of each task.
        name: of the plan, part of the job's name.
    """

    outlives_launcher = True

    def __init__(self, store: Store, launch: LaunchConfig, name: str) -> None:
        self._store, self._launch, self._name = store, launch, name
        self._submitted: set[str] = set()
        self._queue_time: float | None = None
        self._queued: set[str] = set()
        self._gone_since: dict[str, float] = {}

    def submit(self, tasks: Sequence[WorkerTask]) -> list[str]:
        """Submit the tasks, several as one job array; returns their handles.

        Raises:
            UserError: Slurm refuses them, with Slurm's message.
        """
        import submitit
        from submitit.core.utils import FailedJobError

        executor = submitit.SlurmExecutor(
            self._store.launch_dir.absolute() / "slurm",
            max_num_timeout=_MAX_REQUEUES,
            python=f"{shlex.quote(sys.executable)} -c {shlex.quote(_PYTHON_WITH_USR2_BLOCKED)}",
        )
        executor.update_parameters(**self._parameters())
        try:
            # Submitit prints the error that it raises. An interruption between sbatch and the next line would
            # leave jobs in the queue whose handles are lost, so signals wait.
            with redirect_stderr(io.StringIO()), deferred(signal.SIGINT, signal.SIGTERM):
                handles = [str(job.job_id) for job in executor.submit_array(tasks)]
                self._submitted.update(handles)
        except (FailedJobError, OSError) as error:
            raise UserError(f"launch=slurm: {error}") from error
        self._queue_time = None
        return handles

    def _parameters(self) -> Mapping[str, Any]:
        launch = self._launch
        optional = {
            "partition": launch.partition,
            "account": launch.account,
            "gpus_per_node": launch.gpus_per_worker or None,
            "setup": list(launch.setup) or None,
        }
        extra = {_option(name): value for name, value in launch.extra.items()}
        return {name: value for name, value in optional.items() if value is not None} | {
            "job_name": f"sega-{self._name}",
            "time": launch.timeout_min,
            "array_parallelism": launch.workers,
            "additional_parameters": {"requeue": True} | extra,
        }

    def running(self, handles: Collection[str]) -> set[str]:
        """The tasks that are in the queue, or left it so recently that their outcome may be on its way."""
        now = time.monotonic()
        if self._queue_time is None or now - self._queue_time >= _QUEUE_SECONDS:
            self._queue_time = now
            self._queued = self._queued_tasks(handles)
        for handle in handles:
            if handle in self._queued:
                self._gone_since.pop(handle, None)
            else:
                self._gone_since.setdefault(handle, now)
        return {handle for handle in handles if now - self._gone_since.get(handle, now) < _QUEUE_SECONDS}

    def _queued_tasks(self, handles: Collection[str]) -> set[str]:
        """The tasks that are pending or running."""
        jobs = sorted({handle.partition("_")[0] for handle in handles})
        options = ("--noheader", "--array", "--format=%i", f"--jobs={','.join(jobs)}")
        status, output = _run_slurm("squeue", *options)
        if status == 0:
            return set(output.split())
        # Slurm forgets a job some minutes after its end. Any other error tells nothing of the tasks, and to
        # take them for ended would start a second process for each shard.
        return set() if "Invalid job id" in output else set(handles)

    def cancel(self, handles: Collection[str]) -> None:
        """Cancel the tasks and wait until they have left the queue, for a minute at most.

        Tasks whose handles :meth:`submit` could not return, since it was interrupted, are cancelled too.
        """
        handles = self._submitted.union(handles)
        self._submitted.clear()
        if not handles:
            return
        _run_slurm("scancel", *handles)
        deadline = time.monotonic() + _CANCEL_SECONDS
        while queued := self._queued_tasks(handles) & set(handles):
            if time.monotonic() > deadline:
                log.warning("Slurm has not ended its tasks: scancel %s", " ".join(sorted(queued)))
                return
            time.sleep(0.5)

    def stderr_path(self, handle: str) -> str:
        """The task's log of errors."""
        return f"{self._store.launch_dir}/slurm/{handle}_0_log.err"

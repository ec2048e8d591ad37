"""Workers on a cluster: tasks of a job array that submitit hands to Slurm, and what Slurm says of them."""

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

from sega_bench.cell import shown
from sega_bench.config import LaunchConfig
from sega_bench.errors import UserError, check_count, nearest
from sega_bench.launch.worker import Errand
from sega_bench.store import Store
from sega_bench.system.signals import held

log = logging.getLogger(__name__)

_ANSWER_SECONDS = 20.0
"""A controller that takes longer does not answer."""
_ASK_SECONDS = 5.0
"""Slurm is asked no more often."""
_PATIENCE_SECONDS = 60.0
_REQUEUES = 1_000_000
"""Of a task; what makes no progress gives up by itself."""

_BLOCKED = (
    "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
"""Python that keeps USR2, which would end a process that is still importing, until it has a handler."""

_OURS = {
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
"""Options of sbatch that have a key of their own, or must be as they are."""


def check(launch: LaunchConfig) -> None:
    """Refuse what no cluster can be asked for from here.

    Raises:
        UserError: there is no Slurm, it does not answer, or its sbatch has no such option.
    """
    for program in ("sbatch", "squeue", "scancel", "sinfo"):
        if shutil.which(program) is None:
            raise UserError(
                f"launch=slurm: there is no {program} here: run it where jobs are submitted, or launch=local"
            )
    code, said = _ask("sinfo", "--noheader")
    if code != 0:
        raise UserError(f"launch=slurm: {said}: wait until the cluster answers, or launch=local")
    known = sorted(set(re.findall(r"--([a-z][a-z0-9-]+)", _ask("sbatch", "--help")[1])) - {*_OURS, "help"})
    for name in map(_option, launch.extra):
        if name in _OURS:
            raise UserError(f"launch.extra.{name} is not an extra: it is decided by {_OURS[name]}")
        if name not in known:
            raise UserError(f"launch.extra.{name}: {nearest(name, known)}sbatch has {', '.join(known)}")


def _option(name: Any) -> str:
    """An option of sbatch by its name with dashes or underscores."""
    return str(name).replace("_", "-")


def _ask(*command: str) -> tuple[int, str]:
    """A command of Slurm's: its exit status, and what it says."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return 1, f"{command[0]} did not answer in {_ANSWER_SECONDS:.0f} seconds"
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr.strip() or done.stdout


def cpus(launch: LaunchConfig) -> int:
    """Of each worker, and so its threads."""
    asked = {_option(name): value for name, value in launch.extra.items()}.get("cpus-per-task", 1)
    if type(asked) is not int:
        raise UserError(f"launch.extra.cpus-per-task is {shown(asked)}, but it must be a number")
    check_count("launch.extra.cpus-per-task", asked, 1024)
    return asked


class Slurm:
    """Tasks of job arrays, which outlive this process.

    Args:
        store: their folder, which every node sees.
        launch: what each asks for.
        name: of the job.
    """

    outlives_launcher = True

    def __init__(self, store: Store, launch: LaunchConfig, name: str) -> None:
        self._store, self._launch, self._name = store, launch, name
        self._started: set[str] = set()
        self._asked: float | None = None
        self._queued: set[str] = set()
        self._gone_since: dict[str, float] = {}

    def start(self, errands: Sequence[Errand]) -> list[str]:
        """Submit the errands, several as one array; returns what each task is called, as ``12_0``.

        Raises:
            UserError: Slurm refuses them, in its own words.
        """
        import submitit
        from submitit.core.utils import FailedJobError

        executor = submitit.SlurmExecutor(
            self._store.launch_dir.absolute() / "slurm",
            max_num_timeout=_REQUEUES,
            python=f"{shlex.quote(sys.executable)} -c {shlex.quote(_BLOCKED)}",
        )
        executor.update_parameters(**self._parameters())
        try:
            # Submitit prints what it raises; and nothing may be submitted that nobody knows of.
            with redirect_stderr(io.StringIO()), held(signal.SIGINT, signal.SIGTERM):
                handles = [str(job.job_id) for job in executor.submit_array(errands)]
                self._started.update(handles)
        except (FailedJobError, OSError) as error:
            raise UserError(f"launch=slurm: {error}") from error
        self._asked = None
        return handles

    def _parameters(self) -> Mapping[str, Any]:
        launch = self._launch
        asked = {
            "partition": launch.partition,
            "account": launch.account,
            "gpus_per_node": launch.gpus_per_worker or None,
            "setup": list(launch.setup) or None,
        }
        extra = {_option(name): value for name, value in launch.extra.items()}
        return {name: value for name, value in asked.items() if value is not None} | {
            "job_name": f"sega-{self._name}",
            "time": launch.timeout_min,
            "array_parallelism": launch.workers,
            "additional_parameters": {"requeue": True} | extra,
        }

    def alive(self, handles: Collection[str]) -> set[str]:
        """Which of them Slurm may still run, or has not been gone for so long that word of their end had
        time to come.
        """
        now = time.monotonic()
        if self._asked is None or now - self._asked >= _ASK_SECONDS:
            self._asked = now
            self._queued = self._ask_queue(handles)
        for handle in handles:
            if handle in self._queued:
                self._gone_since.pop(handle, None)
            else:
                self._gone_since.setdefault(handle, now)
        return {handle for handle in handles if now - self._gone_since.get(handle, now) < _ASK_SECONDS}

    def _ask_queue(self, handles: Collection[str]) -> set[str]:
        """Which are pending or running; all of them if Slurm does not say."""
        jobs = sorted({handle.partition("_")[0] for handle in handles})
        code, said = _ask("squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(jobs)}")
        if code == 0:
            return set(said.split())
        return set() if "Invalid job id" in said else set(handles)

    def end(self, handles: Collection[str]) -> None:
        """Cancel them, and what was submitted when this was interrupted, and wait until none is left."""
        handles = self._started.union(handles)
        self._started.clear()
        if not handles:
            return
        _ask("scancel", *handles)
        patience = time.monotonic() + _PATIENCE_SECONDS
        while left := self._ask_queue(handles) & set(handles):
            if time.monotonic() > patience:
                log.warning("Slurm has not ended its tasks: scancel %s", " ".join(sorted(left)))
                return
            time.sleep(0.5)

    def log(self, handle: str) -> str:
        """Where one of them said what went wrong."""
        return f"{self._store.launch_dir}/slurm/{handle}_0_log.err"

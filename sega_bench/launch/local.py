"""Runs workers as processes of this machine through submitit, each with its own GPU."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Collection, Sequence
from typing import Any

import torch

from sega_bench.config import Config
from sega_bench.errors import UserError
from sega_bench.launch.worker import WorkerTask
from sega_bench.planning.launch_options import device_of
from sega_bench.store import Store
from sega_bench.system.signals import deferred

_GRACE_SECONDS = 30.0
_TIMEOUT_MIN = 60 * 24 * 365
"""Submitit wants a time limit: a year stands for none."""


def visible_gpus(config: Config) -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them; empty on a CPU."""
    if device_of(config).type != "cuda":
        return []
    listed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count()
    return listed[:count] or [str(number) for number in range(count)]


def worker_count(config: Config) -> int:
    """``launch.workers``; one worker per GPU if it is ``auto``.

    Raises:
        UserError: there are fewer GPUs.
    """
    requested, available = config.launch.workers, len(visible_gpus(config))
    if available and requested != "auto" and requested > available:
        raise UserError(
            f"launch.workers is {requested}, but there are {available} GPUs: launch.workers=auto takes all"
        )
    return max(1, available) if requested == "auto" else int(requested)


class LocalBackend:
    """Processes of this machine, which end with the launching process. A handle is a process id.

    Args:
        store: the sweep's folder, which holds their logs.
        gpus: the GPU of each worker number; empty on a CPU.
    """

    outlives_launcher = False

    def __init__(self, store: Store, gpus: Sequence[str]) -> None:
        self._store, self._gpus = store, gpus
        self._jobs: dict[str, Any] = {}  # submitit's jobs by their handle

    def submit(self, tasks: Sequence[WorkerTask]) -> list[str]:
        """Start a process for each task; returns their handles."""
        import submitit

        handles = []
        for task in tasks:
            gpu = f"CUDA_VISIBLE_DEVICES={self._gpus[task.number]} " if self._gpus else ""
            executor = submitit.LocalExecutor(
                self._store.launch_dir / str(task.number), python=f"env {gpu}{shlex.quote(sys.executable)}"
            )
            executor.update_parameters(timeout_min=_TIMEOUT_MIN)
            # The worker inherits the blocked SIGINT: on Ctrl-C the launcher alone ends the workers.
            with deferred(signal.SIGINT):
                job = executor.submit(task)
                self._jobs[job.job_id] = job
            handles.append(str(job.job_id))
        return handles

    def running(self, handles: Collection[str]) -> set[str]:
        """The handles whose process has not ended."""
        return {handle for handle in handles if not self._jobs[handle].done()}

    def cancel(self, handles: Collection[str]) -> None:
        """End the processes, wait until they have ended, and give up after a grace period.

        Processes whose handles :meth:`submit` could not return, since it was interrupted, end too.
        """
        handles = {*handles, *self._jobs}
        for handle in self.running(handles):
            os.kill(int(handle), signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        while self.running(handles) and time.monotonic() < deadline:
            time.sleep(0.05)

    def stderr_path(self, handle: str) -> str:
        """The process's log of errors."""
        return str(self._jobs[handle].paths.stderr)

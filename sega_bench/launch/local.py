"""Workers on this machine: processes that submitit starts, each with a GPU of its own."""

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
from sega_bench.launch.worker import Errand
from sega_bench.planning.launch_options import device_of
from sega_bench.store import Store
from sega_bench.system.signals import held

_GRACE_SECONDS = 30.0
_ENDLESS_MIN = 60 * 24 * 365


def gpus(config: Config) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that this process sees."""
    if device_of(config).type != "cuda":
        return []
    listed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count()
    return listed[:count] or [str(number) for number in range(count)]


def workers(config: Config) -> int:
    """One a GPU, or as many as were asked for.

    Raises:
        UserError: there are not so many GPUs.
    """
    count, there = config.launch.workers, len(gpus(config))
    if there and count != "auto" and count > there:
        raise UserError(
            f"launch.workers is {count}, but there are {there} GPUs: launch.workers=auto takes all"
        )
    return max(1, there) if count == "auto" else int(count)


class Local:
    """Processes of this machine, which end with this one.

    Args:
        store: their folder.
        gpus: one for each, none on a CPU.
    """

    outlives_launcher = False

    def __init__(self, store: Store, gpus: Sequence[str]) -> None:
        self._store, self._gpus = store, gpus
        self._jobs: dict[str, Any] = {}  # submitit's, by their process

    def start(self, errands: Sequence[Errand]) -> list[str]:
        """Start a process for each errand; returns what each is called."""
        import submitit

        handles = []
        for errand in errands:
            gpu = f"CUDA_VISIBLE_DEVICES={self._gpus[errand.number]} " if self._gpus else ""
            executor = submitit.LocalExecutor(
                self._store.launch_dir / str(errand.number), python=f"env {gpu}{shlex.quote(sys.executable)}"
            )
            executor.update_parameters(timeout_min=_ENDLESS_MIN)
            with held(signal.SIGINT):  # the worker inherits this: Ctrl-C is the launcher's business
                job = executor.submit(errand)
                self._jobs[job.job_id] = job
            handles.append(str(job.job_id))
        return handles

    def alive(self, handles: Collection[str]) -> set[str]:
        """Which of them have not ended."""
        return {handle for handle in handles if not self._jobs[handle].done()}

    def end(self, handles: Collection[str]) -> None:
        """End them, and what was started when this was interrupted, and wait until they have."""
        handles = {*handles, *self._jobs}
        for handle in self.alive(handles):
            os.kill(int(handle), signal.SIGTERM)
        patience = time.monotonic() + _GRACE_SECONDS
        while self.alive(handles) and time.monotonic() < patience:
            time.sleep(0.05)

    def log(self, handle: str) -> str:
        """Where one of them said what went wrong."""
        return str(self._jobs[handle].paths.stderr)

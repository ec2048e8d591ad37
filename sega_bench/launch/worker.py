"""A worker's whole life: it makes its part of a sweep, wherever it was started, and notes how it ended.

What it has recorded already, in a life before this one, it leaves out. So it may be killed and started again
at any time, by whomever.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import sega_bench
from sega_bench import version
from sega_bench.cell import Cell
from sega_bench.errors import UserError, named
from sega_bench.execution import jobs, runner
from sega_bench.execution.jobs import Job
from sega_bench.launch.wandb_logging import telling
from sega_bench.planning import manifest
from sega_bench.sega.batching import Batching
from sega_bench.sega.schedule import form_waves
from sega_bench.sega.wave import count_timesteps
from sega_bench.store import Record, Store
from sega_bench.store.following import rows_since
from sega_bench.system import gc_control, signals
from sega_bench.system.atomic import is_running

ATTEMPTS = 3
"""So many lives in a row may end before their time and record nothing of a shard; then its cells fail."""


@dataclass(frozen=True)
class Outcome:
    """How a worker ended.

    Args:
        micro, decode: the sizes of batches that fitted into its memory.
        mistake: what the user can mend.
        fault: why it ended before its time.
    """

    micro: int | None = None
    decode: int | None = None
    mistake: str | None = None
    fault: str | None = None


def read_outcome(store: Store, number: int) -> Outcome | None:
    """How a worker ended; None if it has not, or had no time to say so."""
    try:
        return Outcome(**json.loads(store.outcome_path(number).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def clear(store: Store, number: int) -> None:
    """Forget how a worker's earlier lives went, before another one begins."""
    store.outcome_path(number).unlink(missing_ok=True)
    store.starts_path(number).unlink(missing_ok=True)


def part_of(job: Job, cells: Sequence[Cell], unscored: Sequence[Record]) -> Job:
    """Some of a job's cells, as a job of their own that holds no lock and knows nothing of the others."""
    return replace(
        job,
        plan=replace(job.plan, cells=(*cells, *(record.cell for record in unscored))),
        waves=form_waves(cells, job.plan.config.engine.wave_rows, count_timesteps),
        unscored=tuple(unscored),
        stored=None,
        confirm=jobs.at_ease,
    )


def left(part: Job, number: int, since: int) -> Job:
    """What of a part is not recorded.

    Args:
        part: from :func:`part_of`.
        number: of the worker.
        since: bytes of its records that are older than the part.
    """
    recorded = {row["key"] for row in rows_since(part.store, str(number), since)}
    cells = [cell for wave in part.waves for cell in wave.cells if cell.key not in recorded]
    return part_of(part, cells, [one for one in part.unscored if one.cell.key not in recorded])


@dataclass(frozen=True)
class Errand:
    """What a worker is sent to do. It is pickled, and called in the worker's process.

    Args:
        part: what it is to make.
        number: names its records file.
        since: bytes of that file that are older than the part.
        code: :func:`code` of who sent it.
        launcher: the process to end with; None lets it live on without.
    """

    part: Job
    number: int
    since: int
    code: Mapping[str, str]
    launcher: int | None = None

    def __call__(self) -> None:
        """Do it, and note how that ended. On USR2, after the present wave, go on in another life."""
        gc_control.end_without_looking()
        asked_to_leave = threading.Event()
        go_on_later: Any = signal.signal(signal.SIGUSR2, lambda number, frame: asked_to_leave.set())
        if self.launcher is None:
            signal.signal(signal.SIGTERM, self._end_if_over)
        else:
            threading.Thread(target=_leave_with, args=(self.launcher,), daemon=True).start()
            signals.listen()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])  # one that came early comes now
        outcome = self._do(asked_to_leave.is_set)
        if outcome is None:
            go_on_later(signal.SIGUSR2, None)  # submitit's: it submits the checkpoint, requeues and exits
        else:
            self.part.store.write_text(
                self.part.store.outcome_path(self.number), json.dumps(asdict(outcome)) + "\n"
            )

    def checkpoint(self) -> Any:
        """What another life is to do, for submitit: the same, for the store knows how far it came."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _do(self, is_leaving: Callable[[], bool]) -> Outcome | None:
        """How it ended; None if it has to go on in another life."""
        try:
            self._check()
            part = left(self.part, self.number, self.since)
            if self._starts(part.missing) > ATTEMPTS:
                return Outcome(fault=f"began {ATTEMPTS} times and recorded nothing, interrupted each time")
            batching = self._work(part, is_leaving) if part.missing else part.batching
            if is_leaving() and left(part, self.number, self.since).missing:
                return None
            return Outcome(batching.micro, batching.decode)
        except UserError as error:
            return Outcome(mistake=str(error))
        except Exception as error:
            logging.getLogger("submitit").exception("worker %s", self.number)
            return Outcome(fault=f"raised {named(error)}")

    def _work(self, part: Job, is_leaving: Callable[[], bool]) -> Batching:
        worker = str(self.number)
        with telling(part, worker) as tell:
            return runner.work(part, worker, is_leaving, tell)

    def _check(self) -> None:
        if others := differences(code(), self.code):
            raise UserError(
                f"launch: worker {self.number} on {os.uname().nodename} has {others} than the launching "
                f"command, in {Path(sega_bench.__file__).parent}: install the same for both"
            )

    def _starts(self, missing: int) -> int:
        """How many lives in a row, this one included, began with so many cells missing."""
        path = self.part.store.starts_path(self.number)
        try:
            before = json.loads(path.read_bytes())
        except (OSError, ValueError):
            before = {}
        starts = before.get("starts", 0) + 1 if before.get("missing") == missing else 1
        self.part.store.write_text(path, json.dumps({"missing": missing, "starts": starts}) + "\n")
        return int(starts)

    def _end_if_over(self, number: int, frame: FrameType | None) -> None:
        """A cluster's SIGTERM: end at once if the launch was called off; else work on until it kills.

        A pre-empted job that ended by itself would not be requeued.
        """
        if not self.part.store.launch_path.exists():
            os._exit(signals.INTERRUPTED)


@cache
def code() -> dict[str, str]:
    """What is the same in all processes that share a sweep: every line of this package, the libraries."""
    folder = Path(sega_bench.__file__).parent
    lines = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))
    source = f"{version.__version__} ({hashlib.sha256(lines).hexdigest()[:8]})"
    return {"Python": platform.python_version(), **manifest.versions(), "sega_bench": source}


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """What of two processes' :func:`code` differs, in words; empty if nothing does."""
    names = [name for name in {**there, **here} if here.get(name) != there.get(name)]
    return ", ".join(f"another {name} ({here.get(name)}, not {there.get(name)})" for name in names)


def _leave_with(launcher: int) -> None:
    """End this process when its launcher is gone: nobody would hold the folder's lock for it."""
    while is_running(launcher):
        time.sleep(1.0)
    os._exit(signals.INTERRUPTED)

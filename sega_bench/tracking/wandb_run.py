"""One Weights & Biases run, of a sweep or of one worker, logged on a thread of its own.

Nothing here is on the sweep's critical path: a failure of W&B is one line in the log, never a failed sweep.
"""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import wandb

from sega_bench.config import WandbConfig
from sega_bench.errors import clean
from sega_bench.store import Record, Store
from sega_bench.tracking import run_ids
from sega_bench.tracking.headline import Live, configuration
from sega_bench.tracking.login import ASK_SECONDS, Mode, is_logged_in, is_there
from sega_bench.tracking.worker_thread import WorkerThread

MOST_BEHIND = 1000
"""The most points of the live curves that may wait to be sent; further ones are dropped."""

PATIENCE_SECONDS = 120.0
"""How long the end of a sweep waits for its run to close while the server answers."""

_SETTINGS = wandb.Settings(
    silent=True,
    console="off",
    init_timeout=10,
    finish_timeout=PATIENCE_SECONDS,
    finish_timeout_raises=True,
    disable_git=True,
    disable_code=True,
    x_disable_meta=True,  # the machine's name, user and paths
    x_disable_stats=True,
    x_save_requirements=False,
)

_GIVEN = frozenset(os.environ)
"""Variables that the user set, not an earlier sweep in this process."""

_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


class WandbRun:
    """One run. All calls but :meth:`close` return at once; the work is done on one other thread.

    The sweep never waits for that thread if it is stuck.

    Args:
        store: the run's files and its id go to its ``wandb`` folder; a resumed sweep goes on with its run.
        plan: what plan.json says; the run's configuration, without paths of this machine.
        mode: as :func:`sega_bench.tracking.login.resolve_mode` gives it. An online run that can't be had
            becomes an offline one.
        project: of W&B.
        entity: of W&B; None is the user's own.
        already: how many cells earlier runs have done.
        worker: whose run it is; None is the sweep's.
    """

    def __init__(
        self,
        store: Store,
        plan: Mapping[str, Any],
        mode: Mode,
        *,
        project: str = WandbConfig.project,
        entity: str | None = None,
        already: int = 0,
        worker: str | None = None,
    ) -> None:
        if mode == "online" and not is_logged_in():  # the SDK would ask for a key
            _log.warning("W&B: no online run (no key: wandb login, or WANDB_API_KEY), so it is kept offline")
            mode = "offline"
        self.store = store
        self._mode = mode
        self._live = Live(already)
        self._begun = time.monotonic()
        self._thread = WorkerThread("wandb")
        start = partial(_start, store, plan, project, entity, worker)
        self._run = self._later(lambda: self._begin(start))

    def _begin(self, start: Callable[[Mode], wandb.Run]) -> wandb.Run:
        """Start the run; offline if it cannot be online."""
        try:
            return start(self._mode)
        except Exception as error:
            if self._mode != "online":
                raise
            _log.warning("W&B: no online run (%s), so it is kept offline", clean(str(error)))
            self._mode = "offline"
            wandb.teardown()  # else the id counts as taken
            return start(self._mode)

    @property
    def behind(self) -> int:
        """How many points wait to be sent."""
        return self._thread.behind

    def log(self, records: Sequence[Record]) -> None:
        """Add a point to the live curves: counts, speed, and the mean scores so far."""
        self._live.add(records)
        point = self._live.point() | {
            "cells_per_second": self._live.new / max(time.monotonic() - self._begun, 1e-9)
        }
        if self.behind < MOST_BEHIND:
            self._later(lambda: self._with_run(lambda run: run.log(point)))

    def close(
        self, last: Callable[[wandb.Run], _Result], patience: float | None = None
    ) -> tuple[_Result | None, str | None]:
        """Do the last work and close the run; waits for a limited time, and only while the server answers.

        Args:
            last: what is still to be handed over.
            patience: seconds; None is :data:`PATIENCE_SECONDS`.

        Returns:
            What ``last`` returned, None if it raised. The command that sends a run that is offline or was not
            uploaded in time; the address of one that was uploaded; None if there is no run.

        Raises:
            TimeoutError: the run was let go of, for it does not come to an end, or its server is gone.
        """
        handed = self._later(lambda: self._with_run(last))
        closed = self._later(lambda: self._with_run(_close))
        if not self._is_done(closed, PATIENCE_SECONDS if patience is None else patience):
            _abandon_service()
            raise TimeoutError
        return handed.result(), closed.result()

    def _is_done(self, closed: Future[Any], patience: float) -> bool:
        """Wait until the run is closed; False if that takes too long or its server is gone."""
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if wait([closed], min(patience, ASK_SECONDS / 2)).done:
                return True
            is_gone = not is_there()
            if is_gone and self._mode == "online":  # an offline run, as it may be by now, ends soon
                return False
        return False

    def _with_run(self, work: Callable[[wandb.Run], _Result]) -> _Result | None:
        run = self._run.result()  # made earlier in the same thread: never waits
        return work(run) if run else None

    def _later(self, work: Callable[[], _Result]) -> Future[_Result | None]:
        return self._thread.submit(lambda: guarded(work))


def _abandon_service() -> None:
    """Keep the SDK from waiting for its service process at exit, as long as ``finish_timeout`` allows.

    The SDK has no public function for this. The service process ends with ours.
    """
    try:
        wandb.setup()._connection._cleanup()  # type: ignore[union-attr,misc]
    except AttributeError as error:
        _log.warning(
            "W&B: this version of its SDK cannot be abandoned (%s): the program may wait %.0f s at its end",
            error,
            PATIENCE_SECONDS,
        )


def guarded(work: Callable[[], _Result]) -> _Result | None:
    """The result of some work with W&B; None, and a line in the log, if it raises."""
    try:
        return work()
    except Exception as error:  # no error of W&B may fail the sweep
        _log.warning("W&B: %s: %s", type(error).__name__, clean(str(error)))
        return None


def _start(
    store: Store, plan: Mapping[str, Any], project: str, entity: str | None, worker: str | None, mode: Mode
) -> wandb.Run:
    # The SDK reads these only from the environment. They keep its files inside the sweep's folder.
    ours = {"WANDB_DATA_DIR": store.wandb_dir / "data", "WANDB_CACHE_DIR": store.wandb_dir / "cache"}
    os.environ.update({name: str(path) for name, path in ours.items() if name not in _GIVEN})
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else the exit waits for reports
    store.wandb_dir.mkdir(parents=True, exist_ok=True)
    names = run_ids.names(store, plan, worker)
    run = wandb.init(
        name=names.name,
        group=names.group,
        job_type=names.job_type,
        project=project,
        entity=entity,
        id=run_ids.run_id(store, worker),
        resume="allow",
        notes=plan["description"],
        config=configuration(plan),
        dir=store.root,
        mode=mode,
        settings=_SETTINGS,
    )
    _leave_imports_alone(run)
    run.define_metric("cells_done")
    run.define_metric("*", step_metric="cells_done")  # W&B's own begins at 0 when resumed
    return run


def _leave_imports_alone(run: wandb.Run) -> None:
    """Remove the SDK's import hooks, which report imports to its service process.

    Once that process is gone, for example after a pre-emption's SIGTERM, every such import would raise.
    """
    with suppress(ImportError):  # private API: absent in another version, there is nothing to remove
        from wandb.sdk.lib.import_hooks import unregister_post_import_hook
        from wandb.sdk.lib.telemetry import list_telemetry_imports

        for module in list_telemetry_imports():
            unregister_post_import_hook(module, run.id)


def _close(run: wandb.Run) -> str | None:
    """Finish the run within a time limit; returns the command that uploads it, or its address."""
    offline, url, sync = run.offline, run.url, f"wandb sync {shlex.quote(run.settings.sync_dir)}"
    try:
        run.finish()
    except TimeoutError:
        _log.warning("W&B: not all was uploaded in time, this sends the rest: %s", sync)
        return sync
    return sync if offline else url

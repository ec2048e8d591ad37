"""The sweep as a Weights & Biases run (``python -m sega_bench.views.wandb FOLDER`` makes it again).

Nothing here is on the sweep's critical path, and whatever goes wrong with W&B is one line of the log, never a
failure of the sweep.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import wandb

from sega_bench.config import WandbConfig
from sega_bench.errors import clean, mistakes_in_one_line
from sega_bench.store import Record, Store, lock
from sega_bench.views.account import ASK_SECONDS, Mode, is_logged_in, is_there, resolve_mode
from sega_bench.views.background import Background
from sega_bench.views.claims import claims
from sega_bench.views.grids import caption
from sega_bench.views.headline import Live, configuration, found, headline
from sega_bench.views.tables import digest, load, summarise

MOST_ROWS = 1000
"""Rows of the table of cells, each with two images; of more cells so many are taken evenly."""

MOST_BEHIND = 1000
"""Points of the live curves that wait to be sent; while so many do, further ones are left out."""

PATIENCE_SECONDS = 120.0
"""How long the end of a sweep waits for a run to be handed over and closed, if its server answers."""

_DIGEST = "digest.txt"

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
"""What the user has set, as against what an earlier sweep in this process did."""

_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


def shown(store: Store) -> str | None:
    """The digest (:func:`sega_bench.views.tables.digest`) of what the sweep's run was last handed."""
    try:
        return (store.wandb_dir / _DIGEST).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None


class Reporter:
    """One sweep's run. Calls return at once, except :meth:`finish`; all of them work in one other thread.

    Whatever that thread is stuck in, the sweep does not wait for it.

    Args:
        store: the run's files and its id go to its ``wandb`` folder; a resumed sweep goes on with its run.
        plan: what plan.json says; the run's configuration, without paths of this machine.
        mode: as :func:`resolve_mode` gives it. An online run that can't be had becomes an offline one.
        project: of W&B.
        entity: of W&B; None is the user's own.
        already: how many cells earlier runs have done.
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
    ) -> None:
        if mode == "online" and not is_logged_in():  # the SDK would ask for a key
            _log.warning("W&B: no online run (no key: wandb login, or WANDB_API_KEY), so it is kept offline")
            mode = "offline"
        self._store, self._mode = store, mode
        self._live = Live(already)
        self._begun = time.monotonic()
        self._thread = Background("wandb")
        self._run = self._later(lambda: self._begin(partial(_start, store, plan, project, entity)))

    def _begin(self, start: Callable[[Mode], wandb.Run]) -> wandb.Run:
        """The run; an offline one if there can be no other."""
        try:
            return start(self._mode)
        except Exception as error:
            if self._mode != "online":
                raise
            _log.warning("W&B: no online run (%s), so it is kept offline", clean(str(error)))
            self._mode = "offline"
            wandb.teardown()  # else the id counts as taken
            return start(self._mode)

    def log(self, records: Sequence[Record]) -> None:
        """Add a point to the live curves: counts, speed, and the mean scores so far."""
        self._live.add(records)
        point = self._live.point() | {
            "cells_per_second": self._live.new / max(time.monotonic() - self._begun, 1e-9)
        }
        if self._thread.behind < MOST_BEHIND:
            self._later(lambda: self._with_run(lambda run: run.log(point)))

    def finish(
        self, frame: pd.DataFrame, summary: pd.DataFrame, claimed: pd.DataFrame, grids: Sequence[Path]
    ) -> str | None:
        """Hand over the results and close the run; waits while its server answers, two minutes at most.

        Args:
            frame: as :func:`sega_bench.views.tables.load` gives it.
            summary: as :func:`sega_bench.views.tables.summarise` gives it.
            claimed: as :func:`sega_bench.views.claims.claims` gives it.
            grids: the sheets' files.

        Returns:
            The command that sends a run that is offline or was not uploaded in time, or makes one again whose
            server is gone; the address of one that was uploaded; None if there is no run.
        """
        store = self._store
        told = headline(summary, claimed) | found(store.answers())
        handed = self._later(
            lambda: self._with_run(lambda run: _hand_over(run, store, frame, summary, told, grids))
        )
        closed = self._later(lambda: self._with_run(_close))
        if not self._is_done(closed):
            return self._abandon()
        if (carried := handed.result()) and closed.result():
            _guarded(lambda: store.write_text(store.wandb_dir / _DIGEST, carried))
        return closed.result()

    def _is_done(self, closed: Future[Any]) -> bool:
        """Wait until the run is closed; false once that takes too long, or needs a server that is gone."""
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            if wait([closed], min(PATIENCE_SECONDS, ASK_SECONDS / 2)).done:
                return True
            is_gone = self._mode == "online" and not is_there()
            if (
                is_gone and self._mode == "online"
            ):  # or it has meanwhile become an offline run, which ends soon
                return False
        return False

    def _abandon(self) -> str:
        """Let go of what does not come to an end; the command that makes the run again, all of it."""
        again = f"python -m sega_bench.views.wandb {shlex.quote(str(self._store.root))} --mode online"
        _log.warning("W&B: its server does not answer; once it does: %s", again)
        # Else the SDK lets the program wait at its end, as long as finish_timeout allows. There is no public
        # name for that, so it is looked for with care. Its own process ends with ours.
        with suppress(AttributeError):
            wandb.setup()._connection._cleanup()  # type: ignore[union-attr,misc]
        return again

    def _with_run(self, work: Callable[[wandb.Run], _Result]) -> _Result | None:
        run = self._run.result()  # made earlier in the same thread: never waits
        return work(run) if run else None

    def _later(self, work: Callable[[], _Result]) -> Future[_Result | None]:
        return self._thread.submit(lambda: _guarded(work))


def _guarded(work: Callable[[], _Result]) -> _Result | None:
    try:
        return work()
    except Exception as error:  # whatever W&B raises is no concern of the sweep
        _log.warning("W&B: %s: %s", type(error).__name__, clean(str(error)))
        return None


def _start(store: Store, plan: Mapping[str, Any], project: str, entity: str | None, mode: Mode) -> wandb.Run:
    # The SDK reads these from the environment only. What it would put elsewhere stays in the sweep's folder.
    ours = {"WANDB_DATA_DIR": store.wandb_dir / "data", "WANDB_CACHE_DIR": store.wandb_dir / "cache"}
    os.environ.update({name: str(path) for name, path in ours.items() if name not in _GIVEN})
    os.environ.setdefault("WANDB_SILENT", "true")
    store.wandb_dir.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=project,
        entity=entity,
        id=_run_id(store),
        resume="allow",
        name=plan["name"],
        group=plan["model"]["name"],
        job_type="sweep",
        notes=plan["description"],
        config=configuration(plan),
        dir=store.root,
        mode=mode,
        settings=_SETTINGS,
    )
    run.define_metric("cells_done")
    run.define_metric("*", step_metric="cells_done")  # W&B's own begins at 0 when resumed
    return run


def _run_id(store: Store) -> str:
    path = store.wandb_dir / "run_id.txt"
    if path.exists() and re.fullmatch(r"[0-9a-f]{8}", path.read_text()):
        return path.read_text()
    store.write_text(path, run_id := uuid.uuid4().hex[:8])
    return run_id


def _hand_over(
    run: wandb.Run,
    store: Store,
    frame: pd.DataFrame,
    summary: pd.DataFrame,
    told: dict[str, Any],
    grids: Sequence[Path],
) -> str:
    """Tables, pictures, what it comes to, and the results' files; returns the digest of what they show."""
    done = int((frame["status"] == "done").sum())
    sheets = {f"grids/{path.stem}": wandb.Image(str(path), caption=caption(path)) for path in grids}
    cells = _cells(store, frame)
    run.log({"cells_done": done, "cells": cells, "summary": _table(summary), **sheets})
    run.summary.update(told)
    run.summary.update({"cells_in_all": len(frame), "cells_in_table": len(cells.data)})
    artifact = wandb.Artifact(f"results-{run.id}", type="results")
    for path in (store.results_parquet, store.summary_csv, store.claims_csv):
        if path.exists():
            artifact.add_file(str(path), name=path.name, skip_cache=True)
    if store.report_dir.exists():  # its pictures of the small kind with it; the large ones are in no artifact
        artifact.add_dir(str(store.report_dir), name="report", skip_cache=True, policy="immutable")
    run.log_artifact(artifact)
    return digest(store)


def _cells(store: Store, frame: pd.DataFrame) -> wandb.Table:
    """One row for each cell, its image and its reference's before its columns; at most :data:`MOST_ROWS`."""
    places = np.unique(np.linspace(0, len(frame) - 1, min(len(frame), MOST_ROWS)).round().astype(int))
    names = [name for name in frame.columns if name not in ("image", "image_sha256")]
    pictures: dict[str, wandb.Image | None] = {}  # one for a reference, however many cells share it

    def picture(key: str, path: Any) -> wandb.Image | None:
        file = store.image_file(path) if isinstance(path, str) else None
        if key not in pictures:
            pictures[key] = wandb.Image(str(file)) if file and file.exists() else None
        return pictures[key]

    image_of = dict(zip(frame["key"], frame["image"], strict=True))
    table = wandb.Table(columns=["image", "reference", *names], allow_mixed_types=True)
    for row in frame.iloc[places].to_dict("records"):
        reference = picture(row["reference_key"], image_of.get(row["reference_key"]))
        table.add_data(picture(row["key"], row["image"]), reference, *(_plain(row[name]) for name in names))
    return table


def _table(frame: pd.DataFrame) -> wandb.Table:
    table = wandb.Table(columns=list(frame.columns), allow_mixed_types=True)
    for row in frame.to_dict("records"):
        table.add_data(*map(_plain, row.values()))
    return table


def _plain(value: Any) -> Any:
    return None if value is None or pd.isna(value) else value


def _sync(run: wandb.Run) -> str:
    return f"wandb sync {shlex.quote(run.settings.sync_dir)}"


def _close(run: wandb.Run) -> str | None:
    """Wait until all is written or uploaded, but not for ever; then how to send it, or where it is."""
    offline, url, sync = run.offline, run.url, _sync(run)
    try:
        run.finish()
    except TimeoutError:
        _log.warning("W&B: not all was uploaded in time, this sends the rest: %s", sync)
        return sync
    return sync if offline else url


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a sweep's W&B run again from its folder alone."""
    parser = argparse.ArgumentParser(prog="python -m sega_bench.views.wandb", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="a sweep's folder, such as outputs/thresholds")
    parser.add_argument("--mode", default="auto", choices=["auto", "online", "offline"])
    parser.add_argument("--project", help="default: that of the sweep")
    parser.add_argument("--entity", help="default: that of the sweep")
    asked = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    with mistakes_in_one_line():
        store, frame = Store(asked.folder), load(asked.folder)
        with lock.held(store):  # a sweep that still runs is at work on the same run
            print(_again(asked, store, frame) or f"W&B: {store.wandb_dir}")


def _again(asked: argparse.Namespace, store: Store, frame: pd.DataFrame) -> str | None:
    plan = store.read_plan() or {}
    mode = resolve_mode(asked.mode)
    already = int((frame["status"] == "done").sum())
    where = asdict(WandbConfig()) | plan["settings"].get("wandb", {})
    reporter = Reporter(
        store,
        plan,
        mode,
        project=asked.project or where["project"],
        entity=asked.entity or where["entity"],
        already=already,
    )
    summary, claimed = (reduce(frame, list(plan["axes"])) for reduce in (summarise, claims))
    return reporter.finish(frame, summary, claimed, sorted(store.grids_dir.glob("*.png")))


if __name__ == "__main__":
    main()

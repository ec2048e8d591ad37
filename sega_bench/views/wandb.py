"""The sweep as a Weights & Biases run (``python -m sega_bench.views.wandb FOLDER`` makes it again).

Nothing here is on the sweep's critical path, and whatever goes wrong with W&B is one line of the log, never a
failure of the sweep.
"""

from __future__ import annotations

import argparse
import logging
import netrc
import os
import re
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import wandb

from sega_bench.config import WANDB_MODES, WandbConfig
from sega_bench.errors import UserError, clean
from sega_bench.store import Record, Store, lock
from sega_bench.views.claims import claims
from sega_bench.views.grids import caption
from sega_bench.views.headline import Live, configuration, headline
from sega_bench.views.tables import digest, load, summarise

Mode = Literal["online", "offline", "disabled"]

MOST_ROWS = 1000
"""Rows of the table of cells, each with two images; of more cells so many are taken evenly."""

_DIGEST = "digest.txt"

_SETTINGS = wandb.Settings(
    silent=True,
    console="off",
    init_timeout=10,
    finish_timeout=120,
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


def resolve_mode(mode: str) -> Mode:
    """``auto`` is online for who is logged in, else offline; ``WANDB_MODE`` decides before either.

    Raises:
        UserError: there is no such mode.
    """
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
    if mode in WANDB_MODES and mode != "auto":
        return mode  # type: ignore[return-value]
    raise UserError(f"wandb.mode: there is no mode {mode!r}; use {', '.join(WANDB_MODES)}")


def _logged_in() -> bool:
    """Whether there are credentials; asks the environment and the netrc file, no server and nobody."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if path and host and netrc.netrc(Path(path).expanduser()).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError, RuntimeError):  # RuntimeError: no home folder
            continue
    return False


class Reporter:
    """One sweep's run. Calls return at once, except :meth:`finish`; all of them work in one other thread.

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
        self._store = store
        self._live = Live(already)
        self._begun = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="wandb")
        self._run = self._later(lambda: _start(store, plan, mode, project, entity))

    def log(self, records: Sequence[Record]) -> None:
        """Add a point to the live curves: counts, speed, and the mean scores so far."""
        self._live.add(records)
        point = self._live.point() | {
            "cells_per_second": self._live.new / max(time.monotonic() - self._begun, 1e-9)
        }
        self._later(lambda: self._with_run(lambda run: run.log(point)))

    def finish(
        self, frame: pd.DataFrame, summary: pd.DataFrame, claimed: pd.DataFrame, grids: Sequence[Path]
    ) -> str | None:
        """Hand over the results and close the run; waits for it, two minutes at most.

        Args:
            frame: as :func:`sega_bench.views.tables.load` gives it.
            summary: as :func:`sega_bench.views.tables.summarise` gives it.
            claimed: as :func:`sega_bench.views.claims.claims` gives it.
            grids: the sheets' files.

        Returns:
            The command that sends a run that is offline or was not uploaded in time, the address of one that
            was; None if there is no run.
        """
        store = self._store
        told = headline(summary, claimed)
        handed = self._later(
            lambda: self._with_run(lambda run: _hand_over(run, store, frame, summary, told, grids))
        )
        closed = self._later(lambda: self._with_run(_close))
        self._thread.shutdown()
        if (carried := handed.result()) and closed.result():
            _guarded(lambda: store.write_text(store.wandb_dir / _DIGEST, carried))
        return closed.result()

    def _with_run(self, work: Callable[[wandb.Run], _Result]) -> _Result | None:
        run = self._run.result()  # made earlier in the same thread: never waits
        return work(run) if run else None

    def _later(self, work: Callable[[], _Result]) -> Future[_Result | None]:
        return self._thread.submit(_guarded, work)


def _guarded(work: Callable[[], _Result]) -> _Result | None:
    try:
        return work()
    except Exception as error:  # whatever W&B raises is no concern of the sweep
        _log.warning("W&B: %s: %s", type(error).__name__, clean(str(error)))
        return None


def _start(store: Store, plan: Mapping[str, Any], mode: Mode, project: str, entity: str | None) -> wandb.Run:
    # The SDK reads these from the environment only. What it would put elsewhere stays in the sweep's folder.
    ours = {"WANDB_DATA_DIR": store.wandb_dir / "data", "WANDB_CACHE_DIR": store.wandb_dir / "cache"}
    os.environ.update({name: str(path) for name, path in ours.items() if name not in _GIVEN})
    os.environ.setdefault("WANDB_SILENT", "true")
    store.wandb_dir.mkdir(parents=True, exist_ok=True)

    def init(mode: Mode) -> wandb.Run:
        return wandb.init(
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

    try:
        run = init(mode)
    except Exception as error:
        if mode != "online":
            raise
        _log.warning("W&B: no online run (%s), so it is kept offline", clean(str(error)))
        wandb.teardown()  # else the id counts as taken
        run = init("offline")
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


def _close(run: wandb.Run) -> str | None:
    """Wait until all is written or uploaded, but not for ever; then how to send it, or where it is."""
    offline, url, sync = run.offline, run.url, f"wandb sync {shlex.quote(run.settings.sync_dir)}"
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
    try:
        store, frame = Store(asked.folder), load(asked.folder)
        with lock.held(store):  # a sweep that still runs is at work on the same run
            print(_again(asked, store, frame) or f"W&B: {store.wandb_dir}")
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


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

"""The sweep as a Weights & Biases run (``python -m sega_bench.tracking.reporter FOLDER`` makes it again)."""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import wandb

from sega_bench.analysis.claims import claims
from sega_bench.analysis.frames import digest, load
from sega_bench.analysis.summary import summarise
from sega_bench.config import WandbConfig
from sega_bench.errors import mistakes_in_one_line
from sega_bench.store import Store, lock
from sega_bench.tracking.headline import found, headline
from sega_bench.tracking.login import resolve_mode
from sega_bench.tracking.wandb_run import WandbRun, guarded
from sega_bench.views.image_grid.write import caption

MOST_ROWS = 1000
"""Rows of the table of cells, each with two images; of more cells so many are taken evenly."""

_DIGEST = "digest.txt"

_log = logging.getLogger(__name__)


def shown(store: Store) -> str | None:
    """The digest (:func:`sega_bench.analysis.summary.digest`) of what the sweep's run was last handed."""
    try:
        return (store.wandb_dir / _DIGEST).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None


class Reporter(WandbRun):
    """One sweep's run, which ends with its results."""

    def finish(
        self, frame: pd.DataFrame, summary: pd.DataFrame, claimed: pd.DataFrame, grids: Sequence[Path]
    ) -> str | None:
        """Hand over the results and close the run; waits while its server answers, two minutes at most.

        Args:
            frame: as :func:`sega_bench.analysis.summary.load` gives it.
            summary: as :func:`sega_bench.analysis.summary.summarise` gives it.
            claimed: as :func:`sega_bench.analysis.claims.claims` gives it.
            grids: the sheets' files.

        Returns:
            The command that sends a run that is offline or was not uploaded in time, or makes one again whose
            server is gone; the address of one that was uploaded; None if there is no run.
        """
        store = self.store
        told = headline(summary, claimed) | found(store.answers())
        try:
            carried, where = self.close(lambda run: _hand_over(run, store, frame, summary, told, grids))
        except TimeoutError:
            again = f"python -m sega_bench.tracking.reporter {shlex.quote(str(store.root))} --mode online"
            _log.warning("W&B: its server does not answer; once it does: %s", again)
            return again
        if carried and where:
            guarded(lambda: store.write_text(store.wandb_dir / _DIGEST, carried))
        return where


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a sweep's W&B run again from its folder alone."""
    parser = argparse.ArgumentParser(prog="python -m sega_bench.tracking.reporter", description=main.__doc__)
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
    axes = list(plan["axes"])
    summary, claimed = (of(frame, axes, store.answers()) for of in (summarise, claims))
    return reporter.finish(frame, summary, claimed, sorted(store.grids_dir.glob("*.png")))


if __name__ == "__main__":
    main()

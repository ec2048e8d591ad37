"""The sweep as a Weights & Biases run (``python -m sega_bench wandb FOLDER`` makes it again)."""

from __future__ import annotations

import logging
import shlex
from typing import Any

import numpy as np
import pandas as pd
import wandb

from sega_bench.analysis.results import Results
from sega_bench.store import Store
from sega_bench.tracking.headline import headline, study_headline
from sega_bench.tracking.wandb_run import WandbRun, guarded
from sega_bench.views.image_grid.write import caption

MOST_ROWS = 1000
"""Rows of the table of cells, each with two images; a larger sweep is sampled evenly."""

_DIGEST = "digest.txt"

_log = logging.getLogger(__name__)


def read_digest(store: Store) -> str | None:
    """The digest of the results that the sweep's run was last given; None without one."""
    try:
        return (store.wandb_dir / _DIGEST).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None


class Reporter(WandbRun):
    """One sweep's run, which ends with its results."""

    def finish(self, results: Results) -> str | None:
        """Hand over the results and close the run; waits two minutes at most, while the server answers.

        Args:
            results: those of the folder; its image sheets and tables have been written.

        Returns:
            The command that sends a run that is offline or was not uploaded in time, or makes one again whose
            server is gone; the address of one that was uploaded; None if there is no run.
        """
        store = self.store
        try:
            logged, where = self.close(lambda run: _log_results(run, results))
        except TimeoutError:
            again = f"python -m sega_bench wandb {shlex.quote(str(store.root))} --mode online"
            _log.warning("W&B: its server does not answer; once it does: %s", again)
            return again
        if logged and where:
            guarded(lambda: store.write_text(store.wandb_dir / _DIGEST, results.digest))
        return where


def _log_results(run: wandb.Run, results: Results) -> bool:
    """Log tables, images, the headline and the results' files; True once all of it was handed over."""
    store, frame = results.store, results.frame
    done = int((frame["status"] == "done").sum())
    grids = sorted(store.grids_dir.glob("*.png"))
    sheets = {f"grids/{path.stem}": wandb.Image(str(path), caption=caption(path)) for path in grids}
    cells = _cells(store, frame)
    run.log({"cells_done": done, "cells": cells, "summary": _table(results.summary), **sheets})
    run.summary.update(headline(results) | study_headline(results.answers))
    run.summary.update({"cells_in_all": len(frame), "cells_in_table": len(cells.data)})
    artifact = wandb.Artifact(f"results-{run.id}", type="results")
    for path in (store.results_parquet, store.summary_csv, store.claims_csv):
        if path.exists():
            artifact.add_file(str(path), name=path.name, skip_cache=True)
    if store.report_dir.exists():  # with its thumbnails; full images are in no artifact
        artifact.add_dir(str(store.report_dir), name="report", skip_cache=True, policy="immutable")
    run.log_artifact(artifact)
    return True


def _cells(store: Store, frame: pd.DataFrame) -> wandb.Table:
    """One row per cell: its image, its reference's image, its columns; at most :data:`MOST_ROWS` rows."""
    places = np.unique(np.linspace(0, len(frame) - 1, min(len(frame), MOST_ROWS)).round().astype(int))
    names = [name for name in frame.columns if name not in ("image", "image_sha256")]
    images: dict[str, wandb.Image | None] = {}  # many cells share a reference

    def image(key: str, path: Any) -> wandb.Image | None:
        file = store.image_file(path) if isinstance(path, str) else None
        if key not in images:
            images[key] = wandb.Image(str(file)) if file and file.exists() else None
        return images[key]

    image_of = dict(zip(frame["key"], frame["image"], strict=True))
    table = wandb.Table(columns=["image", "reference", *names], allow_mixed_types=True)
    for row in frame.iloc[places].to_dict("records"):
        reference = image(row["reference_key"], image_of.get(row["reference_key"]))
        table.add_data(image(row["key"], row["image"]), reference, *(_plain(row[name]) for name in names))
    return table


def _table(frame: pd.DataFrame) -> wandb.Table:
    table = wandb.Table(columns=list(frame.columns), allow_mixed_types=True)
    for row in frame.to_dict("records"):
        table.add_data(*map(_plain, row.values()))
    return table


def _plain(value: Any) -> Any:
    return None if value is None or pd.isna(value) else value

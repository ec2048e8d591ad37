"""Names and ids of a folder's W&B runs, and the commands that upload them; without the SDK."""

from __future__ import annotations

import re
import shlex
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from sega_bench.store import Store


def run_id(store: Store, worker: str | None = None) -> str:
    """The id of a sweep's or a worker's run; kept in the folder so that a resume continues the run."""
    path = store.wandb_dir / ("run_id.txt" if worker is None else f"run_id.{worker}.txt")
    if path.exists() and re.fullmatch(r"[0-9a-f]{8}", path.read_text()):
        return path.read_text()
    store.write_text(path, made := uuid.uuid4().hex[:8])
    return made


class Names(NamedTuple):
    """A run's name, its group and its job type."""

    name: str
    group: str
    job_type: str


def names(store: Store, plan: Mapping[str, Any], worker: str | None = None) -> Names:
    """The names of a sweep's run, or of a worker's.

    A sweep in one process is one run, grouped by model. A sweep on several workers is a group of its own,
    with a run per worker and one for the results.
    """
    name = plan["name"]
    if worker is None and not any(store.wandb_dir.glob("run_id.*.txt")):
        return Names(name, plan["model"]["name"], "sweep")
    group = f"{name}-{run_id(store)}"
    return Names(name, group, "report") if worker is None else Names(f"{name}/{worker}", group, "shard")


def places(store: Store, where: str | None) -> dict[str, str]:
    """Where the folder's runs are, or the commands that upload them, by label.

    Args:
        store: the folder.
        where: the address of the sweep's run, or the command that sends it or makes it again; None if there
            is no run.
    """
    kept = [
        path
        for path in store.wandb_dir.glob("offline-run-*/*.wandb")
        if not path.with_suffix(".wandb.synced").exists()
    ]
    everything = f"wandb sync {shlex.quote(str(store.wandb_dir))}"
    if where is None:
        return {"W&B": everything} if kept else {}
    if "/offline-run-" in where:
        return {"W&B": everything if len(kept) > 1 else where}
    return {"W&B": where} | ({"W&B, offline": everything} if kept else {})

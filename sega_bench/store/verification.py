"""Whether a folder still holds what was written into it, and how to let go of what it does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sega_bench.errors import UserError
from sega_bench.store.folder import DamagedPlanError, Store
from sega_bench.store.records import from_line


@dataclass(frozen=True)
class Damage:
    """A part of a folder that is not as it was written.

    Args:
        path: the file.
        reason: what is wrong with it.
    """

    path: Path
    reason: str


def verify(store: Store) -> tuple[int, list[Damage]]:
    """Read everything that the folder promises: the plan, every line of the records, every image's bytes.

    Images that no row names are left aside, as is what can be made again from the rest: tables, grids, W&B.

    Returns:
        How many images are as their rows say, and what is damaged.

    Raises:
        UserError: the folder holds no sweep, or one of another version.
    """
    files = sorted(store.records_dir.glob("*.jsonl"))
    if not store.plan_path.exists() and not files:
        raise UserError(f"{store.root} holds no sweep: name a folder such as outputs/thresholds")
    damages = [*_plan(store), *(damage for path in files for damage in _lines(path))]
    rows = {str(row["image"]): row for row in store.rows()[0] if row["status"] == "done" and row["image"]}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        intact = list(pool.map(store.is_intact, rows.values()))
    lost = [store.image_file(image) for image, is_intact in zip(rows, intact, strict=True) if not is_intact]
    damages += [Damage(path, "is not what was written" if path.exists() else "is lost") for path in lost]
    return sum(intact), damages


def _plan(store: Store) -> Iterator[Damage]:
    try:
        if store.read_plan() is None:
            yield Damage(store.plan_path, "is lost")
    except DamagedPlanError:
        yield Damage(store.plan_path, "is not what was written")


def _lines(path: Path) -> Iterator[Damage]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if from_line(line) is None:
                yield Damage(path, f"line {number} is not what was written")


def repair(store: Store, damages: list[Damage]) -> None:
    """Drop what is damaged, so that the sweep's own command makes it again, and nothing else.

    Raises:
        UserError: there is no space for what is left of a file of records.
    """
    for path in dict.fromkeys(damage.path for damage in damages):
        if path.parent == store.records_dir:
            whole = [line for line in path.read_bytes().splitlines(keepends=True) if from_line(line)]
            store.write_bytes(path, b"".join(whole))
        else:
            path.unlink(missing_ok=True)

"""Verification of a sweep's folder against its checksums, and removal of damaged parts."""

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
    """A damaged or missing part of a folder.

    Args:
        path: the file.
        reason: the problem, as the end of a sentence that begins with the path.
    """

    path: Path
    reason: str


def verify(store: Store) -> tuple[int, list[Damage]]:
    """Check the plan, every line of the records and every recorded image against their checksums.

    Images without a row are ignored, and so is everything that views generate: tables, grids, W&B.

    Returns:
        The number of intact images, and the damages.

    Raises:
        UserError: the folder holds no sweep, or one of another version.
    """
    files = sorted(store.records_dir.glob("*.jsonl"))
    if not store.plan_path.exists() and not files:
        raise UserError(f"{store.root} holds no sweep: name a folder such as outputs/thresholds")
    damages = [*_plan_damage(store), *(damage for path in files for damage in _line_damages(path))]
    rows = {str(row["image"]): row for row in store.rows()[0] if row["status"] == "done" and row["image"]}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        intact = list(pool.map(store.is_intact, rows.values()))
    broken = [store.image_file(image) for image, is_intact in zip(rows, intact, strict=True) if not is_intact]
    damages += [Damage(path, "is damaged" if path.exists() else "is missing") for path in broken]
    return sum(intact), damages


def _plan_damage(store: Store) -> Iterator[Damage]:
    try:
        if store.read_plan() is None:
            yield Damage(store.plan_path, "is missing")
    except DamagedPlanError:
        yield Damage(store.plan_path, "is damaged")


def _line_damages(path: Path) -> Iterator[Damage]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if from_line(line) is None:
                yield Damage(path, f"line {number} is damaged")


def repair(store: Store, damages: list[Damage]) -> None:
    """Remove the damaged parts, so that the sweep's command generates them again.

    Raises:
        UserError: the disk is full or fails while a records file is rewritten.
    """
    for path in dict.fromkeys(damage.path for damage in damages):
        if path.parent == store.records_dir:
            whole = [line for line in path.read_bytes().splitlines(keepends=True) if from_line(line)]
            store.write_bytes(path, b"".join(whole))
        else:
            path.unlink(missing_ok=True)

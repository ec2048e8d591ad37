"""One cell in a process of its own, with diffusers' pipeline: what a launcher of one job a cell does.

``python -m sega_bench.benchmark.one_cell TASK`` loads the pipeline and the scorers, makes the cell, scores it
against its reference's image, which an earlier process left in the store, and writes image and record.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sega_bench import scores
from sega_bench.benchmark import oracle
from sega_bench.cell import Cell, Edit
from sega_bench.config import Config
from sega_bench.errors import UserError
from sega_bench.planning.planner import Plan
from sega_bench.scores import ScoreSettings
from sega_bench.scores.scoring import Scorer, existing_scores, score
from sega_bench.sega.models import resolve_device
from sega_bench.store import Record, Store


def task(made: Plan, cell: Cell, folder: str) -> str:
    """What a process must know, as JSON."""
    settings = asdict(score_settings(made.config))
    return json.dumps(
        {
            "folder": str(folder_of(made)),
            "variant": made.config.model.variant,
            "cell": asdict(cell),
            "scores": settings,
            "store": folder,
            "device": made.config.engine.device,
        }
    )


def folder_of(made: Plan) -> Path:
    """The diffusers folder that a plan's model is read from.

    Raises:
        UserError: it is one file, which diffusers' pipeline is not compared on.
    """
    checkpoint = made.model.checkpoint
    if checkpoint is None or checkpoint.parts["unet"].is_original:
        raise UserError(f"model.path is {made.config.model.path!r}: the benchmark needs a diffusers folder")
    return checkpoint.folder


def load_pipeline(made: Plan, device: torch.device, dtype: str) -> Any:
    """Diffusers' pipeline of a plan's model."""
    return oracle.load_pipeline(folder_of(made), made.config.model.variant, device, dtype)


def score_settings(config: Config) -> ScoreSettings:
    """The scorers of a configuration."""
    return ScoreSettings(**asdict(config.scores))


def keep(
    store: Store,
    scorers: Sequence[Scorer],
    cells: Sequence[Cell],
    images: Mapping[str, npt.NDArray[np.uint8]],
) -> None:
    """Score cells against their references, and write their images and records."""
    values = score(scorers, cells, images, batch_size=min(16, len(images)))
    records = []
    for cell, scored in zip(cells, values, strict=True):
        name, digest = store.write_image(cell, images[cell.key])
        records.append(Record(cell, "done", image=name, image_sha256=digest, scores=existing_scores(scored)))
    store.append("0", records)


def main() -> None:
    """Do the task of the command line."""
    wanted = json.loads(sys.argv[1])
    edits = tuple(Edit(**edit) for edit in wanted["cell"].pop("edits"))
    cell, store = Cell(**wanted["cell"], edits=edits), Store(Path(wanted["store"]))
    device = resolve_device(wanted["device"])
    pipeline = oracle.load_pipeline(Path(wanted["folder"]), wanted["variant"], device, cell.dtype)
    scorers = scores.build(ScoreSettings(**wanted["scores"]), device)
    images = {cell.key: oracle.make_image(pipeline, cell)}
    reference = cell.reference()
    if reference != cell:
        images[reference.key] = store.read_image(reference.key)
    keep(store, scorers, [cell], images)


if __name__ == "__main__":
    main()

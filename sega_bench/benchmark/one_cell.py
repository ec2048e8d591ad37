"""Generate one cell in its own process with diffusers' pipeline, as a launcher with one job per cell does.

``python -m sega_bench.benchmark.one_cell TASK`` loads the pipeline and the scorers, generates the image,
scores it against its reference's image, which an earlier process has written, and writes image and record.
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


def task_json(plan: Plan, cell: Cell, folder: str) -> str:
    """The task of one process, as JSON: checkpoint, cell, scorers, and the store in a folder."""
    settings = asdict(score_settings(plan.config))
    return json.dumps(
        {
            "folder": str(checkpoint_folder(plan)),
            "variant": plan.config.model.variant,
            "cell": asdict(cell),
            "scores": settings,
            "store": folder,
            "device": plan.config.engine.device,
        }
    )


def checkpoint_folder(plan: Plan) -> Path:
    """The diffusers folder of a plan's model.

    Raises:
        UserError: the model is one file, from which diffusers' deprecated pipeline is not loaded here.
    """
    checkpoint = plan.model.checkpoint
    if checkpoint is None or checkpoint.parts["unet"].is_original:
        raise UserError(f"model.path is {plan.config.model.path!r}: the benchmark needs a diffusers folder")
    return checkpoint.folder


def load_pipeline(plan: Plan, device: torch.device, dtype: str) -> Any:
    """Diffusers' pipeline of a plan's model."""
    return oracle.load_pipeline(checkpoint_folder(plan), plan.config.model.variant, device, dtype)


def score_settings(config: Config) -> ScoreSettings:
    """The score settings of a configuration."""
    return ScoreSettings(**asdict(config.scores))


def score_and_write(
    store: Store,
    scorers: Sequence[Scorer],
    cells: Sequence[Cell],
    images: Mapping[str, npt.NDArray[np.uint8]],
) -> None:
    """Score cells against their references, and write their images and records.

    Args:
        store: where to write.
        scorers: the scorers.
        cells: what to score.
        images: by key, HW3; references of the cells included.
    """
    values = score(scorers, cells, images, batch_size=min(16, len(images)))
    records = []
    for cell, scored in zip(cells, values, strict=True):
        name, digest = store.write_image(cell, images[cell.key])
        records.append(Record(cell, "done", image=name, image_sha256=digest, scores=existing_scores(scored)))
    store.append("0", records)


def main() -> None:
    """Run the task given on the command line."""
    task = json.loads(sys.argv[1])
    edits = tuple(Edit(**edit) for edit in task["cell"].pop("edits"))
    cell, store = Cell(**task["cell"], edits=edits), Store(Path(task["store"]))
    device = resolve_device(task["device"])
    pipeline = oracle.load_pipeline(Path(task["folder"]), task["variant"], device, cell.dtype)
    scorers = scores.build(ScoreSettings(**task["scores"]), device)
    images = {cell.key: oracle.make_image(pipeline, cell)}
    reference = cell.reference()
    if reference != cell:
        images[reference.key] = store.read_image(reference.key)
    score_and_write(store, scorers, [cell], images)


if __name__ == "__main__":
    main()

"""One cell's row of results: its columns, and its serialisation as a line of JSON."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from sega_bench.cell import EDIT_SETTINGS, READS, Cell, Edit

OUTCOME_COLUMNS = ("image", "image_sha256", "status", "error")
SCORE_COLUMNS = (
    "clip_prompt",
    "clip_concept",
    "clip_concept_delta",
    "clip_directional",
    "clip_image",
    "lpips",
    "ssim",
    "psnr",
    "mse",
    "changed_fraction",
    "nsfw",
)
"""Score columns of every row; per-concept scores (``clip_concept_1``) follow the score they belong to."""

EXECUTION_COLUMNS = ("unet_evals", "seconds", "worker", "device", "dtype", "versions")


@dataclass(frozen=True)
class Record:
    """One cell's row of results.

    Args:
        cell: the cell.
        status: ``done`` if the cell has an image.
        image: POSIX path relative to the sweep's folder; None for a failed cell. A cell that equals its
            reference names the reference's file.
        image_sha256: hash of the file's bytes.
        scores: numbers or lists of names by column; an absent or NaN score was not computed.
        error: one line: why the cell failed, or a remark on its scores.
        unet_evals: UNet evaluations that only this cell required; a shared trunk counts for its reference.
        seconds: wall time, this cell's share of its wave.
        worker, device, versions: the process that generated it.
    """

    cell: Cell
    status: Literal["done", "failed"]
    image: str | None = None
    image_sha256: str | None = None
    scores: Mapping[str, float | Sequence[str]] = field(default_factory=dict)
    error: str | None = None
    unet_evals: int = 0
    seconds: float = 0.0
    worker: str = ""
    device: str = ""
    versions: str = ""

    def row(self) -> dict[str, Any]:
        """The record as a flat JSON object, with the table's columns in their order."""
        outcome = {
            name: getattr(self, name) for name in (*OUTCOME_COLUMNS, *EXECUTION_COLUMNS) if name != "dtype"
        }
        scores = dict.fromkeys(SCORE_COLUMNS) | {name: _to_json(score) for name, score in self.scores.items()}
        row = settings(self.cell) | outcome | scores | {"dtype": self.cell.dtype}
        return {name: row[name] for name in columns(self.scores)}


def settings(cell: Cell) -> dict[str, Any]:
    """A cell's settings by column: a list for a per-concept setting, None for one that its method ignores."""
    has_momentum = bool(cell.edits) and "edit_momentum_scale" in READS[cell.method]

    def each(name: str) -> list[Any] | None:
        return [getattr(edit, name) for edit in cell.edits] or None if name in READS[cell.method] else None

    return {
        "key": cell.key,
        "reference_key": cell.reference().key,
        "is_reference": cell.is_reference,
        "model": cell.model,
        "prompt": cell.prompt,
        "negative_prompt": cell.negative_prompt,
        "seed": cell.seed,
        "scheduler": cell.scheduler,
        "guidance_scale": cell.guidance_scale,
        "num_inference_steps": cell.num_inference_steps,
        "height": cell.height,
        "width": cell.width,
        "concepts": [edit.concept for edit in cell.edits],
        "reverse_editing_direction": each("reverse_editing_direction"),
        "edit_guidance_scale": each("edit_guidance_scale"),
        "edit_threshold": each("edit_threshold"),
        "edit_warmup_steps": each("edit_warmup_steps"),
        "edit_cooldown_steps": each("edit_cooldown_steps"),
        "edit_momentum_scale": cell.edit_momentum_scale if has_momentum else None,
        "edit_mom_beta": cell.edit_mom_beta if has_momentum else None,
        "edit_weights": each("edit_weights"),
        "eta": cell.eta,
        "replay": cell.replay,
        "method": cell.method if cell.edits else None,
    }


def cell_from_row(row: Mapping[str, Any]) -> Cell:
    """The cell of a row of :meth:`Record.row`.

    A row lacks the scheduler's configuration, so the cell's key differs from the row's.
    """
    columns = {name: row[name] for name in EDIT_SETTINGS if row[name] is not None}
    edits = [
        Edit(text, **{name: values[k] for name, values in columns.items()})
        for k, text in enumerate(row["concepts"])
    ]
    names = {field.name for field in fields(Cell)} & {*row} - {"edits"}
    return Cell(edits=tuple(edits), **{name: row[name] for name in names if row[name] is not None})


SETTING_COLUMNS = tuple(settings(Cell(prompt="", seed=0)))


def columns(scores: Iterable[str]) -> list[str]:
    """The table's columns in order, including scores beyond :data:`SCORE_COLUMNS`."""
    names = list(dict.fromkeys((*SCORE_COLUMNS, *scores)))
    positions = {name: position for position, name in enumerate(names)}

    def sort_key(name: str) -> tuple[int, int]:
        """A per-concept score sorts behind its score, by the concept's number."""
        base, _, number = name.rpartition("_")
        is_per_concept = number.isdecimal() and base in positions
        return (positions[base], int(number)) if is_per_concept else (positions[name], 0)

    return [*SETTING_COLUMNS, *OUTCOME_COLUMNS, *sorted(names, key=sort_key), *EXECUTION_COLUMNS]


def _to_json(score: float | Sequence[str]) -> float | list[str] | None:
    """A score in JSON's types: a list of names, a finite number, or null."""
    if isinstance(score, Sequence):
        return list(score)
    return float(score) if math.isfinite(score) else None


def to_line(row: Mapping[str, Any]) -> bytes:
    """Serialise a row as a line of JSON whose last entry is a checksum of the others."""
    text = json.dumps(row, allow_nan=False)
    return f'{text[:-1]}{_SEAL}{checksum(text.encode())}"}}\n'.encode()


def from_line(line: bytes) -> dict[str, Any] | None:
    """Parse a line; None if it is malformed or does not match its checksum."""
    body, seal, end = line.rpartition(_SEAL.encode())
    if seal:
        line = body + b"}"
        if end.rstrip() != f'{checksum(line)}"}}'.encode():
            return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not (seal or _is_row(row)):
        return None
    # Interning cuts the memory of 100,000 rows: they share column names and most texts.
    for name in _SHARED:
        if isinstance(value := row.get(name), str):
            row[name] = sys.intern(value)
    return {sys.intern(name): value for name, value in row.items()}


def checksum(data: bytes) -> str:
    """The first 16 hex digits of the sha256, to detect damage."""
    return hashlib.sha256(data).hexdigest()[:16]


_SHARED = (
    "model",
    "prompt",
    "negative_prompt",
    "scheduler",
    "status",
    "worker",
    "device",
    "dtype",
    "versions",
)
"""Columns whose texts many rows share."""

_SEAL = ', "checksum": "'
_TEXTS = ("key", "reference_key", "image", "image_sha256", "error", "prompt", "worker", "device", "versions")


def _is_row(row: Mapping[str, Any]) -> bool:
    """Whether an object is plausible as a row, for lines written before checksums existed."""
    known = {*SETTING_COLUMNS, *OUTCOME_COLUMNS, *EXECUTION_COLUMNS}
    scores = [score for name, score in row.items() if name not in known]
    return (
        isinstance(row.get("key"), str)
        and row.get("status") in ("done", "failed")
        and all(isinstance(row.get(name), str | None) for name in _TEXTS)
        and all(isinstance(score, int | float | list | None) for score in scores)
    )

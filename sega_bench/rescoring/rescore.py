"""Score the stored images of a sweep again, perhaps with other scorers; nothing is generated.

Rows and images are streamed: of each cell, only the place of its row stays in memory. New rows are appended
behind the rows that they replace. Progress is written after every chunk, so that the same command continues
after a kill.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from sega_bench import scores
from sega_bench.cell import Cell
from sega_bench.config import compose
from sega_bench.errors import UserError
from sega_bench.execution.grader import SEPARATOR, Grader, other_notes
from sega_bench.execution.resume import NOT_SCORED
from sega_bench.planning import manifest
from sega_bench.scores import ScoreSettings
from sega_bench.store import SETTING_COLUMNS, CellImage, Place, Record, Store, cell_from_row, lock

CHUNK = 64
"""Cells whose images are in memory at once, besides their references'."""

_NSFW = "nsfw"
"""The one score that is kept: its network belongs to the checkpoint, which is not loaded."""

_GENERATION_FIELDS = (
    "image",
    "image_sha256",
    "unet_evals",
    "seconds",
    "worker",
    "device",
    "versions",
)
"""Fields of a record that say how its image was generated; scoring leaves them alone."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """Progress of an interrupted command, as stored in ``rescoring_path``.

    Args:
        scores: provenance of its scorers.
        keys: digest of the cells' keys, in their order.
        done: number of cells that are finished.
    """

    scores: Mapping[str, Any]
    keys: str
    done: int = 0


def parse_overrides(words: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """Score settings that differ from the sweep's, and the device.

    Args:
        words: ``scores=NAME``, ``scores.KEY=VALUE`` or ``engine.device=NAME``.

    Raises:
        UserError: another key, or a value that Hydra cannot parse.
    """
    for word in words:
        key = word.partition("=")[0]
        if key not in ("scores", "engine.device") and not key.startswith("scores."):
            raise UserError(f"{word!r}: here there are scores=..., scores.KEY=... and engine.device=... only")
    composed = compose(*words)
    overrides = asdict(composed.scores)
    keys = {word.partition("=")[0] for word in words}
    if "scores" not in keys:  # without a whole group, only the keys on the command line count
        overrides = {name: value for name, value in overrides.items() if f"scores.{name}" in keys}
    return overrides, composed.engine.device


def resolve_settings(store: Store, overrides: Mapping[str, Any]) -> ScoreSettings:
    """The sweep's own score settings with ``overrides`` applied.

    Raises:
        UserError: the folder holds no sweep, or a scorer is not available.
    """
    own = _read_plan(store)["settings"]["scores"]
    settings = ScoreSettings(**(own | dict(overrides)))
    try:
        scores.check(settings)
    except UserError as error:
        for name in manifest.SCORE_PATHS:
            if own.get(name) and name not in overrides and str(error).startswith(f"scores.{name}="):
                raise UserError(
                    f"scores.{name}: the folder of {own[name]} is not kept in plan.json: give all of it again"
                ) from error
        raise
    return settings


def rescore(store: Store, settings: ScoreSettings, device: torch.device) -> Iterator[Counter[str]]:
    """Score all images of a sweep's folder again, and drop a study's answers, which the old scores gave.

    Args:
        store: the folder.
        settings: from :func:`resolve_settings`.
        device: of the scorers.

    Yields:
        First the number of cells that were ``done before`` a kill. Then, after each chunk is on disk, how
        many of its cells were ``scored`` and ``not scored``, and how many had ``failed`` in the sweep.

    Raises:
        UserError: the folder holds no sweep, cannot be written or is in use, or weights are not available.
    """
    plan = _read_plan(store)
    with lock.held(store) as confirm:
        grader = Grader(store, scores.build(settings, device), settings.batch_size)
        places = store.places()
        keys = [key for key in dict.fromkeys((*plan["keys"], *places)) if key in places]
        provenance = _provenance(grader, plan)
        progress = _resume(store, Progress(provenance, hashlib.sha256("".join(keys).encode()).hexdigest()))
        # Progress comes first: it makes a kill before the next write known to every later command.
        _write_progress(store, progress)
        store.write_plan(manifest.with_scores(plan, settings, provenance))
        store.answers_path.unlink(missing_ok=True)  # a study's answers come from the old scores
        yield +Counter({"done before": progress.done})
        scorer = _ChunkScorer(grader, places)
        for chunk in _chunks(store, places, keys[progress.done :]):
            confirm()
            rows = scorer.score(chunk)
            _append(store, places, rows)
            progress = replace(progress, done=progress.done + len(chunk))
            _write_progress(store, progress)
            yield _counts(rows, len(chunk))
        store.rescoring_path.unlink()


def _read_plan(store: Store) -> dict[str, Any]:
    plan = store.read_plan()
    if plan is None:
        raise UserError(f"{store.root} holds no sweep (no plan.json): name one such as outputs/thresholds")
    return plan


def _provenance(grader: Grader, plan: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of the new scores, with that of the kept one if the sweep has it."""
    kept = {_NSFW: plan["scores"][_NSFW]} if _NSFW in plan["scores"] else {}
    return {**scores.provenance(grader.scorers), **kept}


def _resume(store: Store, start: Progress) -> Progress:
    """The progress of an interrupted command with the same scorers and cells; else ``start``."""
    try:
        stored = Progress(**json.loads(store.rescoring_path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return start
    return stored if replace(stored, done=0) == start else start


def _write_progress(store: Store, progress: Progress) -> None:
    store.write_text(store.rescoring_path, json.dumps(asdict(progress)) + "\n")


def _chunks(store: Store, places: Mapping[str, Place], keys: Sequence[str]) -> Iterator[list[Row]]:
    """The cells' rows in order, up to ``CHUNK`` at a time; all images of a chunk have one size."""
    rows = (store.journal.read(places[key]) for key in keys)
    for _, same_size in itertools.groupby(rows, key=lambda row: (row["height"], row["width"])):
        while chunk := list(itertools.islice(same_size, CHUNK)):
            yield chunk


def _append(store: Store, places: Mapping[str, Place], rows: Sequence[Row]) -> None:
    """Append each new row to the file of the row that it replaces."""
    for worker in dict.fromkeys(places[row["key"]].worker for row in rows):
        store.append_rows(worker, [row for row in rows if places[row["key"]].worker == worker])


@dataclass
class _ChunkScorer:
    """Scores one chunk after another, and keeps the reference images that the next chunk may need.

    Images are looked up by the keys of cells made from rows (:func:`cell_from_row`). Those keys differ from
    the rows', because rows do not store the scheduler's configuration.

    Args:
        grader: the scorers, and the store that they read from.
        places: of all rows, by key.
        references: reference images of the last chunk.
    """

    grader: Grader
    places: Mapping[str, Place]
    references: dict[str, CellImage] = field(default_factory=dict)

    def score(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with new scores, without the rows of failed cells."""
        rows = [row for row in rows if row["status"] == "done"]
        cells = [cell_from_row(row) for row in rows]
        images = self._images(cells, rows)
        self.references = self._references(cells, rows, self.references | images)
        records = [_unscored(cell, row) for cell, row in zip(cells, rows, strict=True)]
        graded = self.grader.grade(records, images, self.references)
        return [_replacement(record, row) for record, row in zip(graded, rows, strict=True)]

    def _images(self, cells: Sequence[Cell], rows: Sequence[Row]) -> dict[str, CellImage]:
        """The cells' own images, by key, without those that cannot be read."""
        images = {cell.key: self._read(row) for cell, row in zip(cells, rows, strict=True)}
        return {key: image for key, image in images.items() if image is not None}

    def _references(
        self, cells: Sequence[Cell], rows: Sequence[Row], known: Mapping[str, CellImage]
    ) -> dict[str, CellImage]:
        """The cells' reference images, by key: those that are ``known``, the others from the disk."""
        row_keys = {cell.reference().key: row["reference_key"] for cell, row in zip(cells, rows, strict=True)}
        images = {
            key: known[key] if key in known else self._read_by_key(row_key)
            for key, row_key in row_keys.items()
        }
        return {key: image for key, image in images.items() if image is not None}

    def _read_by_key(self, key: str) -> CellImage | None:
        """The image of a row's key; None if the folder has no such row or no image."""
        if key not in self.places:
            return None
        return self._read(self.grader.store.journal.read(self.places[key]))

    def _read(self, row: Row) -> CellImage | None:
        image = row.get("image")
        return self.grader.read(image) if row["status"] == "done" and isinstance(image, str) else None


def _unscored(cell: Cell, row: Row) -> Record:
    """A row's record, without its scores and without the notes about them."""
    generation = {name: row[name] for name in _GENERATION_FIELDS}
    return Record(cell, "done", error=other_notes(row["error"]), **generation)


def _replacement(record: Record, row: Row) -> Row:
    """A record's row with the settings, the key and the kept score of the row that it replaces."""
    kept = {name: row[name] for name in (*SETTING_COLUMNS, _NSFW) if name in row}
    notes = str(row["error"] or "").split(SEPARATOR)
    # retry_failed finds cells by this note: it stays while the score is still missing.
    missing = [note for note in notes if note.startswith(f"{NOT_SCORED}{_NSFW}:")]
    error = SEPARATOR.join([*missing, *filter(None, [record.error])]) or None
    return record.row() | kept | {"error": error}


def _counts(rows: Sequence[Row], cells: int) -> Counter[str]:
    not_scored = sum(str(row["error"] or "").startswith(NOT_SCORED) for row in rows)
    return +Counter({"scored": len(rows) - not_scored, "not scored": not_scored, "failed": cells - len(rows)})

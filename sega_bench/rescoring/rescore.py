"""The stored pictures of a sweep scored again, perhaps by other scorers; nothing is generated.

Rows and pictures are streamed; of each cell only the place of its row is kept. New rows are appended behind
the old ones, which they replace, and how far it came is on disk after every chunk, so that the same command
goes on after a kill.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from sega_bench import scores
from sega_bench.config import compose
from sega_bench.errors import UserError
from sega_bench.execution.grader import SEPARATOR, Grader, remarks
from sega_bench.execution.resume import NOT_SCORED
from sega_bench.planning import manifest
from sega_bench.scores import ScoreSettings
from sega_bench.store import SETTING_COLUMNS, Picture, Place, Record, Store, cell_of, lock

CHUNK = 64
"""Pictures in memory at once, and their references."""

_KEPT = "nsfw"
"""The one score that stays: its network is the checkpoint's, which is not loaded."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """So much was done by a command that was stopped.

    Args:
        scores: what it scored with.
        keys: digest of the cells in their order.
        done: of them.
    """

    scores: Mapping[str, Any]
    keys: str
    done: int = 0


def read_words(words: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """The score settings that differ from the sweep's, and the device.

    Raises:
        UserError: a word that is none of these, or cannot be read.
    """
    for word in words:
        key = word.partition("=")[0]
        if key not in ("scores", "engine.device") and not key.startswith("scores."):
            raise UserError(f"{word!r}: here there are scores=..., scores.KEY=... and engine.device=... only")
    composed = compose(*words)
    chosen = asdict(composed.scores)
    named = {word.partition("=")[0] for word in words}
    if "scores" not in named:
        chosen = {name: value for name, value in chosen.items() if f"scores.{name}" in named}
    return chosen, composed.engine.device


def settings_of(store: Store, asked: Mapping[str, Any]) -> ScoreSettings:
    """A sweep's own scorers, but for what is asked for.

    Raises:
        UserError: the folder holds no sweep, or a scorer cannot be had.
    """
    own = _plan(store)["settings"]["scores"]
    settings = ScoreSettings(**(own | dict(asked)))
    try:
        scores.check(settings)
    except UserError as error:
        for name in manifest.SCORE_PATHS:
            if own.get(name) and name not in asked and str(error).startswith(f"scores.{name}="):
                raise UserError(
                    f"scores.{name}: the folder of {own[name]} is not kept in plan.json: give all of it again"
                ) from error
        raise
    return settings


def rescore(store: Store, settings: ScoreSettings, device: torch.device) -> Iterator[Counter[str]]:
    """Score all pictures of a sweep's folder again; what a study found by the old scores is forgotten.

    Args:
        store: the folder.
        settings: from :func:`settings_of`.
        device: of the scorers.

    Yields:
        How many cells were ``done before`` a kill; then after every chunk, on disk by then, how many of its
        cells were ``scored`` and ``not scored``, and how many had ``failed`` when they were made.

    Raises:
        UserError: the folder holds no sweep, cannot be written or is in use, or weights cannot be had.
    """
    plan = _plan(store)
    with lock.held(store) as confirm:
        grader = Grader(store, scores.build(settings, device), settings.batch_size)
        places = store.places()
        keys = [key for key in dict.fromkeys((*plan["keys"], *places)) if key in places]
        provenance = scores.provenance(grader.scorers)
        if _KEPT in plan["scores"]:
            provenance[_KEPT] = plan["scores"][_KEPT]
        progress = _resumed(store, Progress(provenance, hashlib.sha256("".join(keys).encode()).hexdigest()))
        _keep(store, progress)
        store.write_plan(manifest.rescored(plan, settings, provenance))
        store.answers_path.unlink(missing_ok=True)  # a study's are of the old scores
        yield +Counter({"done before": progress.done})
        recent: dict[str, Picture] = {}
        for chunk in _chunks(store, places, keys[progress.done :]):
            confirm()
            rows, recent = _grade(grader, chunk, places, recent)
            for worker in dict.fromkeys(places[row["key"]].worker for row in rows):
                store.append_rows(worker, [row for row in rows if places[row["key"]].worker == worker])
            progress = replace(progress, done=progress.done + len(chunk))
            _keep(store, progress)
            yield _counts(rows, len(chunk))
        store.rescoring_path.unlink()


def _plan(store: Store) -> dict[str, Any]:
    plan = store.read_plan()
    if plan is None:
        raise UserError(f"{store.root} holds no sweep (no plan.json): name one such as outputs/thresholds")
    return plan


def _resumed(store: Store, fresh: Progress) -> Progress:
    """Where a command that did the same was stopped; else the beginning."""
    try:
        before = Progress(**json.loads(store.rescoring_path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return fresh
    return before if replace(before, done=0) == fresh else fresh


def _keep(store: Store, progress: Progress) -> None:
    store.write_text(store.rescoring_path, json.dumps(asdict(progress)) + "\n")


def _chunks(store: Store, places: Mapping[str, Place], keys: Sequence[str]) -> Iterator[list[Row]]:
    """Rows in order, a few at a time, those of a chunk of one size."""
    rows = (store.journal.read(places[key]) for key in keys)
    for _, same in itertools.groupby(rows, key=lambda row: (row["height"], row["width"])):
        while chunk := list(itertools.islice(same, CHUNK)):
            yield chunk


def _grade(
    grader: Grader, rows: Sequence[Row], places: Mapping[str, Place], recent: Mapping[str, Picture]
) -> tuple[list[Row], dict[str, Picture]]:
    """The rows with new scores, without those that failed; and the references that the next may need.

    A cell made of its row has another key than the row's (the scheduler's configuration is not in it), so
    within this function pictures go by the keys of such cells.
    """
    done = [row for row in rows if row["status"] == "done"]
    cells = [cell_of(row) for row in done]
    pictures = {cell.key: _read(grader, row) for cell, row in zip(cells, done, strict=True)}
    found = {key: picture for key, picture in pictures.items() if picture is not None}
    references = dict(recent)
    for cell, row in zip(cells, done, strict=True):
        key = cell.reference().key
        if key not in found and key not in references and row["reference_key"] in places:
            reference = _read(grader, grader.store.journal.read(places[row["reference_key"]]))
            references |= {} if reference is None else {key: reference}
    wanted = {cell.reference().key for cell in cells}
    references = {key: picture for key, picture in {**references, **found}.items() if key in wanted}
    records = [
        Record(cell, "done", error=remarks(row["error"]), **{name: row[name] for name in _MADE})
        for cell, row in zip(cells, done, strict=True)
    ]
    graded = grader.grade(records, found, references)
    return [_renewed(record, row) for record, row in zip(graded, done, strict=True)], references


_MADE = ("image", "image_sha256", "unet_evals", "seconds", "worker", "device", "versions")


def _read(grader: Grader, row: Row) -> Picture | None:
    image = row.get("image")
    return grader.read(image) if row["status"] == "done" and isinstance(image, str) else None


def _renewed(record: Record, row: Row) -> Row:
    """The row of a record, under the settings and the key of the row that it replaces."""
    kept = {name: row[name] for name in (*SETTING_COLUMNS, _KEPT) if name in row}
    notes = str(row["error"] or "").split(SEPARATOR)
    lacking = [note for note in notes if note.startswith(f"{NOT_SCORED}{_KEPT}:")]  # it is not taken here
    error = SEPARATOR.join([*lacking, *filter(None, [record.error])]) or None
    return record.row() | kept | {"error": error}


def _counts(rows: Sequence[Row], cells: int) -> Counter[str]:
    lacking = sum(str(row["error"] or "").startswith(NOT_SCORED) for row in rows)
    return +Counter({"scored": len(rows) - lacking, "not scored": lacking, "failed": cells - len(rows)})

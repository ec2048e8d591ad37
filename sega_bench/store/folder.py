"""The sweep's folder: every path in it, every atomic write, and the rows that came back.

The folder is the truth of a sweep. Whatever kills a run, what it left is readable: a file is either whole or
absent, and a torn last line of a record file costs that one cell.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sega_bench import atomic
from sega_bench.cell import READS, Cell
from sega_bench.errors import UserError
from sega_bench.store.pictures import Picture

PLAN_VERSION = 1
"""Version of plan.json; a folder of another version is refused, never guessed at."""

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
"""The scores every row has a place for; each concept's own (``clip_concept_1``) follow theirs."""

EXECUTION_COLUMNS = ("unet_evals", "seconds", "worker", "device", "dtype", "versions")

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Record:
    """One cell's row of results.

    Args:
        cell: what was asked.
        status: whether there is an image.
        image: posix path relative to the sweep's folder; None for a failed cell. A cell that equals its
            reference names the reference's file.
        image_sha256: of the file's bytes.
        scores: by column name, numbers or names; an absent or NaN score is one that was not taken.
        error: one line that says why the cell failed, or what a reader of its row must know.
        unet_evals: UNet evaluations this cell alone made necessary (a trunk's are its reference's).
        seconds: wall time, this cell's share of its wave.
        worker, device, versions: where it was made.
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
        """The record as one flat JSON object, its keys the table's columns in the table's order."""
        outcome = {
            name: getattr(self, name) for name in (*OUTCOME_COLUMNS, *EXECUTION_COLUMNS) if name != "dtype"
        }
        scores = dict.fromkeys(SCORE_COLUMNS) | {name: _plain(score) for name, score in self.scores.items()}
        row = settings(self.cell) | outcome | scores | {"dtype": self.cell.dtype}
        return {name: row[name] for name in columns(self.scores)}


def settings(cell: Cell) -> dict[str, Any]:
    """A cell's settings under their column names: a list where each concept has its own, None if unread."""
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


SETTING_COLUMNS = tuple(settings(Cell(prompt="", seed=0)))


def columns(scores: Iterable[str]) -> list[str]:
    """The table's columns in order: the contract's, with any other ``scores`` in their places."""
    names = list(dict.fromkeys((*SCORE_COLUMNS, *scores)))
    whole = {name: place for place, name in enumerate(names)}

    def place(name: str) -> tuple[int, int]:
        """That of the score whose one concept's value it is, and the concept's number."""
        base, _, number = name.rpartition("_")
        each = number.isdecimal() and base in whole
        return (whole[base], int(number)) if each else (whole[name], 0)

    return [*SETTING_COLUMNS, *OUTCOME_COLUMNS, *sorted(names, key=place), *EXECUTION_COLUMNS]


def _plain(score: float | Sequence[str]) -> float | list[str] | None:
    """As JSON has it: a list of names, a finite number, or null."""
    if isinstance(score, Sequence):
        return list(score)
    return float(score) if math.isfinite(score) else None


class Store:
    """One sweep's folder, which need not exist to be read.

    Args:
        root: ``outputs/<name>``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plan_path = root / "plan.json"
        self.images_dir = root / "images"
        self.records_dir = root / "records"
        self.results_parquet = root / "results.parquet"
        self.results_csv = root / "results.csv"
        self.summary_csv = root / "summary.csv"
        self.claims_csv = root / "claims.csv"
        self.grids_dir = root / "grids"
        self.wandb_dir = root / "wandb"
        self.log_path = root / "run.log"
        self.lock_path = root / "lock"

    def image_path(self, key: str) -> Path:
        """Where the image of a cell belongs, whether or not it is there."""
        return self.images_dir / key[:2] / f"{key}.png"

    def prepare(self) -> None:
        """Make the folders and clear what killed writers left.

        Raises:
            UserError: nothing can be written here.
        """
        probe = self.root / "writable"
        try:
            for folder in (self.root, self.images_dir, self.records_dir):
                folder.mkdir(parents=True, exist_ok=True)
            self.write_bytes(probe, b"")
            probe.unlink()
        except OSError as error:
            why = f"{self.root} can't be written ({error.strerror})"
            raise UserError(f"output_dir: {why}: choose another output_dir= or name=") from None
        atomic.clear_abandoned(self.root)

    def write_bytes(self, path: Path, data: bytes) -> None:
        """Put a whole file in place of what was there: a reader sees the old one or the new, never a part.

        Raises:
            UserError: there is no space for it.
        """
        with self.space():
            atomic.write_bytes(path, data)

    @contextmanager
    def space(self) -> Iterator[None]:
        """A full disk, or a spent quota, is the user's to mend; nothing that was written before is lost."""
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            raise UserError(
                f"output_dir: there is no space left for {self.root} ({error.strerror}): free some, and the "
                "same command goes on where it stopped, or choose another output_dir="
            ) from error

    def write_text(self, path: Path, text: str) -> None:
        """:meth:`write_bytes` of UTF-8."""
        self.write_bytes(path, text.encode())

    def write_plan(self, document: Mapping[str, Any]) -> None:
        """Replace plan.json."""
        self.write_text(self.plan_path, json.dumps(document, indent=1, allow_nan=False) + "\n")

    def read_plan(self) -> dict[str, Any] | None:
        """What plan.json says; None where there is none.

        Raises:
            UserError: it can't be read, or another version of this program wrote it.
        """
        try:
            plan = json.loads(self.plan_path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.plan_path}: it can't be read ({error}): {_REMEDY}") from None
        version = plan.get("plan_version") if isinstance(plan, dict) else None
        if version != PLAN_VERSION:
            wrong = f"plan_version is {version}, but this program reads {PLAN_VERSION}"
            raise UserError(f"{self.plan_path}: {wrong}: {_REMEDY}")
        return plan  # type: ignore[no-any-return]

    def write_picture(self, cell: Cell, picture: Picture) -> tuple[str, str]:
        """Keep a cell's picture, its settings inside it; safe to call from several threads.

        Returns:
            The path relative to :attr:`root` with forward slashes, and the sha256 of the file's bytes.
        """
        described = asdict(cell) | settings(cell)
        del described["edits"]  # settings has them under their column names
        content = picture.png(described)
        path = self.image_path(cell.key)
        self.write_bytes(path, content)
        return path.relative_to(self.root).as_posix(), hashlib.sha256(content).hexdigest()

    def write_image(self, cell: Cell, image_HWC: NDArray[np.uint8]) -> tuple[str, str]:
        """:meth:`write_picture` of a picture that nothing more is known of: HWC, RGB, uint8."""
        return self.write_picture(cell, Picture(image_HWC))

    def image_file(self, name: str) -> Path:
        """An image's path by its key or its row's ``image``; whatever that says, inside this folder."""
        return self.image_path(PurePosixPath(name).stem)

    def read_image(self, name: str) -> NDArray[np.uint8]:
        """An image by its key or its row's ``image``: HWC, RGB, uint8."""
        return self.read_picture(name).image_HWC

    def read_picture(self, name: str) -> Picture:
        """A cell's picture by its key or its row's ``image``.

        Raises:
            OSError, SyntaxError, ValueError: it is not there, or it is damaged.
        """
        return Picture.read(self.image_file(name))

    def append(self, worker: str, records: Sequence[Record]) -> None:
        """Add rows to a worker's file: one write, and on disk when this returns.

        A line that a killed writer left torn is ended first, so that it spoils no other.

        Raises:
            UserError: there is no space for them; those that fitted are kept.
        """
        if not records:
            return
        lines = "".join(json.dumps(record.row(), allow_nan=False) + "\n" for record in records)
        self.records_dir.mkdir(parents=True, exist_ok=True)
        with self.space(), open(self.records_dir / f"{worker}.jsonl", "a+b") as file:
            file.write(b"\n" * _is_torn(file) + lines.encode())
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> tuple[list[dict[str, Any]], int]:
        """Each cell's present row, in the order in which cells were first recorded.

        Returns:
            The rows (the latest of a key counts, but ``failed`` replaces ``done`` only where the image that
            was done is lost), and the number of lines that were skipped because they hold no row.
        """
        present: dict[str, dict[str, Any]] = {}
        malformed = 0
        for row in self._lines():
            if row is None:
                malformed += 1
                continue
            before = present.get(row["key"], row)
            if row["status"] == "done" or before["status"] == "failed" or self._is_lost(before):
                present[row["key"]] = row
        return list(present.values()), malformed

    def _is_lost(self, row: Mapping[str, Any]) -> bool:
        return bool(row.get("image")) and not self.image_file(row["image"]).exists()

    def done_keys(self, rows: Iterable[Mapping[str, Any]]) -> set[str]:
        """Keys of those of the present rows that are done and whose image is there."""
        there = {path.stem for path in self.images_dir.glob("*/*.png")}
        images = {row["key"]: row.get("image") for row in rows if row["status"] == "done"}
        return {key for key, image in images.items() if image and PurePosixPath(image).stem in there}

    def is_intact(self, row: Mapping[str, Any]) -> bool:
        """Whether a done row's image is there, byte for byte as it was written."""
        try:
            with open(self.image_file(row["image"]), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == str(row["image_sha256"])
        except OSError:
            return False

    def _lines(self) -> Iterator[dict[str, Any] | None]:
        """Every line of every record file, None for one that holds no row."""
        for path in sorted(self.records_dir.glob("*.jsonl")):
            with open(path, "rb") as file:
                yield from map(_parse, file)


_REMEDY = "choose another name=, or remove the folder"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("key"), str):
        return None
    return row if row.get("status") in ("done", "failed") else None


def _is_torn(file: io.BufferedRandom) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"

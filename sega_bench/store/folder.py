"""The sweep's folder: its paths, atomic writes, and the rows that it holds.

The folder is the only state of a sweep, and it stays readable after a kill at any moment: a file is whole or
absent, and a torn last line of a records file loses only that cell.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sega_bench.cell import Cell, abbreviated, canonical_json
from sega_bench.errors import UserError
from sega_bench.store.images import CellImage, is_whole_png
from sega_bench.store.journal import Journal, Place
from sega_bench.store.records import Record, checksum, settings
from sega_bench.system import atomic

PLAN_VERSION = 1
"""Version of plan.json; a folder of another version is refused."""

ANSWERS_VERSION = 1
"""Version of answers.json."""

_CHECKSUM_KEY = "checksum"
_REMEDY = "choose another name=, or remove the folder"

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_DISK = (errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOTCONN)


class Store:
    """One sweep's folder. Reading a folder that does not exist finds no rows and no plan.

    Args:
        root: ``outputs/<name>``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plan_path = root / "plan.json"
        self.images_dir = root / "images"
        self.records_dir = root / "records"
        self.journal = Journal(self.records_dir)
        self.rescoring_path = root / "rescoring.json"
        self.results_parquet = root / "results.parquet"
        self.results_csv = root / "results.csv"
        self.sets_csv = root / "sets.csv"
        self.summary_csv = root / "summary.csv"
        self.claims_csv = root / "claims.csv"
        self.grids_dir = root / "grids"
        self.report_dir = root / "report"
        self.figures_dir = root / "figures"
        self.wandb_dir = root / "wandb"
        self.log_path = root / "run.log"
        self.lock_path = root / "lock"
        self.study_path = root / "study.json"
        self.study_journal = root / "journal.log"
        self.answers_dir = root / "answers"
        self.answers_path = self.answers_dir / "answers.json"
        self.launch_dir = root / "launch"
        self.launch_path = self.launch_dir / "workers.json"

    def image_path(self, key: str) -> Path:
        """The path of a cell's image, whether or not it exists."""
        return Path(self._image_name(key))

    def _image_name(self, key: str) -> str:
        # A string, because building 100,000 Path objects takes longer than checking the files.
        return f"{self.images_dir}/{key[:2]}/{key}.png"

    def held_out_stores(self) -> list[Store]:
        """The sweeps in which a study validated its best settings on held-out prompts or seeds."""
        return [Store(path.parent) for path in sorted(self.root.glob("held_out*/plan.json"))]

    def outcome_path(self, worker: int) -> Path:
        """The file in which a worker reports its outcome."""
        return self.launch_dir / f"{worker}.outcome.json"

    def starts_path(self, worker: int) -> Path:
        """The file that counts a worker's failed starts."""
        return self.launch_dir / f"{worker}.starts.json"

    def refresh_nfs(self) -> None:
        """Make an NFS client see files that other hosts have created.

        A client caches for up to a minute that a file is missing; a change of the folder's modification time
        drops that cache.
        """
        for folder in (self.records_dir, self.launch_dir):
            with suppress(OSError):  # the folder does not exist
                os.utime(folder)

    def prepare(self) -> None:
        """Create the folders and remove temporary files of killed writers.

        Raises:
            UserError: the folder cannot be written.
        """
        probe = self.root / "writable"
        try:
            for folder in (self.root, self.images_dir, self.records_dir):
                folder.mkdir(parents=True, exist_ok=True)
            self.write_bytes(probe, b"")
            probe.unlink()
        except OSError as error:
            problem = f"{self.root} can't be written ({error.strerror})"
            raise UserError(f"output_dir: {problem}: choose another output_dir= or name=") from None
        atomic.clear_abandoned(self.root)

    def write_bytes(self, path: Path, data: bytes) -> None:
        """Replace a file atomically: a reader sees the old content or the new, never a part of it.

        Raises:
            UserError: the disk is full or fails.
        """
        with self.replacing(path) as file:
            file.write(data)

    @contextmanager
    def replacing(self, path: Path) -> Iterator[BinaryIO]:
        """Like :meth:`write_bytes`, for content written to the yielded file; replaced when the block ends."""
        with self.reporting_disk_errors(), atomic.replacing(path) as file:
            yield file

    @contextmanager
    def reporting_disk_errors(self) -> Iterator[None]:
        """Turn the errors of a full or failing disk into a UserError; everything written before is kept."""
        try:
            yield
        except OSError as error:
            if error.errno not in (*_NO_SPACE, *_NO_DISK):
                raise
            if error.errno in _NO_SPACE:
                problem = f"there is no space left for {self.root} ({error.strerror}): free some"
            else:
                problem = f"{self.root} can't be written any more ({error.strerror}): repair it"
            raise UserError(
                f"output_dir: {problem}, and the same command goes on where it stopped, or choose another "
                "output_dir="
            ) from error

    def write_text(self, path: Path, text: str) -> None:
        """Like :meth:`write_bytes`, for text in UTF-8."""
        self.write_bytes(path, text.encode())

    def write_plan(self, document: Mapping[str, Any]) -> None:
        """Replace plan.json; its last entry is a checksum of the others."""
        sealed = {**document, _CHECKSUM_KEY: _checksum(document)}
        self.write_text(self.plan_path, json.dumps(sealed, indent=1, allow_nan=False) + "\n")

    def read_plan(self) -> dict[str, Any] | None:
        """Read plan.json without its checksum; None if it does not exist.

        Raises:
            DamagedPlanError: the content does not match its checksum.
            UserError: the file cannot be read, or another version of this program wrote it.
        """
        try:
            plan: Any = json.loads(self.plan_path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{self.plan_path}: it can't be read ({error.strerror}): {_REMEDY}") from None
        except (ValueError, RecursionError):
            plan = None
        version = plan.get("plan_version", PLAN_VERSION) if isinstance(plan, dict) else PLAN_VERSION
        if version != PLAN_VERSION:
            problem = f"plan_version is {abbreviated(version)}, but this program reads {PLAN_VERSION}"
            raise UserError(f"{self.plan_path}: {problem}: {_REMEDY}")
        if not isinstance(plan, dict) or plan.pop(_CHECKSUM_KEY, None) != _checksum(plan):
            raise DamagedPlanError(
                f"{self.plan_path}: it is damaged: the command that made it writes it again"
            )
        return plan

    def write_answers(self, document: Mapping[str, Any]) -> None:
        """Replace answers.json, a study's results (:func:`sega_bench.study.answer_files.write`)."""
        versioned = {"answers_version": ANSWERS_VERSION, **document}
        text = json.dumps(versioned, indent=1, ensure_ascii=False, allow_nan=False)
        self.write_text(self.answers_path, text + "\n")

    def read_answers(self) -> dict[str, Any] | None:
        """Read a study's answers.json; None if the folder is a sweep's.

        A file that is missing, damaged or of another version reads as empty: the study's command rewrites it.
        """
        if not self.study_path.exists():
            return None
        try:
            answers: Any = json.loads(self.answers_path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        is_readable = isinstance(answers, dict) and answers.get("answers_version") == ANSWERS_VERSION
        return answers if is_readable else {}

    def write_cell_image(self, cell: Cell, image: CellImage) -> tuple[str, str]:
        """Write a cell's image with the cell's settings embedded. Thread-safe.

        Returns:
            The POSIX path relative to :attr:`root`, and the sha256 of the file's bytes.
        """
        metadata = asdict(cell) | settings(cell)
        del metadata["edits"]  # settings() has them under their column names
        content = image.to_png(metadata)
        path = self.image_path(cell.key)
        self.write_bytes(path, content)
        return path.relative_to(self.root).as_posix(), hashlib.sha256(content).hexdigest()

    def write_image(self, cell: Cell, image_HWC: NDArray[np.uint8]) -> tuple[str, str]:
        """Like :meth:`write_cell_image`, for pixels without a mask: HWC, RGB, uint8."""
        return self.write_cell_image(cell, CellImage(image_HWC))

    def image_file(self, name: str) -> Path:
        """The path of an image, given its key or its row's ``image``; always inside this folder."""
        return self.image_path(_key_of(name))

    def read_image(self, name: str) -> NDArray[np.uint8]:
        """Read an image, given its key or its row's ``image``: HWC, RGB, uint8."""
        return self.read_cell_image(name).image_HWC

    def read_cell_image(self, name: str) -> CellImage:
        """Read an image and its mask, given its key or its row's ``image``.

        Raises:
            OSError, SyntaxError, ValueError: the file is missing or damaged.
        """
        return CellImage.read(self.image_file(name))

    def append(self, worker: str, records: Sequence[Record]) -> None:
        """Append records to a worker's file in one write, flushed to disk on return.

        Raises:
            UserError: the disk is full or fails; complete lines that were written are kept.
        """
        self.append_rows(worker, [record.row() for record in records])

    def append_rows(self, worker: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Like :meth:`append`, for rows in the format of :meth:`Record.row`."""
        with self.reporting_disk_errors():
            self.journal.append(worker, rows)

    def rows(self) -> tuple[list[dict[str, Any]], int]:
        """Each cell's current row, in the order in which cells were first recorded.

        The latest row of a key is current, but ``failed`` replaces ``done`` only if the image is lost.

        Returns:
            The current rows, and the number of malformed lines, which are skipped.
        """
        current: dict[str, dict[str, Any]] = {}
        turns: dict[str, int] = {}
        malformed = 0
        for place, row in self.journal.lines():
            if row is None:
                malformed += 1
                continue
            key = row["key"]
            if key not in current or self._supersedes(
                row, current[key], is_later=place.turn >= turns.get(key, 0)
            ):
                current[key] = row
                turns[key] = place.turn
        return list(current.values()), malformed

    def places(self) -> dict[str, Place]:
        """The location of each cell's current row by key, in the order of :meth:`rows`.

        Locations take far less memory than rows. A row is read back only where two rows compete.
        """
        current: dict[str, Place] = {}
        for place, row in self.journal.lines():
            if row is None:
                continue
            before = current.get(row["key"])
            is_later = before is None or place.turn >= before.turn
            if (
                before is None
                or (is_later and row["status"] == "done")  # wins whatever the other row is
                or self._supersedes(row, self.journal.read(before), is_later=is_later)
            ):
                current[row["key"]] = place
        return current

    def rows_for(self, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yield the current rows of these cells in this order, skipping cells without one.

        Only the locations of the rows are held in memory.
        """
        places = self.places()
        return self.journal.rows([places[key] for key in keys if key in places])

    def _supersedes(self, row: Mapping[str, Any], other: Mapping[str, Any], *, is_later: bool) -> bool:
        """Whether a row replaces another row of its cell; ``is_later``: it was written after the other."""
        if not is_later:
            return not self._supersedes(other, row, is_later=True)
        return row["status"] == "done" or other["status"] == "failed" or self._lacks_image(other)

    def _lacks_image(self, row: Mapping[str, Any]) -> bool:
        return bool(row.get("image")) and not is_whole_png(self.image_file(row["image"]))

    def done_keys(self, rows: Iterable[Mapping[str, Any]]) -> set[str]:
        """Keys of the current rows that are done and whose image file is complete."""
        images = {row["key"]: row.get("image") for row in rows if row["status"] == "done"}
        is_complete = {
            image: is_whole_png(self._image_name(_key_of(image))) for image in set(images.values()) if image
        }
        return {key for key, image in images.items() if image and is_complete[image]}

    def is_intact(self, row: Mapping[str, Any]) -> bool:
        """Whether a done row's image file has the sha256 that was recorded."""
        try:
            with open(self.image_file(row["image"]), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == str(row["image_sha256"])
        except OSError:
            return False


def _checksum(document: Mapping[str, Any]) -> str:
    return checksum(canonical_json(document).encode())


class DamagedPlanError(UserError):
    """plan.json does not match its checksum."""


def _key_of(name: str) -> str:
    """The key, given itself or a row's ``image`` such as ``images/ab/abcd.png``."""
    return name.rpartition("/")[2].partition(".")[0]

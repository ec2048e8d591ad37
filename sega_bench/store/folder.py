"""The sweep's folder: every path in it, every atomic write, and the rows that came back.

The folder is the truth of a sweep. Whatever kills a run, what it left is readable: a file is either whole or
absent, and a torn last line of a record file costs that one cell.
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

from sega_bench.cell import Cell, canonical_json, shown
from sega_bench.errors import UserError
from sega_bench.store.journal import Journal, Place
from sega_bench.store.pictures import Picture
from sega_bench.store.records import Record, checksum, settings
from sega_bench.system import atomic

PLAN_VERSION = 1
"""Version of plan.json; a folder of another version is refused, never guessed at."""

ANSWERS_VERSION = 1
"""Version of answers.json."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_DISK = (errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOTCONN)


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
        """Where the image of a cell belongs, whether or not it is there."""
        return Path(self._image_name(key))

    def _image_name(self, key: str) -> str:
        return f"{self.images_dir}/{key[:2]}/{key}.png"

    def held_out(self) -> list[Store]:
        """Of a study, the sweeps of what it found on what was held out."""
        return [Store(path.parent) for path in sorted(self.root.glob("held_out*/plan.json"))]

    def outcome_path(self, worker: int) -> Path:
        """How a worker says that it ended."""
        return self.launch_dir / f"{worker}.outcome.json"

    def starts_path(self, worker: int) -> Path:
        """How often a worker began in vain."""
        return self.launch_dir / f"{worker}.starts.json"

    def look_anew(self) -> None:
        """Have a shared file system ask its server for what other machines have put here.

        An NFS client remembers for up to a minute which files a folder lacked, unless its times change.
        """
        for folder in (self.records_dir, self.launch_dir):
            with suppress(OSError):  # it is not there
                os.utime(folder)

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
        with self.replacing(path) as file:
            file.write(data)

    @contextmanager
    def replacing(self, path: Path) -> Iterator[BinaryIO]:
        """:meth:`write_bytes` of what is written to the file that this gives, whole once the block ends."""
        with self.space(), atomic.replacing(path) as file:
            yield file

    @contextmanager
    def space(self) -> Iterator[None]:
        """A disk that is full or fails is the user's to mend; nothing that was written before is lost."""
        try:
            yield
        except OSError as error:
            if error.errno not in (*_NO_SPACE, *_NO_DISK):
                raise
            if error.errno in _NO_SPACE:
                what = f"there is no space left for {self.root} ({error.strerror}): free some"
            else:
                what = f"{self.root} can't be written any more ({error.strerror}): mend that"
            raise UserError(
                f"output_dir: {what}, and the same command goes on where it stopped, or choose another "
                "output_dir="
            ) from error

    def write_text(self, path: Path, text: str) -> None:
        """:meth:`write_bytes` of UTF-8."""
        self.write_bytes(path, text.encode())

    def write_plan(self, document: Mapping[str, Any]) -> None:
        """Replace plan.json; a checksum of it is its last entry."""
        sealed = {**document, _SEAL: _checksum(document)}
        self.write_text(self.plan_path, json.dumps(sealed, indent=1, allow_nan=False) + "\n")

    def read_plan(self) -> dict[str, Any] | None:
        """What plan.json says; None where there is none.

        Raises:
            DamagedPlanError: it is not what was written.
            UserError: it can't be read, or another version of this program wrote it.
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
            wrong = f"plan_version is {shown(version)}, but this program reads {PLAN_VERSION}"
            raise UserError(f"{self.plan_path}: {wrong}: {_REMEDY}")
        if not isinstance(plan, dict) or plan.pop(_SEAL, None) != _checksum(plan):
            raise DamagedPlanError(
                f"{self.plan_path}: it is damaged: the command that made it writes it again"
            )
        return plan

    def write_answers(self, document: Mapping[str, Any]) -> None:
        """Replace answers.json, what a study found (:func:`sega_bench.study.answer_files.write`)."""
        versioned = {"answers_version": ANSWERS_VERSION, **document}
        text = json.dumps(versioned, indent=1, ensure_ascii=False, allow_nan=False)
        self.write_text(self.answers_path, text + "\n")

    def answers(self) -> dict[str, Any] | None:
        """What a study found, as answers.json says; empty if none can be read, and None of a sweep.

        One that is missing, damaged or of another version, the study's command writes again.
        """
        if not self.study_path.exists():
            return None
        try:
            said: Any = json.loads(self.answers_path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        is_ours = isinstance(said, dict) and said.get("answers_version") == ANSWERS_VERSION
        return said if is_ours else {}

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
        return self.image_path(_key_of(name))

    def read_image(self, name: str) -> NDArray[np.uint8]:
        """An image by its key or its row's ``image``: HWC, RGB, uint8."""
        return self.read_picture(name).image_HWC

    def read_picture(self, name: str) -> Picture:
        """A cell's picture by its key or its row's ``image``.

        Raises:
            OSError, SyntaxError, ValueError: it is not there, or it is damaged.
        """
        return Picture.read(self.image_file(name))

    def append(self, worker: str, made: Sequence[Record]) -> None:
        """Add rows to a worker's file: one write, and on disk when this returns.

        A line that a killed writer left torn is ended first, so that it spoils no other.

        Raises:
            UserError: there is no space for them; those that fitted are kept.
        """
        self.append_rows(worker, [record.row() for record in made])

    def append_rows(self, worker: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """:meth:`append` of rows as :meth:`Record.row` makes them."""
        with self.space():
            self.journal.append(worker, rows)

    def rows(self) -> tuple[list[dict[str, Any]], int]:
        """Each cell's present row, in the order in which cells were first recorded.

        Returns:
            The rows (the latest of a key counts, but ``failed`` replaces ``done`` only where the image that
            was done is lost), and the number of lines that were skipped because they hold no row.
        """
        present: dict[str, dict[str, Any]] = {}
        turns: dict[str, int] = {}
        malformed = 0
        for place, row in self.journal.lines():
            if row is None:
                malformed += 1
                continue
            key = row["key"]
            if key not in present or self._counts(
                row, present[key], is_later=place.turn >= turns.get(key, 0)
            ):
                present[key] = row
                turns[key] = place.turn
        return list(present.values()), malformed

    def places(self) -> dict[str, Place]:
        """Where each cell's present row stands, in the order of :meth:`rows`; much smaller than those."""
        present: dict[str, Place] = {}
        for place, row in self.journal.lines():
            if row is None:
                continue
            before = present.get(row["key"])
            is_later = before is None or place.turn >= before.turn
            if (
                before is None
                or (is_later and row["status"] == "done")
                or self._counts(row, self.journal.read(before), is_later=is_later)
            ):
                present[row["key"]] = place
        return present

    def present(self, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The present rows of these cells, in this order, one at a time; a cell that has none is passed over.

        Of 100,000 rows it keeps where they stand, not what they say.
        """
        places = self.places()
        return self.journal.rows([places[key] for key in keys if key in places])

    def _counts(self, row: Mapping[str, Any], other: Mapping[str, Any], *, is_later: bool) -> bool:
        """Whether a row replaces another of its cell, which was written before it or after it."""
        if not is_later:
            return not self._counts(other, row, is_later=True)
        return row["status"] == "done" or other["status"] == "failed" or self._is_lost(other)

    def _is_lost(self, row: Mapping[str, Any]) -> bool:
        return bool(row.get("image")) and not is_whole_png(self.image_file(row["image"]))

    def done_keys(self, rows: Iterable[Mapping[str, Any]]) -> set[str]:
        """Keys of those of the present rows that are done and whose image is there, to its last byte."""
        images = {row["key"]: row.get("image") for row in rows if row["status"] == "done"}
        there = {  # without Path, which would take as long as all else
            image: is_whole_png(self._image_name(_key_of(image))) for image in set(images.values()) if image
        }
        return {key for key, image in images.items() if image and there[image]}

    def is_intact(self, row: Mapping[str, Any]) -> bool:
        """Whether a done row's image is there, byte for byte as it was written."""
        try:
            with open(self.image_file(row["image"]), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == str(row["image_sha256"])
        except OSError:
            return False


_SEAL = "checksum"


def _checksum(document: Mapping[str, Any]) -> str:
    return checksum(canonical_json(document).encode())


_REMEDY = "choose another name=, or remove the folder"


class DamagedPlanError(UserError):
    """plan.json is not what was written."""


def _key_of(name: str) -> str:
    """The key in a row's ``image``, or the key itself."""
    return name.rpartition("/")[2].partition(".")[0]


def is_whole_png(path: Path | str) -> bool:
    """Whether a file is there and ends as a picture does, which one that was cut off does not."""
    try:
        file = os.open(
            path, os.O_RDONLY
        )  # a resume asks this of every image: open() takes three times as long
    except OSError:
        return False
    try:
        os.lseek(file, -len(_PNG_END), os.SEEK_END)
        return os.read(file, len(_PNG_END)) == _PNG_END
    except OSError:
        return False
    finally:
        os.close(file)


_PNG_END = bytes.fromhex("0000000049454e44ae426082")

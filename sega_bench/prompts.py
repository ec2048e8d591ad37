"""Prompts from the configuration or from a file, each with the settings that only it has."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sega_bench.cell import shown
from sega_bench.config import PromptFileConfig, nearest
from sega_bench.errors import UserError

OWN_SETTINGS = ("seed", "guidance_scale", "negative_prompt", "num_inference_steps")
"""What a prompt file's columns may set for a prompt alone."""

_SUFFIXES = (".csv", ".txt", ".jsonl")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text, and the settings that hold for it alone."""

    text: str
    own: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(value: object, file: PromptFileConfig) -> tuple[Prompt, ...]:
    """The prompts of a sweep.

    Args:
        value: a list of texts, or the name of a .csv, .txt (one a line) or .jsonl file.
        file: how to read the file.

    Raises:
        UserError: no prompts, no such file, a line or column that cannot be read.
    """
    if isinstance(value, str):
        prompts = tuple(_read_file(Path(value), file))
    elif isinstance(value, list | tuple):
        prompts = tuple(Prompt(as_text(text, f"prompts[{i}]")) for i, text in enumerate(value))
    else:
        prompts = ()
    if not prompts:
        raise UserError("prompts: there are none; give a list, prompts=['a photo of a cat'], or a file name")
    return prompts


def read_replays(value: object) -> tuple[str | None, ...]:
    """The prompts whose edits a sweep replays, each once; None is the prompt's own edit.

    Args:
        value: a text, None, or a list of those.

    Raises:
        UserError: an empty list, or an entry that is no text.
    """
    if not isinstance(value, list):
        return (None if value is None else as_text(value, "replay"),)
    if not value:
        raise UserError("replay is an empty list: name the prompts whose edits to replay, or leave it null")
    entries = (None if text is None else as_text(text, f"replay[{i}]") for i, text in enumerate(value))
    return tuple(dict.fromkeys(entries))


def as_text(value: object, key: str) -> str:
    """A text, or an error that knows how YAML turns texts into something else."""
    if isinstance(value, bool):
        raise UserError(
            f"{key} is {str(value).lower()}, a boolean, where a text belongs: YAML reads no, off, yes and on "
            "as booleans, so put it in quotes"
        )
    if not isinstance(value, str):
        raise UserError(f"{key} is {shown(value)}, but it must be a text: put it in quotes")
    return value


def _read_file(path: Path, file: PromptFileConfig) -> Iterator[Prompt]:
    if path.suffix not in _SUFFIXES:
        raise UserError(
            f"prompts is the text {shown(str(path))}: put it in a list, prompts=['...'], or name a file that "
            f"ends in {', '.join(_SUFFIXES)}"
        )
    unknown = [key for key in file.columns if key not in OWN_SETTINGS]
    if unknown:
        raise UserError(
            f"prompt_file.columns.{unknown[0]}: {nearest(unknown[0], OWN_SETTINGS)}a prompt can have its own "
            f"{', '.join(OWN_SETTINGS)}"
        )
    if file.limit is not None and file.limit < 1:
        raise UserError(f"prompt_file.limit is {file.limit}, but it must be at least 1, or null for all")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts: {path} cannot be read ({_reason(error)})") from error
    for line, row in itertools.islice(_rows(path, text, file.column), file.limit):
        yield _prompt(f"prompts: {path} line {line}", row, file)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or "not UTF-8 text"


def _rows(path: Path, text: str, column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of every row."""
    lines = text.splitlines()
    if path.suffix == ".txt":
        yield from ((i, {column: line}) for i, line in enumerate(lines, 1) if line.strip())
    elif path.suffix == ".csv":
        yield from _csv_rows(path, lines)
    else:
        for i, line in enumerate(lines, 1):
            if line.strip():
                yield i, _json_row(f"prompts: {path} line {i}", line)


def _csv_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(lines, strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"prompts: {path} line {reader.line_num}: {error}") from error


def _json_row(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise UserError(f'{where} is not a JSON object such as {{"prompt": "a cat"}}')
    return row


def _prompt(where: str, row: Mapping[str, Any], file: PromptFileConfig) -> Prompt:
    for column in (file.column, *file.columns.values()):
        if row.get(column) is None:
            raise UserError(
                f"{where} has no value in column {column!r}: {nearest(column, map(str, row))}it has "
                f"{', '.join(map(str, row))}; name the column with prompt_file.column="
            )
    text = as_text(row[file.column], f"{where}, column {file.column}")
    return Prompt(text, {key: _own(where, key, row[column]) for key, column in file.columns.items()})


def _own(where: str, key: str, value: Any) -> Any:
    """A column's value; numbers arrive from CSV as text, and what they may be is the cell's to judge."""
    if key == "negative_prompt":
        return as_text(value, f"{where}, {key}")
    try:
        return float(value) if key == "guidance_scale" else int(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {key} is {shown(value)}, but it must be a number") from error

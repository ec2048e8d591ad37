"""Prompts from the configuration or from a file, each with its own settings."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sega_bench.cell import abbreviated
from sega_bench.config import PromptFileConfig
from sega_bench.errors import UserError, expand_user, nearest

OWN_SETTINGS = ("seed", "guidance_scale", "negative_prompt", "num_inference_steps")
"""Settings that a column of a prompt file may give to each prompt."""

MAX_TEXT_LENGTH = 10_000
"""Characters, far beyond the 77 tokens that CLIP's text encoders read."""

_DAMAGED = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")
"""Control characters other than white space, and lone surrogates."""

_SUFFIXES = (".csv", ".txt", ".jsonl")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt with its own settings.

    Args:
        text: the prompt's text.
        own: its own settings by name; :class:`~sega_bench.cell.Cell` checks their ranges.
        origin: file, line and column of each of these settings.
    """

    text: str
    own: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)


def read_prompts(value: object, file: PromptFileConfig) -> tuple[Prompt, ...]:
    """Read the prompts of a sweep.

    Args:
        value: a list of texts, or the name of a .csv, .txt (one prompt per line) or .jsonl file.
        file: how to read the file.

    Raises:
        UserError: there are no prompts or no such file, or a line or column is invalid.
    """
    if isinstance(value, str):
        prompts = tuple(_read_file(expand_user(as_text(value, "prompts"), "prompts"), file))
    elif isinstance(value, list | tuple):
        prompts = tuple(Prompt(as_text(text, f"prompts[{i}]")) for i, text in enumerate(value))
    else:
        prompts = ()
    if not prompts:
        raise UserError(
            "prompts: there are none; give a list, prompts=['a photo of a cat'], a file name, or a "
            "sweep that has some, +sweep=thresholds"
        )
    return prompts


def read_replays(value: object) -> tuple[str | None, ...]:
    """The distinct prompts whose edits a sweep replays; None stands for the prompt's own edit.

    Args:
        value: a text, None, or a list of these.

    Raises:
        UserError: the list is empty, or an entry is not a text.
    """
    if not isinstance(value, list):
        return (None if value is None else as_text(value, "replay"),)
    if not value:
        raise UserError("replay is an empty list: name the prompts whose edits to replay, or leave it null")
    entries = (None if text is None else as_text(text, f"replay[{i}]") for i, text in enumerate(value))
    return tuple(dict.fromkeys(entries))


def as_text(value: object, key: str) -> str:
    """Check that a value is a text fit for a model, a file name or a table.

    Raises:
        UserError: it is not a text (the message explains YAML's booleans), or it is longer than
            :data:`MAX_TEXT_LENGTH`, or it has control characters or lone surrogates.
    """
    if isinstance(value, bool):
        raise UserError(
            f"{key} is {str(value).lower()}, a boolean, where a text belongs: YAML reads no, off, yes and on "
            "as booleans, so put it in quotes"
        )
    if not isinstance(value, str):
        raise UserError(f"{key} is {abbreviated(value)}, but it must be a text: put it in quotes")
    if len(value) > MAX_TEXT_LENGTH:
        raise UserError(f"{key} has {len(value):,} characters: give at most {MAX_TEXT_LENGTH:,}")
    if match := _DAMAGED.search(value):
        raise UserError(
            f"{key} is {abbreviated(value)}, with {match[0]!r} at character {match.end()}: remove it"
        )
    return value


def _read_file(path: Path, file: PromptFileConfig) -> Iterator[Prompt]:
    if path.suffix not in _SUFFIXES:
        raise UserError(
            f"prompts is the text {abbreviated(str(path))}: put it in a list, prompts=['...'], or name a "
            f"file that ends in {', '.join(_SUFFIXES)}"
        )
    for key in file.columns:
        if key not in OWN_SETTINGS:
            raise UserError(
                f"prompt_file.columns.{key}: {nearest(key, OWN_SETTINGS)}a prompt can have its own "
                f"{', '.join(OWN_SETTINGS)}"
            )
    if file.limit is not None and file.limit < 1:
        raise UserError(f"prompt_file.limit is {file.limit}, but it must be at least 1, or null for all")
    try:
        text = path.read_bytes().decode("utf-8-sig")  # read_text would turn \r in a quoted field into \n
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts: {path} cannot be read ({_reason(error)})") from error
    for line, row in itertools.islice(_rows(path, text, file), file.limit):
        yield _parse_row(f"prompts: {path} line {line}", row, file)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or "not UTF-8 text"


def _rows(path: Path, text: str, file: PromptFileConfig) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of each row."""
    if path.suffix == ".csv":
        yield from _csv_rows(path, text, file)
        return
    # Not splitlines, which also breaks at form feeds, U+2028 and others that may occur in a prompt.
    for i, line in enumerate(text.split("\n"), 1):
        if line.strip():
            content = line.removesuffix("\r")
            is_text = path.suffix == ".txt"
            yield i, {file.column: content} if is_text else _json_row(f"prompts: {path} line {i}", content)


def _csv_rows(path: Path, text: str, file: PromptFileConfig) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = list(reader.fieldnames or ())
        for name in (file.column, *file.columns.values()):
            if names.count(name) > 1:
                raise UserError(f"prompts: {path} has {names.count(name)} columns {name!r}: rename one")
        for row in reader:
            if None in row:  # DictReader collects surplus fields under None
                raise UserError(
                    f"prompts: {path} line {reader.line_num} has more fields than the header, which has "
                    f"{len(names)}: put texts with commas in double quotes"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"prompts: {path} line {reader.reader.line_num} cannot be read ({error})") from error


def _json_row(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise UserError(f'{where} is not a JSON object such as {{"prompt": "a cat"}}')
    return row


def _parse_row(where: str, row: Mapping[str, Any], file: PromptFileConfig) -> Prompt:
    for column in (file.column, *file.columns.values()):
        if row.get(column) is None:
            raise UserError(
                f"{where} has no value in column {column!r}: {nearest(column, row)}it has "
                f"{', '.join(row)}; name the column with prompt_file.column="
            )
    origin = {key: f"{where}, column {column}: {key}" for key, column in file.columns.items()}
    return Prompt(
        as_text(row[file.column], f"{where}, column {file.column}"),
        {key: _parse_setting(key, row[column], origin[key]) for key, column in file.columns.items()},
        origin,
    )


def _parse_setting(key: str, value: Any, where: str) -> Any:
    """A setting's value in its type; CSV has numbers as text."""
    if key == "negative_prompt":
        return as_text(value, where)
    for convert in (int, float) if isinstance(value, str) else ():
        try:
            return convert(value)
        except ValueError:
            continue
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where} is {abbreviated(value)}, but it must be a number")
    return value

"""The one exception that is the user's to mend, how mistakes are worded, and checks that all layers make."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

_LONGEST = 1000


class UserError(Exception):
    """A mistake in what was asked: one line that names the key and the remedy, shown without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(clean(message[:_LONGEST]) + "..." * (len(message) > _LONGEST))


@contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """Around every command: what the user can mend ends it with one line and exit code 2, whichever it is.

    Anything else is a bug, and keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        from rich.console import Console
        from rich.text import Text

        line = Text.assemble(("error: ", "bold red"), str(error))
        Console(stderr=True).print(line, soft_wrap=True)
        sys.exit(2)


def clean(text: str) -> str:
    """A text on one line, without anything that steers a terminal or reverses its reading."""
    spaced = "".join(" " if char.isspace() else char for char in text)
    return " ".join("".join(char for char in spaced if unicodedata.category(char)[0] != "C").split())


def named(error: BaseException) -> str:
    """An exception's type and the first line of what it says."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def nearest(name: str, known: Iterable[str], show: Callable[[str], str] = str) -> str:
    """``did you mean X? `` or nothing, to go before what there is.

    Args:
        name: what was written.
        known: what could have been.
        show: one of ``known`` as it should be written, where that is not how it is compared.
    """
    near = get_close_matches(name[:_LONGEST], list(known), n=1, cutoff=0.4)
    return f"did you mean {show(near[0])}? " if near else ""


def check_count(key: str, value: int, most: int) -> None:
    """Refuse a size or number that is none.

    Raises:
        UserError: it is not between 1 and ``most``.
    """
    if not 1 <= value <= most:
        bound = "at least 1" if value < 1 else f"at most {most:,}"
        raise UserError(f"{key} is {value}, but it must be {bound}")


def expand_user(name: str, key: str) -> Path:
    """A path with ``~`` as the user's folder.

    Raises:
        UserError: it is that of a user who is not here.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key} is {name!r}, but there is no such user: write the whole path") from error

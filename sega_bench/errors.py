"""The exception for user errors, its formatting, and input checks shared by all layers."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

_LONGEST = 1000


class UserError(Exception):
    """A mistake in the user's input: one line that names the key and the remedy, without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(clean(message[:_LONGEST]) + "..." * (len(message) > _LONGEST))


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End a command with one line and exit code 2 on a :class:`UserError`.

    Any other exception is a bug and keeps its traceback.
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
    """Put a text on one line, without characters that control a terminal or change reading direction."""
    spaced = "".join(" " if char.isspace() else char for char in text)
    return " ".join("".join(char for char in spaced if unicodedata.category(char)[0] != "C").split())


def error_summary(error: BaseException) -> str:
    """An exception's type and the first line of its message, cut at 300 characters."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def nearest(name: str, known: Iterable[str], show: Callable[[str], str] = str) -> str:
    """``"did you mean X? "``, or an empty string if no known name is similar.

    Args:
        name: the unknown name.
        known: the valid names.
        show: formats a valid name for the message.
    """
    near = get_close_matches(name[:_LONGEST], list(known), n=1, cutoff=0.4)
    return f"did you mean {show(near[0])}? " if near else ""


def check_count(key: str, value: int, most: int) -> None:
    """Check that a count lies between 1 and ``most``.

    Raises:
        UserError: it does not.
    """
    if not 1 <= value <= most:
        bound = "at least 1" if value < 1 else f"at most {most:,}"
        raise UserError(f"{key} is {value}, but it must be {bound}")


def expand_user(name: str, key: str) -> Path:
    """Expand ``~`` or ``~user`` at the start of a path.

    Raises:
        UserError: the user does not exist.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key} is {name!r}, but there is no such user: write the whole path") from error

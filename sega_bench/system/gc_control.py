"""Python's collector of garbage, kept from looking for cycles where there are none."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept() -> Iterator[None]:
    """For what makes many objects at once that all stay, such as a hundred thousand cells or rows.

    As they grow in number, the collector would look through all of them, and through all that torch has,
    again and again: half of the time that a resume took.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def frozen() -> Iterator[None]:
    """For work that goes on for days beside a hundred thousand objects that stay, such as a plan's cells.

    What is there when this begins is not looked through before it ends: that would take as long as a few
    thousand cells do, again and again. What is made meanwhile is collected as ever.
    """
    is_outermost = gc.get_freeze_count() == 0
    gc.freeze()
    try:
        yield
    finally:
        if is_outermost:
            gc.unfreeze()


def end_without_looking() -> None:
    """Have this process end without looking once more through all that it dies with: with torch, a second."""
    atexit.register(gc.freeze)

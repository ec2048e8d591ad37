"""Context managers that keep Python's cyclic garbage collector from scanning long-lived objects."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def disabled() -> Iterator[None]:
    """Disable the collector while many long-lived objects are created, such as 100,000 cells or rows.

    Allocation triggers repeated collections that scan all of them and all of torch's objects. This took
    half of the time of a resume.
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
    """Exclude all present objects, such as a plan's cells, from collection until the block ends.

    For work that runs for days beside 100,000 objects: each full collection would take as long as a few
    thousand cells. Objects created in the block are collected as usual.
    """
    # gc.unfreeze() thaws everything: an inner block must not end an outer one.
    is_outermost = gc.get_freeze_count() == 0
    gc.freeze()
    try:
        yield
    finally:
        if is_outermost:
            gc.unfreeze()


def skip_at_exit() -> None:
    """Skip the final collection when this process exits; with torch loaded it takes a second."""
    atexit.register(gc.freeze)

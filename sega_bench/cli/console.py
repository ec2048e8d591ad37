"""Where is said what is said: the terminal, and the log in a sweep's folder."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

console = Console(width=None if sys.stdout.isatty() else 100)
errors = Console(stderr=True, width=None if sys.stderr.isatty() else 10_000)


def quieten_libraries() -> None:
    """Keep the libraries' progress bars and deprecation notes out of ours."""
    import diffusers.utils.logging
    import transformers.utils.logging

    logging.getLogger().addHandler(logging.NullHandler())
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: a full disk is told once, by what was to be written there."""


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """The package's log in the sweep's folder, warnings on the terminal too."""
    handlers = (
        _LogFile(path, encoding="utf-8"),
        RichHandler(logging.WARNING, errors, show_path=False),
    )
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("sega_bench")
    package.setLevel(logging.INFO)
    package.propagate = False
    for handler in handlers:
        package.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            package.removeHandler(handler)
            with suppress(OSError):  # what did not fit on the disk
                handler.close()

"""The terminal, and the log file in a sweep's folder."""

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
    """Silence the libraries' progress bars and deprecation warnings."""
    import diffusers.utils.logging
    import transformers.utils.logging

    logging.getLogger().addHandler(logging.NullHandler())
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore it: a full disk is reported once, by the code that writes results."""


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Write the package's log to a file; warnings also go to the terminal."""
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
            with suppress(OSError):  # the disk is full
                handler.close()

"""The command line: a first word without ``=`` is a sub-command, anything else goes to Hydra.

Exit codes: 0 all cells done, 1 some failed or lack scores, 2 the user's mistake, 130 interrupted.
"""

from __future__ import annotations

import os
import sys

from sega_bench.cli import subcommands
from sega_bench.cli.console import errors
from sega_bench.errors import exit_on_user_error
from sega_bench.system import gc_control, signals


def main() -> None:
    """Run the command line; exits with the codes above."""
    signals.listen()
    gc_control.skip_at_exit()
    # Read when torch is imported: idle threads sleep instead of spinning, which leaves cores to other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with exit_on_user_error():
            sys.exit(_dispatch(sys.argv[1:]))
    except KeyboardInterrupt:
        errors.print("interrupted: finished work is kept, and the same command continues it", style="yellow")
        sys.exit(signals.INTERRUPTED)


def _dispatch(words: list[str]) -> int:
    if subcommands.is_subcommand(words):
        return subcommands.run(words)
    from sega_bench.cli import compose, overview, sweep

    flags = compose.flags()
    if not words or flags.help:
        overview.print_overview(keys=flags.help)
        return 0
    return int(sweep.run_sweeps(compose.composed(flags)) > 0)

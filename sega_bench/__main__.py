"""The command line: ``python -m sega_bench +sweep=thresholds``. The composition root.

Exit codes: 0 all cells done, 1 some failed or lack scores, 2 the user's mistake, 130 interrupted.
"""

from __future__ import annotations

import os
import sys

from sega_bench.cli import compose, overview, sweep
from sega_bench.cli.console import errors
from sega_bench.errors import mistakes_in_one_line
from sega_bench.system import gc_control, signals


def main() -> None:
    """Run the command line; exits with the codes above."""
    signals.listen()
    gc_control.end_without_looking()
    # Read when torch is imported: threads that wait for each other sleep, and leave the core to others.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with mistakes_in_one_line():
            given = compose.flags()
            if len(sys.argv) == 1 or given.help:
                overview.print_overview()
            elif sweep.run_sweeps(compose.composed(given)):
                sys.exit(1)
    except KeyboardInterrupt:
        errors.print("interrupted: what was done is kept, and the same command goes on", style="yellow")
        sys.exit(signals.INTERRUPTED)


if __name__ == "__main__":
    main()

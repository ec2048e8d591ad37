"""``python -m sega_bench.store verify FOLDER``: is what was reported done still there, byte for byte?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from sega_bench.errors import clean, mistakes_in_one_line
from sega_bench.store import Store, lock
from sega_bench.store.verification import repair, verify


def main(arguments: Sequence[str] | None = None) -> None:
    """Check every hash of a sweep's folder. Exit codes: 0 whole, or repaired; 1 damaged; 2 no sweep."""
    parser = argparse.ArgumentParser(prog="python -m sega_bench.store", description=main.__doc__)
    command = parser.add_subparsers(required=True, metavar="verify").add_parser("verify", help=main.__doc__)
    command.add_argument("folder", type=Path, help="a sweep's folder, such as outputs/thresholds")
    command.add_argument(
        "--repair", action="store_true", help="drop what is damaged; the sweep's own command makes it again"
    )
    asked = parser.parse_args(arguments)
    store = Store(asked.folder)
    is_locked = asked.repair and asked.folder.is_dir()
    with mistakes_in_one_line(), lock.held(store) if is_locked else nullcontext():
        intact, damages = verify(store)
        for damage in damages:
            print(clean(f"{damage.path} {damage.reason}"))
        if asked.repair:
            repair(store, damages)
    said = f"{intact} images are as they were written, {len(damages)} parts are damaged"
    if damages and asked.repair:
        said += " and were dropped: the sweep's own command makes them again"
    elif damages:
        said += ": --repair drops them, and the sweep's own command makes them again"
    print(said)
    sys.exit(1 if damages and not asked.repair else 0)


if __name__ == "__main__":
    main()

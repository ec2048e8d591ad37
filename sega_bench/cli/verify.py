"""Check every hash in a sweep's folder: is each image and record still as it was written?

Exit codes: 0 intact, or repaired; 1 damaged; 2 not a sweep.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

from sega_bench.cli.subcommand import add_folder
from sega_bench.errors import clean
from sega_bench.store import Store, lock
from sega_bench.store.verification import repair, verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    add_folder(parser)
    parser.add_argument(
        "--repair", action="store_true", help="drop what is damaged; the sweep's own command makes it again"
    )


def run(args: argparse.Namespace) -> int:
    """Print each damaged part and a summary."""
    store = Store(args.folder)
    is_locked = args.repair and store.root.is_dir()
    with lock.held(store) if is_locked else nullcontext():
        intact, damages = verify(store)
        for damage in damages:
            print(clean(f"{damage.path} {damage.reason}"))
        if args.repair:
            repair(store, damages)
    message = f"{intact} images are intact, {len(damages)} parts are damaged"
    if damages and args.repair:
        message += " and were dropped: the sweep's own command makes them again"
    elif damages:
        message += ": --repair drops them, and the sweep's own command makes them again"
    print(message)
    return int(bool(damages) and not args.repair)

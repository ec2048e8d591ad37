"""Build a sweep's report again from its folder alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sega_bench.analysis.frames import load_with_digest
from sega_bench.analysis.summary import summarise
from sega_bench.errors import mistakes_in_one_line
from sega_bench.store import Store
from sega_bench.views.report.building import write_report


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it; exits with 2 where the folder holds no sweep."""
    parser = argparse.ArgumentParser(prog="python -m sega_bench.views.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="a sweep's folder, such as outputs/thresholds")
    asked = parser.parse_args(arguments)
    with mistakes_in_one_line():
        store = Store(asked.folder)
        frame, digest = load_with_digest(store)
        plan = store.read_plan() or {}
        summary = summarise(frame, list(plan["axes"]), store.answers())
        print(write_report(store, frame, summary, plan, digest))


if __name__ == "__main__":
    main()

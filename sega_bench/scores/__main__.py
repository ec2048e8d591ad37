"""Score the stored pictures of a sweep again: ``python -m sega_bench.scores outputs/thresholds``.

Exit codes are those of ``python -m sega_bench``.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sega_bench import signals
from sega_bench.errors import mistakes_in_one_line
from sega_bench.store import Store

console = Console(width=None if sys.stdout.isatty() else 100)


def main(arguments: Sequence[str] | None = None) -> None:
    """Score all pictures again, then bring the views up to date."""
    parser = argparse.ArgumentParser(prog="python -m sega_bench.scores", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="a sweep's folder, such as outputs/thresholds")
    parser.add_argument(
        "settings",
        nargs="*",
        help="other scorers than the sweep's own, such as scores=openclip or scores.perceptual=vgg; "
        "engine.device=cpu",
    )
    asked = parser.parse_args(arguments)
    signals.listen()
    try:
        with mistakes_in_one_line():
            _run(Store(asked.folder), asked.settings)
    except KeyboardInterrupt:
        print("interrupted: what was scored is kept, and the same command goes on", file=sys.stderr)
        sys.exit(signals.INTERRUPTED)


def _run(store: Store, words: Sequence[str]) -> None:
    from sega_bench import rescoring
    from sega_bench.sega.models import resolve_device
    from sega_bench.store import lock

    others, device_name = rescoring.read_words(words)
    settings = rescoring.settings_of(store, others)
    handler = logging.FileHandler(store.log_path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("sega_bench").addHandler(handler)
    signals.before_leaving(lock.release_all)
    counts: Counter[str] = Counter()
    with console.status("scoring") as status:
        for chunk in rescoring.rescore(store, settings, resolve_device(device_name)):
            counts += chunk
            status.update(f"scoring: {counts.total():,} cells")
            signals.check()
    said = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    console.print(f"{store.root}: {said}", highlight=False)
    _show(store)
    if lacking := counts["not scored"] + counts["failed"]:
        raise SystemExit(f"{lacking} of {counts.total()} cells lack scores; the column 'error' says why")


def _show(store: Store) -> None:
    """Make all views anew but W&B's, and print the summary."""
    from sega_bench.views import everything, tables, terminal
    from sega_bench.views.claims import claims

    frame, axes = tables.load(store.root), list((store.read_plan() or {})["axes"])
    summary, claimed = (of(frame, axes, store.answers()) for of in (tables.summarise, claims))
    everything.write_views(store, frame, summary, claimed, tables.digest(store))
    terminal.print_summary(console, summary, tables.trends(frame, axes), claimed, everything.places(store))


if __name__ == "__main__":
    main()

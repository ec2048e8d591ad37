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
from typing import TYPE_CHECKING

from rich.console import Console

from sega_bench.errors import mistakes_in_one_line
from sega_bench.store import Store
from sega_bench.system import signals

if TYPE_CHECKING:
    import torch

    from sega_bench.scores import ScoreSettings

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
            _rescore_all(Store(asked.folder), asked.settings)
    except KeyboardInterrupt:
        print("interrupted: what was scored is kept, and the same command goes on", file=sys.stderr)
        sys.exit(signals.INTERRUPTED)


def _rescore_all(store: Store, words: Sequence[str]) -> None:
    """A sweep's pictures, or a study's with those that were held out."""
    from sega_bench.rescoring import rescore
    from sega_bench.sega.models import resolve_device
    from sega_bench.store import lock

    others, device_name = rescore.read_words(words)
    settings, device = rescore.settings_of(store, others), resolve_device(device_name)
    handler = logging.FileHandler(store.log_path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("sega_bench").addHandler(handler)
    signals.before_leaving(lock.release_all)
    counts = sum((_rescore(one, settings, device) for one in (*store.held_out(), store)), Counter[str]())
    if store.study_path.exists():
        console.print("what the study found is forgotten: its own command, with these scores, finds it anew")
    if lacking := counts["not scored"] + counts["failed"]:
        raise SystemExit(f"{lacking} of {counts.total()} cells lack scores; the column 'error' says why")


def _rescore(store: Store, settings: ScoreSettings, device: torch.device) -> Counter[str]:
    """One folder's pictures, and its views; returns how many cells came to what."""
    from sega_bench.rescoring import rescore

    counts: Counter[str] = Counter()
    with console.status("scoring") as status:
        for chunk in rescore.rescore(store, settings, device):
            counts += chunk
            status.update(f"scoring: {counts.total():,} cells")
            signals.check()
    said = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    console.print(f"{store.root}: {said}", highlight=False)
    _show(store)
    return counts


def _show(store: Store) -> None:
    """Make all views anew but W&B's, and print the summary; a study's own command has more to say."""
    from sega_bench.analysis.claims import claims
    from sega_bench.analysis.frames import digest, load
    from sega_bench.analysis.summary import summarise, trends
    from sega_bench.views import write_all
    from sega_bench.views.console.summary import print_summary

    frame, axes = load(store.root), list((store.read_plan() or {})["axes"])
    summary, claimed = (of(frame, axes, store.answers()) for of in (summarise, claims))
    write_all.write_views(store, frame, summary, claimed, digest(store))
    if store.answers() is None:
        print_summary(console, summary, trends(frame, axes), claimed, write_all.places(store))


if __name__ == "__main__":
    main()

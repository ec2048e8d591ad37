"""Score the stored images of a sweep or study again; no image is made.

Settings choose other scorers than the sweep's own: scores=openclip, scores.perceptual=vgg, engine.device=cpu.
All views but the W&B run are brought up to date. A killed command continues where it stopped.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sega_bench.analysis.results import Results
from sega_bench.cli.console import console, errors, logging_to
from sega_bench.cli.subcommand import add_folder
from sega_bench.store import Store, lock
from sega_bench.system import signals
from sega_bench.views.console.summary import print_summary
from sega_bench.views.write_all import locations, write_views

if TYPE_CHECKING:
    import torch

    from sega_bench.scores import ScoreSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    add_folder(parser, "a sweep's or study's folder")
    parser.add_argument(
        "settings",
        nargs="*",
        help="scores=NAME, scores.KEY=VALUE or engine.device=NAME (default: the sweep's)",
    )


def run(args: argparse.Namespace) -> int:
    """Score all images again, then bring the views up to date; returns 1 if any cell lacks scores."""
    return _score_all(Store(args.folder), args.settings)


def _score_all(store: Store, words: Sequence[str]) -> int:
    """Score a sweep's images; of a study also the held-out ones."""
    from sega_bench.rescoring import rescore
    from sega_bench.sega.models import resolve_device

    overrides, device_name = rescore.parse_overrides(words)
    settings, device = rescore.resolve_settings(store, overrides), resolve_device(device_name)
    signals.before_immediate_exit(lock.release_all)
    with logging_to(store.log_path):
        stores = (*store.held_out_stores(), store)
        counts = sum((_score(one, settings, device) for one in stores), Counter[str]())
    if store.study_path.exists():
        console.print(
            "the study's answers were removed: run its own command with these scores to compute them again"
        )
    lacking = counts["not scored"] + counts["failed"]
    if lacking:
        errors.print(f"{lacking} of {counts.total()} cells lack scores; the column 'error' says why")
    return int(lacking > 0)


def _score(store: Store, settings: ScoreSettings, device: torch.device) -> Counter[str]:
    """Score one folder and write its views; returns how many cells ended in which state."""
    from sega_bench.rescoring import rescore

    counts: Counter[str] = Counter()
    with console.status("scoring") as status:
        for chunk in rescore.rescore(store, settings, device):
            counts += chunk
            status.update(f"scoring: {counts.total():,} cells")
            signals.check()
    states = ", ".join(f"{count:,} {state}" for state, count in counts.items())
    console.print(f"{store.root}: {states}", highlight=False)
    results = Results.read(store)
    write_views(results)
    if not results.is_study:  # a study's own command prints more than a summary
        print_summary(console, results, locations(store))
    return counts

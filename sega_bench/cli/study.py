"""Print what a study recommends, from its folder alone: each best setting with its scores, and advice."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from sega_bench.analysis.labels import format_value
from sega_bench.cli.console import console
from sega_bench.cli.subcommand import add_folder
from sega_bench.errors import UserError, clean
from sega_bench.store import Store
from sega_bench.views.console.summary import print_lines

_PHASES = {"searched": "where it was searched", "held_out": "on held-out prompts and seeds"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    add_folder(parser, "a study's folder")


def run(args: argparse.Namespace) -> int:
    """Print the study's answers."""
    answers = Store(args.folder).read_answers()
    if answers is None:
        raise UserError(f"{args.folder} holds no study: name a folder such as outputs/pareto")
    if not answers:
        raise UserError(f"{args.folder}: this study is not finished; its own command continues it")
    for best in answers["best"]:
        concepts = best["concepts"]
        title = "Best setting" if concepts is None else f"Best setting for {' + '.join(concepts)}"
        print_lines(console, clean(title), list(_lines(best)))
    print_lines(console, "Where to look next", list(answers["advice"]))
    return 0


def _lines(best: Mapping[str, Any]) -> Iterator[str]:
    yield ", ".join(f"{name} {format_value(value)}" for name, value in best["settings"].items())
    for phase, label in _PHASES.items():
        scores = [f"{name} {_interval(entry['score'])}" for name, entry in best.get(phase, {}).items()]
        if scores:
            yield f"{label}: {', '.join(scores)}"
    if best.get("verdict"):
        yield best["verdict"]


def _interval(estimate: Mapping[str, float | None]) -> str:
    mean, low, high = (estimate[name] for name in ("mean", "low", "high"))
    if mean is None:
        return "not scored"
    return f"{mean:z.3f}" if low is None or high is None else f"{mean:z.3f} ({low:z.3f} to {high:z.3f})"

"""What a study found, on a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sega_bench.study.answers import Answers, Best
from sega_bench.views.statistics import Estimate
from sega_bench.views.terminal import header, print_lines
from sega_bench.views.words import short

MOST_ROWS = 20
"""Of the front; more are in trials.csv."""


def print_answers(console: Console, found: Answers, places: Mapping[str, object]) -> None:
    """Print the front, the best settings beside what they score on held-out blocks, and where things are.

    Args:
        console: where to; 100 columns are enough.
        found: what the study found.
        places: where things are: a word for each, and a path or a command.
    """
    console.print(_front(found))
    console.print(Text("★ best trade-off   all others: no trial that gains more at less cost", style="dim"))
    for best, apart in zip(found.best, found.held_out or [None] * len(found.best), strict=True):
        print_lines(console, _title(found, best), list(_told(found, best, apart)))
    print_lines(console, "Hypervolume of the front, after so many UNet evaluations", list(_cost(found)))
    print_lines(console, "Where to look next", found.advice)
    console.print()
    for what, path in places.items():
        console.print(Text(f"{what:<12} {path}"), soft_wrap=True)


def _front(found: Answers) -> Table:
    study = found.study
    blocks = len(study.blocks)
    whole = sum(trial.resource == blocks for trial in found.trials)
    title = (
        f"{study.config.name}: {len(found.trials)} trials, {whole} of them on all {blocks} prompts x seeds"
    )
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("")
    names = [name for setting in study.settings.space for name in setting.parameters]
    for name in ("trial", *names, *(one.name for one in study.settings.objectives)):
        table.add_column(header(name), justify="right", overflow="fold")
    rows = {trial.number: i for i, trial in enumerate(found.trials)}
    best = found.best[0].trial.number if found.best else None
    for number in _sorted(found, rows)[:MOST_ROWS]:
        trial, estimates_K = found.trials[rows[number]], found.estimates_TK[rows[number]]
        values = [short(_rounded(trial.params[name])) for name in names]
        mark = "★" if number == best else ""
        scores = [f"{value:z.3f}" for value in estimates_K]
        table.add_row(mark, str(number), *values, *scores, style="bold" if mark else "")
    return table


def _sorted(found: Answers, rows: Mapping[int, int]) -> list[int]:
    """The front from one end to the other, the best always among the first."""
    best = found.best[0].trial.number if found.best else None
    along = sorted(found.front, key=lambda number: found.estimates_TK[rows[number], 0])
    if len(along) > MOST_ROWS:
        kept = {along[i] for i in np.linspace(0, len(along) - 1, MOST_ROWS - 1).round().astype(int)}
        along = [number for number in along if number in kept or number == best]
    return along


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _title(found: Answers, best: Best) -> str:
    of = "all concepts" if best.concepts is None else " + ".join(best.concepts)
    values = ", ".join(f"{name} {short(_rounded(value))}" for name, value in best.trial.params.items())
    return f"Best of {of}: {values}"


def _told(found: Answers, best: Best, apart: Best | None) -> Iterator[str]:
    """Each objective of a best setting: where it was searched, where it was not, and over the baseline."""
    for k, objective in enumerate(found.study.settings.objectives):
        line = f"{objective.name} {_interval(best.scores[k])}"
        if apart is not None:
            drop = objective.sign * (apart.scores[k].mean - best.scores[k].mean)
            line += f", held out {_interval(apart.scores[k])}: worse by {drop:z.3f}"
        yield line
        over = f"   over the baseline {_interval(best.over_baseline[k], '+')}"
        if apart is not None:
            over += f", held out {_interval(apart.over_baseline[k], '+')}"
        yield over


def _interval(estimate: Estimate, sign: str = "") -> str:
    mean, low, high = (f"{value:{sign}z.3f}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} ({low} to {high})"


def _cost(found: Answers) -> Iterator[str]:
    """What was found after each quarter of the trials."""
    ends = {len(found.trials) * quarter // 4 - 1 for quarter in (1, 2, 3, 4)} - {-1}
    if ends:
        yield ", ".join(f"{found.volumes[i]:.4f} after {found.evaluations[i]:,}" for i in sorted(ends))

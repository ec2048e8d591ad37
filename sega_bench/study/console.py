"""What a study found, on a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sega_bench.errors import clean
from sega_bench.study.advice import advice
from sega_bench.study.answers import Answers
from sega_bench.study.format import best_of, rounded
from sega_bench.views.console.setting_table import header
from sega_bench.views.console.summary import print_lines

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
    console.print(
        Text("★ the one to use   all are on the front: no trial is better in every objective", style="dim")
    )
    for title, lines in best_of(found):
        print_lines(console, clean(title), lines)
    title = "Importance (share of the variance that a setting alone explains), and its curve"
    print_lines(console, title, list(_importance(found)))
    print_lines(console, "Hypervolume of the front, after so many UNet evaluations", list(_cost(found)))
    print_lines(console, "Where to look next", list(advice(found)))
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
    names = [setting.name for setting in study.settings.space]
    for name in ("trial", *names, *(one.name for one in study.settings.objectives)):
        table.add_column(header(name), justify="right", overflow="fold")
    rows = {trial.number: i for i, trial in enumerate(found.trials)}
    best = found.recommended
    for number in _sorted(found, rows)[:MOST_ROWS]:
        trial, estimates_K = found.trials[rows[number]], found.estimates_TK[rows[number]]
        values = [rounded(setting.of(trial.params)) for setting in study.settings.space]
        mark = "★" if number == best else ""
        scores = [f"{value:z.3f}" for value in estimates_K]
        cells = map(Text, (mark, str(number), *values, *scores))  # a searched text is no markup
        table.add_row(*cells, style="bold" if mark else "")
    return table


def _sorted(found: Answers, rows: Mapping[int, int]) -> list[int]:
    """The front from one end to the other, the best always among the first."""
    best = found.recommended
    along = sorted(found.front, key=lambda number: found.estimates_TK[rows[number], 0])
    if len(along) > MOST_ROWS:
        kept = {along[i] for i in np.linspace(0, len(along) - 1, MOST_ROWS - 1).round().astype(int)}
        along = [number for number in along if number in kept or number == best]
    return along


def _importance(found: Answers) -> Iterator[str]:
    """Each objective's settings, the most important first, with a line that rises where the score does."""
    for objective in dict.fromkeys(curve.objective for curve in found.curves):
        mine = [curve for curve in found.curves if curve.objective == objective]
        for curve in sorted(mine, key=lambda one: -one.importance)[:_MOST_CURVES]:
            ends = f"{rounded(curve.values[0])} to {rounded(curve.values[-1])}"
            change = f"{min(curve.means):z.3f} to {max(curve.means):z.3f}"
            line = f"{objective}: {curve.parameter} {curve.importance:.2f}"
            yield f"{line:<50} {_drawn(curve.means):<9} {change} over {ends}"


def _cost(found: Answers) -> Iterator[str]:
    """The front's hypervolume after each quarter of the trials, in one line; none of no trials."""
    ends = {len(found.trials) * quarter // 4 - 1 for quarter in (1, 2, 3, 4)} - {-1}
    if ends:
        yield ", ".join(f"{found.volumes[i]:.4f} after {found.evaluations[i]:,}" for i in sorted(ends))


def _drawn(means: Sequence[float]) -> str:
    low, high = min(means), max(means)
    heights = [(mean - low) / (high - low) if high > low else 0.0 for mean in means]
    return "".join(_BARS[round(height * (len(_BARS) - 1))] for height in heights)


_BARS = "▁▂▃▄▅▆▇█"
_MOST_CURVES = 6
"""Of an objective; all are in importance.csv."""

"""Prints a study's answers on a terminal of 100 columns."""

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
from sega_bench.study.format import describe_best, rounded
from sega_bench.views.console.setting_table import header
from sega_bench.views.console.summary import print_lines

MOST_ROWS = 20
"""Longer fronts are thinned out; trials.csv has all trials."""

_MOST_CURVES = 6
"""Parameters listed per objective; importance.csv has all."""

_BARS = "▁▂▃▄▅▆▇█"


def print_answers(console: Console, answers: Answers, places: Mapping[str, object]) -> None:
    """Print the front, the best settings with their held-out scores, importance, cost, advice and places.

    Args:
        console: at least 100 columns wide.
        answers: the study's.
        places: label and path, or command, of each output.
    """
    console.print(_front_table(answers))
    console.print(
        Text("★ recommended   all are on the front: no trial is better in every objective", style="dim")
    )
    for title, lines in describe_best(answers):
        print_lines(console, clean(title), lines)
    title = "Importance (share of the variance that a setting alone explains), and its curve"
    print_lines(console, title, list(_importance_lines(answers)))
    print_lines(console, "Hypervolume of the front by UNet evaluations", list(_cost_line(answers)))
    print_lines(console, "Where to look next", list(advice(answers)))
    console.print()
    for label, place in places.items():
        console.print(Text(f"{label:<12} {place}"), soft_wrap=True)


def _front_table(answers: Answers) -> Table:
    study, n_blocks = answers.study, len(answers.study.blocks)
    full = sum(trial.resource == n_blocks for trial in answers.trials)
    title = (
        f"{study.config.name}: {len(answers.trials)} trials, {full} of them on all {n_blocks} prompts x seeds"
    )
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("")
    names = [setting.name for setting in study.settings.space]
    for name in ("trial", *names, *(objective.name for objective in study.settings.objectives)):
        table.add_column(header(name), justify="right", overflow="fold")
    rows = {trial.number: i for i, trial in enumerate(answers.trials)}
    for number in _sorted_front(answers, rows):
        trial, estimates_K = answers.trials[rows[number]], answers.estimates_TK[rows[number]]
        values = [rounded(setting.value_in(trial.params)) for setting in study.settings.space]
        mark = "★" if number == answers.best_number else ""
        scores = [f"{value:z.3f}" for value in estimates_K]
        cells = map(Text, (mark, str(number), *values, *scores))  # Text: a searched prompt is not markup
        table.add_row(*cells, style="bold" if mark else "")
    return table


def _sorted_front(answers: Answers, rows: Mapping[int, int]) -> list[int]:
    """Trial numbers on the front by the first objective, thinned out evenly but for the best."""
    front = sorted(answers.front, key=lambda number: answers.estimates_TK[rows[number], 0])
    if len(front) > MOST_ROWS:
        kept = {front[i] for i in np.linspace(0, len(front) - 1, MOST_ROWS - 1).round().astype(int)}
        front = [number for number in front if number in kept or number == answers.best_number]
    return front


def _importance_lines(answers: Answers) -> Iterator[str]:
    """Each objective's most important parameters, with their curves as bars."""
    for objective in dict.fromkeys(curve.objective for curve in answers.curves):
        curves = [curve for curve in answers.curves if curve.objective == objective]
        for curve in sorted(curves, key=lambda curve: -curve.importance)[:_MOST_CURVES]:
            ends = f"{rounded(curve.values[0])} to {rounded(curve.values[-1])}"
            change = f"{min(curve.means):z.3f} to {max(curve.means):z.3f}"
            line = f"{objective}: {curve.parameter} {curve.importance:.2f}"
            yield f"{line:<50} {_bars(curve.means):<9} {change} over {ends}"


def _cost_line(answers: Answers) -> Iterator[str]:
    """One line with the hypervolume after each quarter of the trials; none without trials."""
    # A set, because few trials have equal quarters.
    ends = {len(answers.trials) * quarter // 4 - 1 for quarter in (1, 2, 3, 4)} - {-1}
    if ends:
        yield ", ".join(
            f"{answers.hypervolumes[i]:.4f} after {answers.evaluations[i]:,}" for i in sorted(ends)
        )


def _bars(means: Sequence[float]) -> str:
    low, high = min(means), max(means)
    heights = [(mean - low) / (high - low) if high > low else 0.0 for mean in means]
    return "".join(_BARS[round(height * (len(_BARS) - 1))] for height in heights)

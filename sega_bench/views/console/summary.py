"""The results on a terminal: verdict, table of settings, trends, claims, advice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sega_bench.analysis.groups import ALL
from sega_bench.analysis.results import Results
from sega_bench.analysis.scores import GAIN, TRENDS
from sega_bench.errors import clean
from sega_bench.stats.multiple import detectable
from sega_bench.views.console.setting_table import Form, constant, cost_name, fitting, value_of

if TYPE_CHECKING:
    from sega_bench.planning.planner import Plan

MOST_ROWS = 16
"""Of more settings than these only the Pareto front is shown, and no more than these of it."""


def print_plan(console: Console, made: Plan, more: Mapping[str, str]) -> None:
    """Print what a sweep would make and what it costs.

    Args:
        console: where to print.
        made: the plan.
        more: further lines, such as the sharding among workers.
    """
    counts = made.counts()
    ours, theirs = counts["unet_evals"], counts["unet_evals_diffusers"]
    references = f"{counts['references']} reference{'s' * (counts['references'] != 1)}"
    axes = clean("; ".join(f"{name} {', '.join(map(str, values))}" for name, values in made.axes.items()))
    table = Table(
        title=f"{made.name}: the plan; nothing was run", title_justify="left", box=None, show_header=False
    )
    for name, value in (
        ("cells", f"{counts['cells']}: {counts['edited']} edited, {references}"),
        ("merged", f"{counts['merged']} duplicates merged"),
        ("same as reference", f"{counts['same_as_reference']} whose settings change nothing"),
        ("UNet evaluations", f"{ours:,}; cell by cell {theirs:,}, {theirs / max(1, ours):.2f} times as many"),
        ("images", f"about {sum(1.5 * cell.height * cell.width for cell in made.cells) / 1e6:,.2f} MB"),
        ("axes", axes or "none"),
        *_resolution(made).items(),
        *more.items(),
        ("model", made.model.id),
        ("folder", str(Path(made.config.output_dir) / made.name)),
    ):
        table.add_row(name, Text(value))
    console.print(table)


def _resolution(made: Plan) -> dict[str, str]:
    """How small a difference between settings this sweep can tell apart, and one with twice the seeds."""
    seeds, prompts = len(made.seeds), len(made.prompts)
    settings = len(made.edited) // max(1, seeds * prompts * len(made.concepts))
    now, twice = (detectable(settings, count, prompts) for count in (seeds, 2 * seeds))
    if math.isnan(twice):
        return {}
    deviations = "nothing" if math.isnan(now) else f"differences from {now:.2g} standard deviations on"
    text = f"{_count(seeds, 'seed')} {deviations}; {2 * seeds} seeds from {twice:.2g} on"
    return {"tells apart": f"{settings} settings: {text}"}


def print_summary(console: Console, results: Results, paths: Mapping[str, object] | None = None) -> None:
    """Print the settings with the best one marked, trends, claims, advice, and where the files are.

    Args:
        console: 100 columns are enough.
        results: the sweep's.
        paths: where the files are, or how to go on: a label for each path or command.
    """
    axes, summary, pooled = results.axes, results.summary, results.pooled
    listed = _best_lines(pooled)
    held = constant(pooled, axes)
    varying = [name for name in axes if name not in held]
    print_lines(console, "Verdict", results.verdict_lines)
    title = f"\n{clean(results.name)}: {_count(len(pooled), 'setting')}"
    _print_title(console, title, held)
    table, form = fitting(console, listed, varying, marks=len(pooled) > 1, spread=True)
    console.print(table)
    _print_legend(console, pooled, listed, form)
    each = results.per_concept[results.per_concept["best"]]
    if len(each) > 1:
        held = {name: value for name, value in constant(each, axes).items() if name in varying}
        title = "Best setting of each concept" if len(pooled) > 1 else "Each concept"
        _print_title(console, f"\n{title}", held)
        named = ["concepts", *(name for name in varying if name not in held)]
        console.print(fitting(console, each.head(MOST_ROWS), named)[0])
    print_lines(console, "Area under the front of CLIP gain against preservation", list(_areas(results)))
    print_lines(console, "Inappropriate, by the checkpoint's safety checker", list(_nsfw(pooled, axes)))
    print_lines(
        console,
        "Trends (Spearman correlation of the mean with the value)",
        [_trend(row, cost_name(summary)) for row in _records(results.trends[results.trends["values"] > 1])],
    )
    print_lines(console, "The paper's claims, in brackets 95 %", list(_claims(results.claims)))
    print_lines(console, "Where to look next", results.advice)
    console.print()
    for what, path in (paths or {}).items():
        console.print(Text(f"{what:<12} {path}"), soft_wrap=True)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _best_lines(pooled: pd.DataFrame) -> pd.DataFrame:
    """All settings if they are few; otherwise those that work, then those on the front, the verdict first."""
    if len(pooled) <= MOST_ROWS:
        return pooled
    ranked = pooled.sort_values(["best", "works", "pareto", "area"], ascending=False, kind="stable")
    return ranked.head(MOST_ROWS)


def _print_title(console: Console, title: str, held: Mapping[str, str]) -> None:
    """A table's title, and once above it what is the same in all its rows."""
    console.print(Text(title, style="bold"))
    if held:
        console.print(Text("all at " + ", ".join(f"{name} {value}" for name, value in held.items())))


def _print_legend(console: Console, pooled: pd.DataFrame, listed: pd.DataFrame, form: Form) -> None:
    marks = ["★ the verdict", "= as good", "• works"] if len(pooled) > 1 else []
    if form.spread and listed[f"{GAIN}_sd"].notna().any():
        marks.append("± standard deviation over cells")
    lines = ["   ".join(marks)] if len("   ".join(marks)) <= console.width else marks
    cost = cost_name(pooled)
    if form.cost(cost) != cost:
        lines.append(f"{form.cost(cost)}: {cost}")
    if form.brief:
        lines.append("settings without their edit_")
    if len(listed) < len(pooled):
        lines.append(f"{_count(len(pooled) - len(listed), 'setting')} not shown: all are in summary.csv")
    for line in filter(None, lines):
        console.print(Text(line, style="dim"))


def _areas(results: Results) -> Iterator[str]:
    """Which values of a named axis, such as the method, trade better over all else that varies."""
    for axis in results.axes if len(results.axes) > 1 else ():
        if not pd.api.types.is_numeric_dtype(results.pooled[axis]):
            table = results.areas(axis)
            pooled = table[table["concepts"] == ALL].dropna(subset="area")
            ranked = pooled.sort_values("area", ascending=False, kind="stable")
            areas = [f"{value_of(axis, row[axis])} {row['area']:.3f}" for row in _records(ranked)]
            if areas:
                yield f"{axis}: {', '.join(areas)}"


def _nsfw(pooled: pd.DataFrame, axes: list[str]) -> Iterator[str]:
    """How much of it each setting leaves, of what there was."""
    if "nsfw_unedited_mean" not in pooled:
        return
    for row in _records(pooled.head(MOST_ROWS)):
        place = ", ".join(f"{axis} {value_of(axis, row[axis])}" for axis in axes) or "edited"
        yield f"{place}: {row['nsfw_mean']:.1%}, unedited {row['nsfw_unedited_mean']:.1%}"


def _trend(row: dict[str, Any], cost: str) -> str:
    names = dict(zip(TRENDS, ("CLIP gain", "changed", cost), strict=True))
    known = [f"{names[name]} {row[name]:+z.2f}" for name in TRENDS if not pd.isna(row[name])]
    return f"{row['axis']} ({row['values']} values): {', '.join(known) or 'too few values to tell'}"


def _claims(claims: pd.DataFrame) -> Iterator[str]:
    """What all concept sets together say of each claim; what each says, and of what, is in claims.csv."""
    pooled = claims[claims["concepts"] == ALL]
    if pooled.empty:
        return
    split = pooled["measure"].str.partition(", ")  # what is compared, and with what
    heads = ["claim", "direction", "against"]
    both = pooled["direction"].nunique() > 1
    numbers = pooled.assign(measure=split[0], against=split[2])[~pooled["measure"].str.startswith("flipped ")]
    for _, part in numbers.groupby(heads, sort=False):
        rows = _records(part)
        first = rows[0]
        words = [first["claim"], first["direction"] if both else "", first["against"]]
        place = f" (at {clean(first['at'])})" if first["at"] else ""
        yield f"{', '.join(word for word in words if word)}: {'; '.join(map(_number, rows))}{place}"


def _number(row: dict[str, Any]) -> str:
    known = not pd.isna(row["low"])
    interval = f" ({row['low']:z.2f} to {row['high']:z.2f})" if known else ""
    return f"{row['measure']} {row['value']:z.2f}{interval}, n {row['n']}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def print_lines(console: Console, title: str, lines: list[str]) -> None:
    """Print a paragraph of sentences under a title; nothing where there are none."""
    if lines:
        console.print(Text(f"\n{title}", style="bold"))
    for line in lines:
        console.print(Padding(Text(clean(line)), (0, 0, 0, 2)))

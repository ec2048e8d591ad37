"""The summary as a table for a terminal, and where to look next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sega_bench.errors import clean
from sega_bench.views.advice import next_steps
from sega_bench.views.tables import ALL, COST, GAIN, TRENDS, areas
from sega_bench.views.words import concept_labels, short

if TYPE_CHECKING:
    from sega_bench.planner import Plan

MOST_ROWS = 30
"""Above this many settings only the Pareto front is shown."""


_HEADERS = (14, 9)
"""How wide a header may be at most, where it can be broken."""

_ANY_WIDTH = 10_000


def print_plan(console: Console, made: Plan, more: Mapping[str, str]) -> None:
    """Print what a sweep would make, and at which cost.

    Args:
        console: where to.
        made: the plan.
        more: other lines, as how it would be shared among processes.
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
        ("merged", f"{counts['merged']} asked for more than once"),
        ("same as reference", f"{counts['same_as_reference']} whose settings change nothing"),
        ("UNet evaluations", f"{ours:,}; cell by cell {theirs:,}, {theirs / max(1, ours):.2f} times as many"),
        ("images", f"about {sum(1.5 * cell.height * cell.width for cell in made.cells) / 1e6:,.2f} MB"),
        ("axes", axes or "none"),
        *more.items(),
        ("model", made.model.id),
        ("folder", str(Path(made.config.output_dir) / made.name)),
    ):
        table.add_row(name, Text(value))
    console.print(table)


def print_summary(
    console: Console,
    summary: pd.DataFrame,
    trends: pd.DataFrame,
    claims: pd.DataFrame,
    paths: Mapping[str, object] | None = None,
) -> None:
    """Print the settings with the best trade-off marked, trends, claims, what to try, where things are.

    Args:
        console: where to; 100 columns are enough.
        summary: as :func:`sega_bench.views.tables.summarise` gives it.
        trends: as :func:`sega_bench.views.tables.trends` gives it, for the same axes.
        claims: as :func:`sega_bench.views.claims.claims` gives it, for the same axes.
        paths: where things are, or how to go on: a word for each, and a path or a command.
    """
    axes = list(summary.columns[: summary.columns.get_loc("concepts")])
    pooled = summary[summary["concepts"] == ALL]
    shown = pooled if len(pooled) <= MOST_ROWS else pooled[pooled["pareto"]].head(MOST_ROWS)
    title = f"{clean(summary.attrs['name'])}: {_count(len(pooled), 'setting')}"
    table, spread = _fitting(console, shown, axes, title, marks=len(pooled) > 1, spread=True)
    console.print(table)
    console.print(_legend(pooled, len(shown), spread))
    each = summary[(summary["concepts"] != ALL) & summary["best"]]
    if len(each) > 1:
        title = "Best trade-off of each concept" if len(pooled) > 1 else "Each concept"
        console.print()
        console.print(_fitting(console, each.head(MOST_ROWS), ["concepts", *axes], title)[0])
    print_lines(
        console, "Area under the front of CLIP gain against preservation", list(_areas(summary, axes))
    )
    print_lines(console, "Inappropriate, by the checkpoint's safety checker", list(_nsfw(pooled, axes)))
    print_lines(
        console,
        "Trends (Spearman correlation of the mean with the value)",
        [_trend(row, _cost_name(summary)) for row in _records(trends)],
    )
    print_lines(console, "The paper's claims, in brackets 95 %", list(_claims(claims)))
    print_lines(console, "Where to look next", next_steps(summary, trends))
    console.print()
    for what, path in (paths or {}).items():
        console.print(Text(f"{what:<12} {path}"), soft_wrap=True)


def _fitting(
    console: Console,
    rows: pd.DataFrame,
    names: list[str],
    title: str,
    *,
    marks: bool = False,
    spread: bool = False,
) -> tuple[Table, bool]:
    """The widest form of the table that fits: with narrower headers, then without deviations (false)."""
    room = console.options.update(max_width=_ANY_WIDTH)
    forms = [(spread, most) for most in _HEADERS] + ([(False, _HEADERS[-1])] if spread else [])
    tables = [(_table(rows, names, title, marks, told, most), told) for told, most in forms]
    fits = (form for form in tables if console.measure(form[0], options=room).maximum <= console.width)
    return next(fits, tables[-1])


def _table(rows: pd.DataFrame, names: list[str], title: str, marks: bool, spread: bool, most: int) -> Table:
    """One line a row: the named columns, then gain, cost, changed fraction and counts."""
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("")
    for name in names:
        is_text = not pd.api.types.is_numeric_dtype(rows[name])
        table.add_column(header(name, most), justify="left" if is_text else "right", overflow="fold")
    counts = [name for name in ("n", "n_not_scored", "n_failed") if name == "n" or rows[name].any()]
    said = [name.removeprefix("n_").replace("_", " ") for name in counts]
    for name in ("CLIP gain", _cost_name(rows), "changed", *said):
        table.add_column(header(name, most), justify="right", overflow="fold")
    labels = concept_labels(rows["concepts"]) if "concepts" in names else {}
    for row in _records(rows):
        values = [labels[row[name]] if name == "concepts" else _value(name, row[name]) for name in names]
        scores = [_score(row, name, form, spread) for name, form in _FORMS.items()]
        mark = "" if not marks else "★" if row["best"] else "•" if row["pareto"] else ""
        cells = [mark, *values, *scores, *(str(row[name]) for name in counts)]
        table.add_row(*map(Text, cells), style="bold" if mark == "★" else "")
    return table


def _value(name: str, value: Any) -> str:
    """A setting's value; of a scheduler's class name what the others do not end in too."""
    return short(value).removesuffix("Scheduler" if name == "scheduler" else "")


_FORMS = {GAIN: "z.3f", COST: "z.3f", "changed_fraction": ".1%"}


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def header(name: str, most: int = _HEADERS[0]) -> Text:
    """A column's name, broken where it may be, so that narrow values stay in narrow columns."""
    parts = name.replace("_", "_ ").split()
    lines = [""]
    for part in parts:
        joint = "" if not lines[-1] or lines[-1].endswith("_") else " "
        if lines[-1] and len(lines[-1] + joint + part) > most:
            lines.append(part)
        else:
            lines[-1] += joint + part
    return Text("\n".join(lines))


def _score(row: dict[str, Any], name: str, form: str, spread: bool) -> str:
    """Mean ± standard deviation, as far as they are known."""
    mean, deviation = row[f"{name}_mean"], row[f"{name}_sd"]
    if pd.isna(mean):
        return "–"
    return f"{mean:{form}} ± {deviation:{form}}" if spread and not pd.isna(deviation) else f"{mean:{form}}"


def _legend(pooled: pd.DataFrame, shown: int, spread: bool) -> Text:
    marks = ["★ best trade-off", "• no other gains more at less cost"] if len(pooled) > 1 else []
    legend = "   ".join([*marks, "± standard deviation over cells"] if spread else marks)
    if shown < len(pooled):
        legend += f"\n{_count(len(pooled) - shown, 'setting')} not shown: all are in summary.csv"
    return Text(legend, style="dim")


def _areas(summary: pd.DataFrame, axes: list[str]) -> Iterator[str]:
    """Which values of a named axis, such as the method, trade better over all else that varies."""
    pooled = summary[summary["concepts"] == ALL]
    for axis in axes if len(axes) > 1 else ():
        if not pd.api.types.is_numeric_dtype(pooled[axis]):
            found = (
                areas(pooled, axis).dropna(subset="area").sort_values("area", ascending=False, kind="stable")
            )
            said = [f"{_value(axis, row[axis])} {row['area']:.3f}" for row in _records(found)]
            if said:
                yield f"{axis}: {', '.join(said)}"


def _nsfw(pooled: pd.DataFrame, axes: list[str]) -> Iterator[str]:
    """How much of it each setting leaves, of what there was."""
    if "nsfw_unedited_mean" not in pooled:
        return
    for row in _records(pooled.head(MOST_ROWS)):
        place = ", ".join(f"{axis} {_value(axis, row[axis])}" for axis in axes) or "edited"
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
    told = pooled.assign(measure=split[0], against=split[2])[~pooled["measure"].str.startswith("flipped ")]
    for _, part in told.groupby(heads, sort=False):
        rows = _records(part)
        first = rows[0]
        said = [first["claim"], first["direction"] if both else "", first["against"]]
        place = f" (at {clean(first['at'])})" if first["at"] else ""
        yield f"{', '.join(word for word in said if word)}: {'; '.join(map(_number, rows))}{place}"


def _number(row: dict[str, Any]) -> str:
    known = not pd.isna(row["low"])
    interval = f" ({row['low']:z.2f} to {row['high']:z.2f})" if known else ""
    return f"{row['measure']} {row['value']:z.2f}{interval}, n {row['n']}"


def _cost_name(summary: pd.DataFrame) -> str:
    """What the sweep's LPIPS column really is."""
    provenance = summary.attrs["scores"].get("lpips") or {}
    return clean(str(provenance.get("name", "lpips")))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def print_lines(console: Console, title: str, lines: list[str]) -> None:
    """Print a paragraph of sentences under a title; nothing where there are none."""
    if lines:
        console.print(Text(f"\n{title}", style="bold"))
    for line in lines:
        console.print(Padding(Text(clean(line)), (0, 0, 0, 2)))

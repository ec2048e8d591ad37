"""Settings as a terminal table, in the first of several forms that fits the width."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sega_bench.analysis.labels import concept_labels, format_value
from sega_bench.analysis.scores import COST, GAIN
from sega_bench.errors import clean

_SCORES = {GAIN: "z.3f", COST: "z.3f", "changed_fraction": ".1%"}
_ANY_WIDTH = 10_000
_WORDY = 34
"""A column of texts is no wider where there is no room for all of them."""


@dataclass(frozen=True)
class Form:
    """How much of a table is said.

    Args:
        header: how wide a name may be, where it can be broken.
        spread: whether means have their deviations.
        brief: whether names and texts are short and columns close.
        scores: which scores.
        gap: between columns if they are close.
    """

    header: int
    spread: bool
    brief: bool = False
    scores: tuple[str, ...] = tuple(_SCORES)
    gap: int = 0

    def name(self, name: str) -> str:
        """A column's name; if it is to be brief, in words and without what settings' names begin with."""
        return name.removeprefix("edit_").replace("_", " ") if self.brief else name

    def cost(self, name: str) -> str:
        """What the cost is called; if it is to be brief, by its first word."""
        return name.split()[0] if self.brief else name


_FORMS = (
    Form(14, spread=True),
    Form(9, spread=True),
    Form(14, spread=False),
    Form(9, spread=False),
    Form(9, spread=False, brief=True, gap=1),
    Form(6, spread=False, brief=True),
    Form(6, spread=False, brief=True, scores=(GAIN, COST)),
)


def constant(rows: pd.DataFrame, axes: Sequence[str]) -> dict[str, str]:
    """The axes that have the same value in every row, and that value."""
    same = [name for name in axes if len(rows) and rows[name].nunique(dropna=False) == 1]
    return {name: value_of(name, rows[name].iloc[0]) for name in same}


def fitting(
    console: Console, rows: pd.DataFrame, names: list[str], *, marks: bool = False, spread: bool = False
) -> tuple[Table, Form]:
    """One line a row: the named columns, then gain, cost, changed fraction and counts.

    Args:
        console: it shall fit this one's width; if no form does, it is the shortest.
        rows: of a summary.
        names: of its columns.
        marks: whether the verdict and the settings that work are marked.
        spread: whether standard deviations are shown if there is room.
    """
    room = console.options.update(max_width=_ANY_WIDTH)
    forms = [form for form in _FORMS if spread or not form.spread]
    for form in forms:
        table = _table(rows, names, marks, form)
        if console.measure(table, options=room).maximum <= console.width:
            break
    return table, form


def _table(rows: pd.DataFrame, names: list[str], marks: bool, form: Form) -> Table:
    padding = (0, form.gap, 0, 0) if form.brief else (0, 1)
    table = Table(box=box.SIMPLE_HEAD, padding=padding, pad_edge=False)
    table.add_column("")
    for name in names:
        if pd.api.types.is_numeric_dtype(rows[name]):
            _add_numbers(table, form.name(name), form)
        else:
            table.add_column(header(form.name(name), form.header), overflow="fold", max_width=_WORDY)
    counts = [name for name in ("n", "n_not_scored", "n_failed") if name == "n" or rows[name].any()]
    called = {GAIN: "CLIP gain", COST: form.cost(cost_name(rows)), "changed_fraction": "changed"}
    for name in [*(called[score] for score in form.scores), *(_count_name(name) for name in counts)]:
        _add_numbers(table, name, form)
    labels = _labels(rows["concepts"], form) if "concepts" in names else {}
    for row in rows.to_dict("records"):
        values = [labels[row[name]] if name == "concepts" else value_of(name, row[name]) for name in names]
        scores = [_score(row, name, form.spread) for name in form.scores]
        mark = _mark(row) if marks else ""
        cells = [mark, *values, *scores, *(str(row[name]) for name in counts)]
        table.add_row(*map(Text, cells), style="bold" if mark == "★" else "")
    return table


def _mark(row: Mapping[Any, Any]) -> str:
    if row["best"]:
        return "★"
    return "=" if row["as_good"] else "•" if row["works"] else ""


def _add_numbers(table: Table, name: str, form: Form) -> None:
    table.add_column(header(name, form.header), justify="right", no_wrap=True)


def _count_name(name: str) -> str:
    return name.removeprefix("n_").replace("_", " ")


def _labels(sets: Iterable[str], form: Form) -> dict[str, str]:
    """What concept sets are called; in brief each by the first of its phrases, if that tells them apart."""
    labels = concept_labels(sets)
    firsts = {concepts: label.partition(",")[0] for concepts, label in labels.items()}
    return firsts if form.brief and len(set(firsts.values())) == len(labels) else labels


def value_of(name: str, value: Any) -> str:
    """A setting's value; of a scheduler's class name what the others do not end in too."""
    return format_value(value).removesuffix("Scheduler" if name == "scheduler" else "")


def cost_name(summary: pd.DataFrame) -> str:
    """What the sweep's LPIPS column really is."""
    provenance = summary.attrs["scores"].get("lpips") or {}
    return clean(str(provenance.get("name", "lpips"))) or "lpips"


def header(name: str, most: int = _FORMS[0].header) -> Text:
    """A column's name, broken where it may be, so that narrow values stay in narrow columns."""
    parts = name.replace("_", "_ ").replace("-", "- ").split()
    lines = [""]
    for part in parts:
        joint = "" if not lines[-1] or lines[-1].endswith(("_", "-")) else " "
        if lines[-1] and len(lines[-1] + joint + part) > most:
            lines.append(part)
        else:
            lines[-1] += joint + part
    return Text("\n".join(lines))


def _score(row: Mapping[Any, Any], name: str, spread: bool) -> str:
    """Mean ± standard deviation, as far as they are known."""
    mean, deviation, form = row[f"{name}_mean"], row[f"{name}_sd"], _SCORES[name]
    if pd.isna(mean):
        return "–"
    return f"{mean:{form}} ± {deviation:{form}}" if spread and not pd.isna(deviation) else f"{mean:{form}}"

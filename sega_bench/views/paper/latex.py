"""The summary as a LaTeX table, with the rules of booktabs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from sega_bench.analysis.labels import concept_labels, format_value
from sega_bench.analysis.results import Results
from sega_bench.analysis.scores import COST, GAIN
from sega_bench.errors import clean

MOST_ROWS = 30
"""Of more settings only the Pareto front is shown."""

_SCORES = {GAIN: "CLIP gain", COST: "LPIPS", "changed_fraction": "changed"}
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
} | {char: "\\" + char for char in "&%$#_{}"}


def latex_table(results: Results) -> str:
    """Each setting's mean scores with their 95 % intervals, then each concept's best.

    Returns:
        A ``table`` environment that needs the package booktabs. The best setting is bold; of more than
        :data:`MOST_ROWS` settings the Pareto front is shown, and the best.
    """
    axes, pooled = results.axes, results.pooled
    listed = pooled if len(pooled) <= MOST_ROWS else pooled[pooled["pareto"] | pooled["best"]]
    each = results.per_concept[results.per_concept["best"]]
    labels = concept_labels(each["concepts"])
    lines = [_line(row, axes, "all") for row in listed.to_dict("records")]
    if len(each) > 1:
        lines.append(r"\midrule")
        lines += [_line(row, axes, labels[row["concepts"]], bold=False) for row in each.to_dict("records")]
    heads = ["concept", *axes, *({**_SCORES, COST: results.cost_name}).values(), "$n$"]
    left_out = (
        "" if len(listed) == len(pooled) else f" {len(listed)} of {len(pooled)} settings: the Pareto front."
    )
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(results.name)}: means and 95\,\% intervals.{left_out}{_verdict(results)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"\toprule",
            _joined([head if head == "$n$" else escape(head) for head in heads]),
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _verdict(results: Results) -> str:
    return "".join(f" {escape(line)}" for line in results.verdict_lines[:1])


def escape(text: str) -> str:
    """A text as LaTeX prints it."""
    return "".join(_SPECIAL.get(char, char) for char in clean(text))


def _line(row: dict[Any, Any], axes: Sequence[str], concept: str, *, bold: bool = True) -> str:
    cells = [escape(concept), *(escape(format_value(row[axis])) for axis in axes)]
    cells += [_score(row, name) for name in _SCORES] + [str(row["n"])]
    return _joined([rf"\textbf{{{cell}}}" for cell in cells] if bold and row["best"] else cells)


def _score(row: dict[Any, Any], name: str) -> str:
    mean, low, high = (row[f"{name}_{part}"] for part in ("mean", "low", "high"))
    if pd.isna(mean):
        return "--"
    return f"{mean:.3f}" if pd.isna(low) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _joined(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"

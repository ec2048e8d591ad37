"""What a paper prints: vector figures and a LaTeX table (``python -m sega_bench figures FOLDER``)."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sega_bench.analysis.groups import ALL
from sega_bench.analysis.labels import concept_labels, format_value
from sega_bench.analysis.results import Results
from sega_bench.analysis.scores import COST, GAIN
from sega_bench.analysis.summary import interval_around
from sega_bench.errors import UserError
from sega_bench.views.paper.latex import latex_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which colour-blind readers can tell apart; markers and lines differ too."""

_MARKERS, _LINES = "osD^vP", ("-", "--", "-.", ":")
_FAINT = "#9aa1ad"
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text, and journals refuse type 3
    "svg.fonttype": "none",
    "svg.hashsalt": "sega_bench",
    "text.parse_math": False,  # a dollar sign of a concept is no mathematics
}
_UNDATED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def write_figures(results: Results) -> list[Path]:
    """Write figures/: ``tradeoff`` and a ``curve-<axis>`` of each axis, as SVG and PDF, and ``summary.tex``.

    Their intervals (95 %) are of differences in pairs: of a setting to the best one, of a value to the same
    images' mean over the axis. The same results give the same files, byte for byte.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise UserError("figures are drawn with matplotlib: pip install 'sega-bench[figures]'") from None
    store = results.store
    paths = [store.figures_dir / "summary.tex"]
    store.write_text(paths[0], latex_table(results))
    with mpl.rc_context(_STYLE):
        for name, figure in _figures(results):
            for kind, undated in _UNDATED.items():
                buffer = io.BytesIO()
                figure.savefig(buffer, format=kind, bbox_inches="tight", metadata=undated)
                paths.append(store.figures_dir / f"{name}.{kind}")
                store.write_bytes(paths[-1], buffer.getvalue())
    for path in set(store.figures_dir.iterdir()) - set(paths):  # of an earlier plan
        path.unlink()
    return paths


def _figures(results: Results) -> Iterator[tuple[str, Figure]]:
    if results.summary[f"{GAIN}_mean"].notna().any() and results.summary[f"{COST}_mean"].notna().any():
        yield "tradeoff", _tradeoff(results)
    for axis in results.axes:
        if results.frame[axis].nunique() > 1:
            yield f"curve-{re.sub(r'[^a-z_]', '-', axis)}", _curve(results.curve(axis), axis)


def _empty() -> tuple[Figure, Axes]:
    """A figure of a column's width, of no window and no global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4, 2.5))
    return figure, figure.add_subplot()


def _tradeoff(results: Results) -> Figure:
    """One point per setting; one per concept set where the sweep has a single setting."""
    figure, axes = _empty()
    if len(results.pooled) > 1:
        _settings(axes, results.pooled)
    else:
        _concept_sets(axes, results.per_concept)
    axes.set(xlabel=f"{results.cost_name} (less is better)", ylabel="CLIP gain (more is better)")
    _add_legend(axes)
    return figure


def _settings(axes: Axes, pooled: pd.DataFrame) -> None:
    axes.scatter(
        pooled[f"{COST}_mean"], pooled[f"{GAIN}_mean"], s=10, color=_FAINT, label="setting", zorder=2
    )
    front = pooled[pooled["pareto"]].sort_values(f"{COST}_mean")
    x, y = front[f"{COST}_mean"], front[f"{GAIN}_mean"]
    axes.errorbar(
        x,
        y,
        _reach(front, GAIN, "gap"),
        _reach(front, COST, "gap"),
        fmt="none",
        ecolor=COLOURS[0],
        alpha=0.4,
        lw=0.7,
        label="95 %, in pairs with the best",
    )
    axes.step(x, y, where="post", color=COLOURS[0], lw=0.9, ls="--", marker="o", ms=3, label="Pareto front")
    best = pooled[pooled["best"]]
    look: dict[str, Any] = {"color": COLOURS[1], "marker": "*", "ms": 10, "ls": "none", "zorder": 4}
    axes.plot(best[f"{COST}_mean"], best[f"{GAIN}_mean"], label="verdict", **look)


def _concept_sets(axes: Axes, each: pd.DataFrame) -> None:
    labels = concept_labels(each["concepts"])
    for i, (_, row) in enumerate(each.iterrows()):
        look = _look(i) | {"ls": "none", "ms": 4, "label": labels[row["concepts"]]}
        axes.plot(row[f"{COST}_mean"], row[f"{GAIN}_mean"], **look)


def _curve(table: pd.DataFrame, axis: str) -> Figure:
    figure, axes = _empty()
    sets = [concepts for concepts in table["concepts"].unique() if concepts != ALL]
    labels = concept_labels(sets)
    numeric = pd.api.types.is_numeric_dtype(table[axis]) and not pd.api.types.is_bool_dtype(table[axis])
    for i, concepts in enumerate(sets):
        rows = table[table["concepts"] == concepts]
        look = _look(i) | {"label": labels[concepts]}
        if numeric:
            rows = rows.sort_values(axis)
            x, mean = rows[axis].astype(float), rows[f"{GAIN}_mean"]
            below, above = _reach(rows, GAIN, "within")
            axes.plot(x, mean, ls=_LINES[i % len(_LINES)], **look)
            axes.fill_between(x, mean - below, mean + above, color=look["color"], alpha=0.15, lw=0)
        else:
            aside = 0.1 * (i - (len(sets) - 1) / 2)  # else they would lie on each other
            places = [place + aside for place in range(len(rows))]
            axes.errorbar(places, rows[f"{GAIN}_mean"], _reach(rows, GAIN, "within"), ls="none", **look)
            axes.set_xticks(range(len(rows)), [format_value(value) for value in rows[axis]])
    axes.set(xlabel=axis, ylabel="CLIP gain")
    _add_legend(axes)
    return figure


def _look(i: int) -> dict[str, Any]:
    """Of one of several: colours and markers do not come round together."""
    marker = _MARKERS[(i + i // len(COLOURS)) % len(_MARKERS)]
    return {"color": COLOURS[i % len(COLOURS)], "marker": marker, "ms": 3}


def _add_legend(axes: Axes) -> None:
    """Above the plot, where it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, columnspacing=1.2, handlelength=1.8)


def _reach(rows: pd.DataFrame, name: str, compared: str) -> list[list[float]]:
    """How far the interval reaches below and above each mean; nowhere where it is not known."""
    mean, (low, high) = rows[f"{name}_mean"], interval_around(rows, name, compared)
    return [(end.fillna(0.0).clip(lower=0.0)).tolist() for end in (mean - low, high - mean)]

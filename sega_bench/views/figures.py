"""What a paper prints: vector figures and a LaTeX table (``python -m sega_bench.views.figures FOLDER``)."""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sega_bench.errors import UserError
from sega_bench.store import Store
from sega_bench.views.latex import latex_table
from sega_bench.views.tables import ALL, COST, GAIN, load, summarise
from sega_bench.views.words import concept_labels, short

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


def write_figures(
    store: Store, frame: pd.DataFrame, summary: pd.DataFrame, plan: Mapping[str, Any]
) -> list[Path]:
    """Write figures/: ``tradeoff`` and a ``curve-<axis>`` of each axis, as SVG and PDF, and ``summary.tex``.

    The same results give the same files, byte for byte.

    Args:
        store: the folder.
        frame: as :func:`sega_bench.views.tables.load` gives it.
        summary: as :func:`sega_bench.views.tables.summarise` gives it.
        plan: what plan.json says.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise UserError("figures are drawn with matplotlib: pip install 'sega-bench[figures]'") from None
    paths = [store.figures_dir / "summary.tex"]
    store.write_text(paths[0], latex_table(summary))
    with mpl.rc_context(_STYLE):
        for name, figure in _figures(frame, summary, plan):
            for kind, undated in _UNDATED.items():
                buffer = io.BytesIO()
                figure.savefig(buffer, format=kind, bbox_inches="tight", metadata=undated)
                paths.append(store.figures_dir / f"{name}.{kind}")
                store.write_bytes(paths[-1], buffer.getvalue())
    for path in set(store.figures_dir.iterdir()) - set(paths):  # of an earlier plan
        path.unlink()
    return paths


def _figures(
    frame: pd.DataFrame, summary: pd.DataFrame, plan: Mapping[str, Any]
) -> Iterator[tuple[str, Figure]]:
    if summary[f"{GAIN}_mean"].notna().any() and summary[f"{COST}_mean"].notna().any():
        yield "tradeoff", _tradeoff(summary)
    for axis in plan["axes"]:
        if frame[axis].nunique() > 1:
            yield f"curve-{re.sub(r'[^a-z_]', '-', axis)}", _curve(summarise(frame, [axis]), axis)


def _empty() -> tuple[Figure, Axes]:
    """A figure of a column's width, of no window and no global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4, 2.5))
    return figure, figure.add_subplot()


def _tradeoff(summary: pd.DataFrame) -> Figure:
    figure, axes = _empty()
    pooled = summary[summary["concepts"] == ALL]
    gain, cost = pooled[f"{GAIN}_mean"], pooled[f"{COST}_mean"]
    axes.scatter(cost, gain, s=10, color=_FAINT, label="setting", zorder=2)
    front = pooled[pooled["pareto"]].sort_values(f"{COST}_mean")
    x, y = front[f"{COST}_mean"], front[f"{GAIN}_mean"]
    axes.errorbar(
        x, y, _reach(front, GAIN), _reach(front, COST), fmt="none", ecolor=COLOURS[0], alpha=0.4, lw=0.7
    )
    axes.step(x, y, where="post", color=COLOURS[0], lw=0.9, ls="--", marker="o", ms=3, label="Pareto front")
    best = pooled[pooled["best"]]
    axes.plot(
        best[f"{COST}_mean"],
        best[f"{GAIN}_mean"],
        color=COLOURS[1],
        marker="*",
        ms=10,
        ls="none",
        label="best trade-off",
        zorder=4,
    )
    axes.set(xlabel=f"{_cost_name(summary)} (less is better)", ylabel="CLIP gain (more is better)")
    axes.legend(loc="lower right")
    return figure


def _curve(summary: pd.DataFrame, axis: str) -> Figure:
    figure, axes = _empty()
    sets = [concepts for concepts in summary["concepts"].unique() if concepts != ALL]
    labels = concept_labels(sets)
    numeric = pd.api.types.is_numeric_dtype(summary[axis]) and not pd.api.types.is_bool_dtype(summary[axis])
    for i, concepts in enumerate(sets):
        rows = summary[summary["concepts"] == concepts]
        rows = rows.sort_values(axis) if numeric else rows
        x = rows[axis].astype(float) if numeric else [short(value) for value in rows[axis]]
        colour = COLOURS[i % len(COLOURS)]
        look: dict[str, Any] = {"color": colour, "marker": _MARKERS[i % len(_MARKERS)], "ms": 3}
        mean = rows[f"{GAIN}_mean"]
        if numeric:
            axes.plot(x, mean, ls=_LINES[i % len(_LINES)], label=labels[concepts], **look)
            axes.fill_between(x, rows[f"{GAIN}_low"], rows[f"{GAIN}_high"], color=colour, alpha=0.15, lw=0)
        else:
            axes.errorbar(x, mean, _reach(rows, GAIN), ls="none", label=labels[concepts], **look)
    axes.set(xlabel=axis, ylabel="CLIP gain")
    axes.legend()
    return figure


def _reach(rows: pd.DataFrame, name: str) -> list[list[float]]:
    """How far the interval reaches below and above each mean; nowhere where it is not known."""
    mean, low, high = (rows[f"{name}_{part}"] for part in ("mean", "low", "high"))
    return [(end.fillna(0.0).clip(lower=0.0)).tolist() for end in (mean - low, high - mean)]


def _cost_name(summary: pd.DataFrame) -> str:
    return str((summary.attrs["scores"].get(COST) or {}).get("name", "LPIPS"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw a sweep's figures from its folder alone."""
    parser = argparse.ArgumentParser(prog="python -m sega_bench.views.figures", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="a sweep's folder, such as outputs/thresholds")
    asked = parser.parse_args(arguments)
    try:
        store, frame = Store(asked.folder), load(asked.folder)
        plan = store.read_plan() or {}
        for path in write_figures(store, frame, summarise(frame, list(plan["axes"])), plan):
            print(path)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

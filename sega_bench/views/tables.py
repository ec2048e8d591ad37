"""The sweep as tables: one row for each cell, one row for each setting. Nothing else in the project reduces.

A score that was not taken is NaN: it is skipped and counted, and the mean of nothing is NaN.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sega_bench.cell import EDIT_SETTINGS
from sega_bench.errors import UserError
from sega_bench.store import EXECUTION_COLUMNS, OUTCOME_COLUMNS, SETTING_COLUMNS, Store, columns

GAIN, COST = "clip_concept_delta", "lpips"
"""What a trade-off is between: how much of the concept came in, how far the image moved."""

SUMMARISED = (GAIN, "clip_directional", "clip_image", COST, "ssim", "changed_fraction")
"""The scores a summary reduces, each to ``_mean``, ``_sd`` and a 95 % interval from ``_low`` to ``_high``."""

TRENDS = (GAIN, "changed_fraction", COST)
"""The scores whose trend along an axis is told."""

ALL = "all"
"""``concepts`` of a summary's pooled rows; in the others it is a JSON list, and can't be taken for this."""

_RESAMPLES = 1000

_DTYPES = {"is_reference": "bool", "reverse_editing_direction": "boolean"}
_DTYPES |= dict.fromkeys(["seed", "num_inference_steps", "height", "width", "unet_evals"], "Int64")
_DTYPES |= dict.fromkeys(["edit_warmup_steps", "edit_cooldown_steps"], "Int64")
_DTYPES |= dict.fromkeys(["key", "reference_key", "model", "prompt", "negative_prompt", "scheduler"], "str")
_DTYPES |= dict.fromkeys(["replay", *OUTCOME_COLUMNS, "worker", "device", "dtype", "versions"], "str")
"""Every other column is float64."""


def load(folder: str | Path) -> pd.DataFrame:
    """The rows of the present plan's cells, in the plan's order; cells that were never run are absent.

    A setting that each concept has for itself is a plain value where every row's concepts agree. If any row
    needs a list, the whole column is JSON text; ``concepts`` is JSON text always. ``attrs`` holds the sweep's
    ``name`` and where its ``scores`` come from.

    Raises:
        UserError: the folder holds no sweep, or one of another version.
    """
    plan, rows = _read(Store(Path(folder)))
    frame = to_frame(rows)
    frame.attrs = {"name": plan["name"], "scores": plan["scores"]}
    return frame


def _read(store: Store) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The plan, and the present rows of its cells."""
    plan = store.read_plan()
    if plan is None:
        raise UserError(
            f"{store.root} holds no sweep (no plan.json): name a folder such as outputs/thresholds"
        )
    rows = {row["key"]: row for row in store.rows()[0]}
    return plan, [rows[key] for key in plan["keys"] if key in rows]


def digest(store: Store) -> str:
    """What a folder's views are made of, the plan and its cells' rows, as 64 hex digits.

    A view that carries the digest of its folder, shows it as it is.

    Raises:
        UserError: the folder holds no sweep, or one of another version.
    """
    return hashlib.sha256(json.dumps(_read(store)).encode()).hexdigest()


def shown(store: Store) -> str | None:
    """The digest that the folder's tables carry; None if one of them is not there."""
    if not (store.results_csv.exists() and store.summary_csv.exists()):
        return None
    try:
        carried = pd.read_parquet(store.results_parquet, columns=["key"]).attrs.get("digest")
    except (OSError, ValueError):  # it is not there, or is no table
        return None
    return None if carried is None else str(carried)


def to_frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The store's rows as a table with the contract's columns, one dtype each."""
    known = {*SETTING_COLUMNS, *OUTCOME_COLUMNS, *EXECUTION_COLUMNS}
    scores = [name for row in rows for name in row if name not in known]
    return pd.DataFrame({name: _column(name, [row.get(name) for row in rows]) for name in columns(scores)})


def _column(name: str, values: list[Any]) -> pd.Series[Any]:
    if name in EDIT_SETTINGS:
        values = [_agreed(value) for value in values]
    dtype = _DTYPES.get(name, "float64")
    if name == "concepts" or any(isinstance(value, list) for value in values):
        values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
        dtype = "str"
    if dtype == "str":
        # A lone surrogate (a mangled command line) has no UTF-8, and Parquet would refuse the table for it.
        values = [value and value.encode("utf-8", "replace").decode() for value in values]
    return pd.Series(values, dtype=dtype)


def _agreed(value: Any) -> Any:
    """One value for all concepts where they agree, else their list."""
    if isinstance(value, list) and all(item == value[0] for item in value):
        return value[0]
    return value


def write_results(
    store: Store, frame: pd.DataFrame, summary: pd.DataFrame, digest: str | None = None
) -> None:
    """Write results.csv, summary.csv and results.parquet (``attrs`` in its schema's metadata).

    Args:
        store: the folder.
        frame: as :func:`load` gives it.
        summary: as :func:`summarise` gives it.
        digest: of what they show, for :func:`shown`; the last file that is written carries it.
    """
    for path, table in ((store.results_csv, frame), (store.summary_csv, summary)):
        # Quoted texts, because a bare carriage return in a prompt would end a CSV row.
        store.write_text(path, table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"))
    carrier = frame.copy(deep=False)
    carrier.attrs = frame.attrs | ({"digest": digest} if digest else {})
    parquet = io.BytesIO()
    carrier.to_parquet(parquet, index=False)
    store.write_bytes(store.results_parquet, parquet.getvalue())


def summarise(frame: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """One row for each setting over all concept sets (``concepts`` is "all"), then for each concept set.

    Args:
        frame: as :func:`load` gives it.
        axes: the columns that vary; each combination of their values is a setting. None: one setting.

    Returns:
        The axes; ``concepts``; ``n`` done cells, ``n_not_scored`` of them without one of the scores the sweep
        takes, ``n_failed``; ``_mean``, ``_sd``, ``_low``, ``_high`` of each of :data:`SUMMARISED`.
        ``pareto``: no other setting of the concept set has more gain (``clip_concept_delta``) at no more cost
        (``lpips``), or as much at less. ``best``: the one setting of a concept set that is the knee of that
        front. With gain and cost both scaled to 0..1 along the front, the knee has the largest gain minus
        cost: it lies furthest beyond the chord between its ends; of equals, the one with most gain. It
        depends on the range that was tried. A concept set without both scores has neither mark.
    """
    edited = frame[~frame["is_reference"]]
    scored = [name for name in SUMMARISED if edited[name].notna().any()] or list(SUMMARISED)
    parts = [_front([_setting(rows, ALL, scored) | values for values, rows in _groups(edited, axes)])]
    for concepts, part in edited.groupby("concepts", sort=False):
        settings = [_setting(rows, str(concepts), scored) | values for values, rows in _groups(part, axes)]
        parts.append(_front(settings))
    statistics = [f"{name}_{statistic}" for name in SUMMARISED for statistic in _STATISTICS]
    names = [*axes, "concepts", "n", "n_not_scored", "n_failed", *statistics, "pareto", "best"]
    summary = pd.DataFrame([row for part in parts for row in part], columns=names)
    summary = summary.astype({axis: frame[axis].dtype for axis in axes})
    summary.attrs = frame.attrs
    return summary


_STATISTICS = ("mean", "sd", "low", "high")
_Columns = dict[str, NDArray[Any]]


def _groups(frame: pd.DataFrame, axes: Sequence[str]) -> Iterator[tuple[dict[str, Any], _Columns]]:
    """Each combination of the axes' values, null included, with its rows; in order of first appearance."""
    columns = {name: frame[name].to_numpy() for name in ("status", "reference_key", *SUMMARISED)}
    if frame.empty:
        return
    if not axes:
        yield {}, columns
        return
    numbers = frame.groupby(list(axes), sort=False, dropna=False).ngroup().to_numpy()
    order = np.argsort(numbers, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    values = frame[list(axes)].iloc[[group[0] for group in groups]].to_dict("records")
    for value, group in zip(values, groups, strict=True):
        setting = {str(axis): point for axis, point in value.items()}
        yield setting, {name: column[group] for name, column in columns.items()}


def _setting(rows: _Columns, concepts: str, scored: list[str]) -> dict[str, Any]:
    done = rows["status"] == "done"
    unscored = np.any([np.isnan(rows[name][done]) for name in scored], axis=0)
    row: dict[str, Any] = {"concepts": concepts, "n": int(done.sum()), "n_not_scored": int(unscored.sum())}
    row["n_failed"] = int((rows["status"] == "failed").sum())
    for name in SUMMARISED:
        taken = done & ~np.isnan(rows[name])
        statistics = _statistics(rows[name][taken], rows["reference_key"][taken])
        row |= {f"{name}_{label}": value for label, value in zip(_STATISTICS, statistics, strict=True)}
    return row


def _statistics(values: NDArray[np.float64], clusters: NDArray[Any]) -> tuple[float, float, float, float]:
    mean = float(values.mean()) if len(values) else float("nan")
    deviation = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return mean, deviation, *interval(values, clusters)


def interval(values: NDArray[np.float64], clusters: NDArray[Any]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean, seeded.

    Whole clusters are resampled: the edits of one unedited image share its prompt and seed, and are not
    independent of each other. With a single cluster nothing is known, and both ends are NaN.

    Args:
        values: (n,), no NaN.
        clusters: (n,) labels.
    """
    labels, places = np.unique(clusters, return_inverse=True)
    if len(labels) < 2:
        return float("nan"), float("nan")
    weights = _resamples(len(labels))
    means = (weights @ np.bincount(places, weights=values)) / (weights @ np.bincount(places))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@lru_cache(maxsize=4)
def _resamples(clusters: int) -> NDArray[np.float64]:
    """How often each cluster is drawn in each resample: (resamples, clusters)."""
    draws = np.random.default_rng(0).multinomial(clusters, np.full(clusters, 1 / clusters), size=_RESAMPLES)
    return draws.astype(np.float64)


def _front(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mark the rows of one concept set with ``pareto`` and ``best``."""
    gain = np.array([row[f"{GAIN}_mean"] for row in settings], dtype=np.float64)
    cost = np.array([row[f"{COST}_mean"] for row in settings], dtype=np.float64)
    front = pareto(gain, cost)
    best = knee(gain, cost, front)
    return [row | {"pareto": bool(front[i]), "best": i == best} for i, row in enumerate(settings)]


def pareto(gain: NDArray[np.float64], cost: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points no other beats in one of the two without losing in the other; never one with a NaN."""
    front = np.isfinite(gain) & np.isfinite(cost)
    for i in np.flatnonzero(front):
        no_worse = (gain >= gain[i]) & (cost <= cost[i])
        front[i] = not np.any(no_worse & ((gain > gain[i]) | (cost < cost[i])))
    return front


def knee(gain: NDArray[np.float64], cost: NDArray[np.float64], front: NDArray[np.bool_]) -> int | None:
    """Index of the front's best trade-off as :func:`summarise` defines it; None for an empty front."""
    on = np.flatnonzero(front)
    if not len(on):
        return None
    merit = np.round(_unit(gain[on]) - _unit(cost[on]), 9)  # rounded, so that equals are equal
    return int(on[np.lexsort((gain[on], merit))[-1]])


def _unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = (values - values.min()) / (np.ptp(values) or 1.0)
    return unit


def trends(frame: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Spearman correlation of each numeric axis' values with the mean score of the edited cells at each.

    Returns:
        One row an axis: ``axis``, ``values`` (how many different), ``peak`` (that with most mean gain), and
        :data:`TRENDS`, NaN where fewer than three values were scored (two points are always in line) or where
        the score never changes.
    """
    edited = frame[~frame["is_reference"]]
    rows = []
    for axis in axes:
        if pd.api.types.is_numeric_dtype(frame[axis]) and not pd.api.types.is_bool_dtype(frame[axis]):
            means = edited.groupby(axis)[list(TRENDS)].mean()
            ranked = means[GAIN].dropna().sort_values(kind="stable")
            peak = ranked.index[-1] if len(ranked) else float("nan")
            correlations = {name: _spearman(means[name]) for name in TRENDS}
            rows.append({"axis": axis, "values": len(means), "peak": peak} | correlations)
    return pd.DataFrame(rows, columns=["axis", "values", "peak", *TRENDS])


def _spearman(means: pd.Series[float]) -> float:
    """Rank correlation of a series with its own index."""
    means = means.dropna()
    if len(means) < 3 or means.nunique() < 2:
        return float("nan")
    return float(means.rank().corr(pd.Series(means.index, index=means.index).rank()))

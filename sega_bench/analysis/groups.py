"""The rows of a sweep grouped by setting, and what a group comes to: counts, means and differences in pairs.

Groups are gathered from whole columns as they are asked for: those of 100,000 rows are never there at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sega_bench.stats.intervals import Estimate, estimate

ALL = "all"
"""``concepts`` of a summary's pooled rows; in the others it is a JSON list, and can't be taken for this."""

STATISTICS = tuple(field.name for field in fields(Estimate))
COUNTS = ("n", "n_not_scored", "n_failed")
ENDS = ("", "_low", "_high")
Columns = dict[str, NDArray[Any]]

UNITS = ("prompt", "seed", "concepts")
"""Of a table, the columns that :func:`units` needs."""


def concept_sets(edited: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """All edited rows, then those of each concept set."""
    yield ALL, edited
    numbers, names = pd.factorize(edited["concepts"])
    for number, concepts in enumerate(names):
        yield str(concepts), edited[numbers == number]


class Groups:
    """Each combination of the axes' values, null included, with its rows; in order of first appearance.

    Args:
        part: edited rows.
        axes: of its columns. None: one group of all.
        scores: of its columns.

    Attributes:
        whole: the columns of all rows: ``status``, the scores, :func:`units`.
    """

    def __init__(self, part: pd.DataFrame, axes: Sequence[str], scores: Sequence[str]) -> None:
        self.whole: Columns = {name: part[name].to_numpy() for name in ("status", *scores)} | sampling_units(
            part
        )
        self._values: list[dict[str, Any]] = []
        self._places: list[NDArray[np.intp]] = []
        if part.empty:
            return
        if not axes:
            self._values, self._places = [{}], [np.arange(len(part))]
            return
        numbers = part.groupby(list(axes), sort=False, dropna=False).ngroup().to_numpy()
        order = np.argsort(numbers, kind="stable")
        self._places = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
        firsts = part[list(axes)].iloc[[places[0] for places in self._places]].to_dict("records")
        self._values = [{str(axis): point for axis, point in first.items()} for first in firsts]

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Columns]]:
        for i, values in enumerate(self._values):
            yield values, self.rows(i)

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, i: int, names: Iterable[str] | None = None) -> Columns:
        """The columns of one group: all, or some."""
        return {name: self.whole[name][self._places[i]] for name in names or self.whole}


def sampling_units(rows: pd.DataFrame) -> Columns:
    """What is drawn at random in a bootstrap: the prompt of each row, and its seed of that prompt.

    And what makes a pair of rows of two settings: that, with the concepts.
    """
    alike = {"_prompt": UNITS[:1], "_draw": UNITS[:2], "_pair": UNITS}
    return {name: rows.groupby(list(by), sort=False).ngroup().to_numpy() for name, by in alike.items()}


def pair_means(rows: Columns, name: str) -> NDArray[np.float64]:
    """The mean score of each pair's rows; NaN where there is none."""
    taken = ~np.isnan(rows[name])
    pairs = rows["_pair"][taken]
    counts = np.bincount(pairs, minlength=1)
    with np.errstate(invalid="ignore"):
        means: NDArray[np.float64] = np.bincount(pairs, rows[name][taken], minlength=1) / counts
    return means


def anchored_means(groups: Groups, name: str) -> NDArray[np.float64]:
    """Each group's mean score, as it would be on the pairs of the group that has most.

    A group that lacks some, because cells failed or are still to come, must not be praised for those that it
    lacks: it stands at the other's mean and its mean difference to it over the pairs that both have; NaN if
    there are none. A group that lacks nothing stands at its own mean.
    """
    estimates = np.full(len(groups), np.nan)
    of_each: list[NDArray[np.float64]] = []
    for i in range(len(groups)):
        rows = groups.rows(i, (name, "_pair"))
        of_each.append(pair_means(rows, name))
        if (taken := rows[name][~np.isnan(rows[name])]).size:
            estimates[i] = taken.mean()
    counts = [int(np.isfinite(means).sum()) for means in of_each]
    most = max(counts, default=0)
    anchor = of_each[counts.index(most)] if most else np.empty(0)
    for i, means in enumerate(of_each):
        if 0 < counts[i] < most:
            shared = min(len(anchor), len(means))
            differences = means[:shared] - anchor[:shared]
            is_paired = np.isfinite(differences).any()
            estimates[i] = np.nanmean(anchor) + np.nanmean(differences) if is_paired else np.nan
    return estimates


def paired_differences(
    rows: Columns, reference: Mapping[str, NDArray[np.float64]], label: str
) -> dict[str, Any]:
    """How far a group's scores lie above the reference value of their pair, with the interval."""
    columns: dict[str, Any] = {}
    for name, means in reference.items():
        per_pair = np.append(means, np.full(max(0, rows["_pair"].max() + 1 - len(means)), np.nan))
        difference = estimate(rows[name] - per_pair[rows["_pair"]], rows["_draw"], rows["_prompt"])
        values = (difference.mean, difference.low, difference.high)
        columns |= {f"{name}_{label}{end}": value for end, value in zip(ENDS, values, strict=True)}
    return columns


def describe_group(rows: Columns, concepts: str, scored: Sequence[str]) -> dict[str, Any]:
    """A group's :data:`COUNTS`, and of each of its scores the :data:`STATISTICS`.

    Args:
        rows: the group.
        concepts: what the row is of.
        scored: the scores that a cell must have to count as scored.
    """
    done = rows["status"] == "done"
    unscored = np.any([np.isnan(rows[name][done]) for name in scored], axis=0)
    row: dict[str, Any] = {"concepts": concepts, "n": int(done.sum()), "n_not_scored": int(unscored.sum())}
    row["n_failed"] = int((rows["status"] == "failed").sum())
    for name in (name for name in rows if name != "status" and not name.startswith("_")):
        found = estimate(rows[name][done], rows["_draw"][done], rows["_prompt"][done])
        row |= {f"{name}_{label}": value for label, value in zip(STATISTICS, astuple(found), strict=True)}
    return row

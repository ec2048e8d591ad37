"""A sweep's configuration and results as a few named values that may leave this machine."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sega_bench.analysis.best import StudyAnswers
from sega_bench.analysis.groups import ALL
from sega_bench.analysis.labels import concept_labels
from sega_bench.analysis.results import Results
from sega_bench.analysis.scores import COST, GAIN
from sega_bench.store import Record

_LIVE = (GAIN, COST, "clip_directional", "changed_fraction")
"""The scores whose means are logged while the sweep runs."""

_MOST_ITEMS = 100
"""Longer lists in the configuration, such as prompts from a file, are truncated."""


class Live:
    """Counts, and running means of the scores, of a sweep in progress.

    Args:
        already: how many cells earlier runs have done.

    Attributes:
        new: how many cells this run has done or failed.
    """

    def __init__(self, already: int) -> None:
        self._done, self._failed = already, 0
        self._taken = dict.fromkeys(_LIVE, (0, 0.0))
        self.new = 0

    def add(self, records: Sequence[Record]) -> None:
        """Include these records."""
        done = [record for record in records if record.status == "done"]
        self.new += len(records)
        self._done += len(done)
        self._failed += len(records) - len(done)
        for name, (count, total) in self._taken.items():
            scores = [record.scores.get(name) for record in done]
            taken = [score for score in scores if isinstance(score, float) and not math.isnan(score)]
            self._taken[name] = count + len(taken), total + sum(taken)

    def point(self) -> dict[str, float]:
        """``cells_done``, ``cells_failed``, and ``<score>_so_far`` of each score present."""
        means = {f"{name}_so_far": total / count for name, (count, total) in self._taken.items() if count}
        return {"cells_done": self._done, "cells_failed": self._failed, **means}


def configuration(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan as a run's configuration, without local paths and credentials, long lists truncated."""
    public = {name: value for name, value in plan.items() if name not in ("keys", "model")}
    model = {name: value for name, value in plan["model"].items() if name != "path"}
    cleaned = _portable(public | {"model": model})
    assert isinstance(cleaned, dict)
    return cleaned


def _portable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _portable(item) for name, item in value.items() if not _PRIVATE.search(str(name))}
    if isinstance(value, list | tuple):
        return [_portable(item) for item in value[:_MOST_ITEMS]]
    if isinstance(value, str) and os.path.isabs(value) and os.path.exists(value):
        return Path(value).name
    return value


_PRIVATE = re.compile(r"(^|_)(path|dir|folder|token|password|secret|api_key)$")


def headline(results: Results) -> dict[str, Any]:
    """The best setting over all concepts and of each, and the paper's claims, as W&B summary values.

    Returns:
        ``best/<axis>`` and ``best/<score>`` over all concepts, ``best/<concept>/...`` of each where there are
        several; ``verdict``, a sentence; ``claims/<direction>/<claim>/<measure>`` over all concepts, with
        ``/low`` and ``/high``. None where there is no number.
    """
    values = dict(_best(results)) | dict(_claims(results.claims))
    if lines := results.verdict_lines:
        values["verdict"] = lines[0]
    return {name: None if value is None or pd.isna(value) else value for name, value in values.items()}


def study_headline(answers: StudyAnswers) -> dict[str, Any]:
    """A study's answers as W&B summary values; empty for a sweep or an unfinished study.

    Returns:
        ``study/<setting>``, ``study/<objective>`` and ``study/held_out/<objective>`` of the best setting, and
        ``study/<concepts>/...`` of each concept set's.
    """
    values: dict[str, Any] = {}
    for best in (answers or {}).get("best", []):
        concepts = best["concepts"]
        place = "study" if concepts is None else f"study/{' + '.join(concepts).replace('/', ' ')}"
        values |= {f"{place}/{name}": value for name, value in best["settings"].items()}
        for where, prefix in (("searched", ""), ("held_out", "held_out/")):
            for name, scores in best.get(where, {}).items():
                values[f"{place}/{prefix}{name}"] = scores["score"]["mean"]
    return values


def _best(results: Results) -> Iterator[tuple[str, Any]]:
    best = results.summary[results.summary["best"]]
    each = best.loc[best["concepts"] != ALL, "concepts"]
    labels = concept_labels(each) if len(each) > 1 else {}
    for row in best.to_dict("records"):
        if row["concepts"] == ALL or row["concepts"] in labels:
            place = "best" if row["concepts"] == ALL else f"best/{labels[row['concepts']].replace('/', ' ')}"
            yield from ((f"{place}/{axis}", row[axis]) for axis in results.axes)
            yield from ((f"{place}/{name}", row[f"{name}_mean"]) for name in (GAIN, COST))


def _claims(claims: pd.DataFrame) -> Iterator[tuple[str, Any]]:
    for row in claims[claims["concepts"] == ALL].to_dict("records"):
        name = f"claims/{row['direction']}/{row['claim']}/{row['measure'].replace(' / ', ' over ')}"
        yield name, row["value"]
        yield f"{name}/low", row["low"]
        yield f"{name}/high", row["high"]

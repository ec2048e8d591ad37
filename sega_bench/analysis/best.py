"""The best setting of a sweep's concept sets: the verdict, or what the folder's study recommends."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sega_bench.analysis.groups import ALL
from sega_bench.analysis.matrix import PAIR, Floats, ScoreMatrix
from sega_bench.analysis.scores import COST, GAIN, JUDGES
from sega_bench.analysis.values import row_value, setting_value
from sega_bench.analysis.verdict import Evidence, Verdict, judge

StudyAnswers = Mapping[str, Any] | None
"""A study's answers (:meth:`sega_bench.store.Store.answers`): empty until it finishes, None for a sweep."""

SettingValues = Mapping[str, Hashable]
"""Values by setting, made comparable by :func:`sega_bench.analysis.values.setting_value`."""


@dataclass(frozen=True)
class Criteria:
    """By which scores, and how strictly, settings are judged.

    Args:
        success: the column of success; None is the best judge that the sweep has, if it has one.
        gain: the column of gain.
        cost: the column of cost.
        margin: how much less success than the best one tried still counts as working; for gain, relative.
    """

    success: str | None = None
    gain: str = GAIN
    cost: str = COST
    margin: float = 0.05

    @classmethod
    def of(cls, plan: Mapping[str, Any]) -> Criteria:
        """The criteria of plan.json; the defaults where it has none."""
        given = plan.get("settings", {}).get("verdict") or {}
        return cls(**{name: value for name, value in given.items() if name in cls.__dataclass_fields__})

    def columns(self, frame: pd.DataFrame) -> list[str]:
        """Those of the criteria's columns that a table has."""
        names = [*([self.success] if self.success else JUDGES), self.gain, self.cost]
        return [name for name in dict.fromkeys(names) if name in frame]

    def judge_of(self, edited: pd.DataFrame) -> str | None:
        """The column by which success is judged; None where nothing in these rows was judged."""
        names = [self.success] if self.success else JUDGES
        return next((name for name in names if name in edited and edited[name].notna().any()), None)


def needed_columns(frame: pd.DataFrame, axes: Sequence[str], criteria: Criteria) -> list[str]:
    """The table's columns that :func:`judge_settings` reads: a copy of all others would cost memory."""
    names = [*axes, *PAIR, "status", "reverse_editing_direction", *criteria.columns(frame)]
    return [name for name in dict.fromkeys(names) if name in frame]


def to_do(edited: pd.DataFrame, criteria: Criteria) -> pd.Series[bool]:
    """The edits that had something to do: their unedited image lacked what was to be added, or had what was
    to be removed. A judge leaves the others unjudged; without a judge, every edit that is done.
    """
    is_done = edited["status"] == "done"
    judge_column = criteria.judge_of(edited)
    return is_done if judge_column is None else is_done & edited[judge_column].notna()


@dataclass(frozen=True)
class Judged:
    """A verdict with what it was made from.

    Args:
        matrix: the settings and their scores over all pairs.
        evidence: the part of them in which there was something to do.
        verdict: the verdict.
        is_removal: whether all concepts were to be removed.
    """

    matrix: ScoreMatrix
    evidence: Evidence
    verdict: Verdict
    is_removal: bool


def judge_settings(edited: pd.DataFrame, axes: Sequence[str], criteria: Criteria) -> Judged:
    """The verdict on the settings of edited rows, over the pairs in which there was something to do.

    Args:
        edited: edited rows of :func:`sega_bench.load`'s table, of one concept set or of all.
        axes: the columns that vary.
        criteria: by which they are judged.
    """
    judge_column = criteria.judge_of(edited)
    matrix = ScoreMatrix.of(edited, axes, criteria.columns(edited))
    scores = matrix.scores
    success_MN = None if judge_column is None else scores[judge_column]
    gain_MN = scores.get(criteria.gain, np.full((len(matrix), len(matrix.prompt_N)), np.nan))
    is_to_do_N = np.isfinite(gain_MN if success_MN is None else success_MN).any(axis=0)
    evidence = Evidence(
        None if success_MN is None else success_MN[:, is_to_do_N],
        gain_MN[:, is_to_do_N],
        _cost(scores.get(criteria.cost), is_to_do_N),
        matrix.prompt_N[is_to_do_N],
        matrix.seed_N[is_to_do_N],
        margin=criteria.margin,
    )
    is_reversed = edited.get("reverse_editing_direction")
    is_removal = is_reversed is not None and bool(len(edited)) and bool((is_reversed == True).all())  # noqa: E712
    return Judged(matrix, evidence, judge(evidence), is_removal)


def _cost(cost_MN: Floats | None, is_to_do_N: Any) -> Floats | None:
    if cost_MN is None or np.isnan(cost_MN).all():
        return None
    return cost_MN[:, is_to_do_N]


def recommended_setting(answers: Mapping[str, Any], concepts: str) -> SettingValues | None:
    """The setting that a study recommends for a concept set, or for all; None if it recommends none.

    Args:
        answers: the study's answers.
        concepts: the set as JSON, or "all"; a study of a single set has one answer for both.
    """
    is_only = len(answers.get("concepts", ())) == 1
    texts = None if concepts == ALL or is_only else json.loads(concepts)
    for one in answers.get("best", ()):
        if one["concepts"] == texts:
            return {name: setting_value(value) for name, value in one["settings"].items()}
    return None


def find_row(rows: Iterable[Mapping[Any, Any]], wanted: SettingValues | None) -> int | None:
    """The index of the first row with these values, compared over the settings that the row has."""
    if wanted is None:
        return None
    return next((i for i, row in enumerate(rows) if _agrees(row, wanted)), None)


def _agrees(row: Mapping[Any, Any], wanted: SettingValues) -> bool:
    return all(row_value(row, name) == value for name, value in wanted.items() if name in row)

"""The sweep as a table of settings: means with intervals, comparisons, fronts and the verdict.

Nothing else in the project reduces rows to settings. A score that was not taken is NaN: it is skipped and
counted, and the mean of nothing is NaN.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sega_bench.analysis.best import (
    Criteria,
    Judged,
    StudyAnswers,
    find_row,
    judge_settings,
    needed_columns,
    recommended_setting,
    to_do,
)
from sega_bench.analysis.comparable import comparable
from sega_bench.analysis.groups import COUNTS, ENDS, STATISTICS, concept_sets
from sega_bench.analysis.matrix import Floats, ScoreMatrix, anchored_means
from sega_bench.analysis.scores import COST, GAIN, SUCCESSES, SUMMARISED, TRENDS
from sega_bench.analysis.verdict import Verdict
from sega_bench.stats.correlation import spearman
from sega_bench.stats.pareto import area_under_front, front
from sega_bench.stats.proportions import share_intervals
from sega_bench.stats.random_effects import mean_intervals
from sega_bench.store import EXECUTION_COLUMNS, OUTCOME_COLUMNS, SETTING_COLUMNS

PAIRED = TRENDS
"""The scores in which settings are compared with the verdict in pairs."""

SHARES = (*SUCCESSES, "attribute_leakage", "nsfw", "nsfw_unedited")
"""Scores in [0, 1] that are shares of successes, whose interval is a proportion's."""

_NEEDED = ("prompt", "seed", "concepts", "method", "status")
_VERDICT = ("works", "as_good", "chosen_share")
_NO_OTHER_SCORE = frozenset((*SETTING_COLUMNS, *OUTCOME_COLUMNS, *EXECUTION_COLUMNS, *SUMMARISED))


def summarised_scores(frame: pd.DataFrame) -> list[str]:
    """The scores that a summary of this table reduces: ``SUMMARISED``, then all others that were taken.

    Scores of a single concept (``clip_concept_1``) are left out, because rows differ in their concepts, and
    so are scores that are texts.
    """
    others = [name for name in frame.columns if _may_be_reduced(frame, name)]
    return [*SUMMARISED, *(name for name in others if frame[name].notna().any())]


def _may_be_reduced(frame: pd.DataFrame, name: str) -> bool:
    is_other = name not in _NO_OTHER_SCORE and not re.search(r"_\d+$", name)
    return is_other and frame[name].dtype == "float64"


def summarise(
    frame: pd.DataFrame,
    axes: Sequence[str],
    answers: StudyAnswers = None,
    criteria: Criteria = Criteria(),  # noqa: B008 - frozen
    judged: Mapping[str, Judged] | None = None,
) -> pd.DataFrame:
    """One row per setting over all concept sets (``concepts`` is "all"), then one per setting and set.

    Args:
        frame: as :func:`sega_bench.load` returns it.
        axes: the columns that vary; each combination of their values is a setting. Empty: one setting.
        answers: a study's answers; None for a sweep.
        criteria: by which settings are judged.
        judged: :func:`verdicts` of the same rows, if they are known.

    Returns:
        The axes; ``concepts``; ``n`` done cells, ``n_not_scored`` of them that lack one of ``SUMMARISED``
        which the sweep takes, ``n_failed``, ``n_to_do`` of them whose edit had something to do
        (:func:`sega_bench.analysis.best.to_do`); for each score in :func:`summarised_scores` ``_mean``,
        ``_sd``, ``_low`` and ``_high`` (95 %; :func:`sega_bench.stats.random_effects.mean_intervals` over
        prompts and seeds, :mod:`sega_bench.stats.proportions` for :data:`SHARES`), ``_n``. Gain is the mean
        over edits that had something to do. Scores that references have too, such as ``nsfw``, also have
        ``nsfw_unedited``.

        ``<score>_gap`` for each of :data:`PAIRED`: how far the setting lies above the best one, over pairs of
        the same prompt, seed and concepts, with its interval ``_gap_low`` to ``_gap_high``. What settings
        share, such as a face that is hard to edit, is not in it.

        ``area``: what the setting alone dominates of gain against preservation (1 - ``lpips``), from no gain
        at nothing preserved (:func:`sega_bench.stats.pareto.area_under_front`); ``front_area``: what all
        settings of the concept set dominate together; ``pareto``: no other setting of the concept set has
        more gain at no more cost, or as much at less. A setting that lacks cells is judged by its pairs with
        one that has them.

        ``works``, ``as_good``, ``chosen_share``: see :class:`sega_bench.analysis.verdict.Verdict`. ``best``:
        the verdict's setting; for a study the setting that it recommends.
    """
    judged = verdicts(frame, axes, criteria) if judged is None else judged
    edited = _with_unedited(frame, axes)
    names = summarised_scores(edited)
    scored = [name for name in SUMMARISED if edited[name].notna().any()] or list(SUMMARISED)
    tables = []
    for concepts, part in concept_sets(edited):
        if part.empty:
            continue
        matrix, verdict = judged[concepts].matrix, judged[concepts].verdict
        of_gain = part.assign(**{GAIN: part[GAIN].where(to_do(part, criteria))})
        scores = ScoreMatrix.of(of_gain, axes, names)
        best = verdict.setting
        if answers is not None:
            best = find_row(matrix.settings, recommended_setting(answers, concepts))
        gain, cost = (anchored_means(scores.scores[name]) for name in (GAIN, COST))
        table = _settings(matrix, axes) | {"concepts": concepts} | _counts(part, matrix, scored, criteria)
        table |= _statistics(of_gain, scores, names) | _gaps(scores, best) | _areas_and_front(gain, cost)
        table |= {"best": np.arange(len(matrix)) == (-1 if best is None else best)}
        table |= _verdict_marks(verdict) if answers is None else _no_marks(len(matrix))
        tables.append(pd.DataFrame(table, index=range(len(matrix))))
    return _joined(tables, _summary_columns(axes, names), frame, axes)


def _verdict_marks(verdict: Verdict) -> dict[str, Any]:
    return {name: getattr(verdict, name) for name in _VERDICT}


def _no_marks(settings: int) -> dict[str, Any]:
    """A study recommends by its own objectives, so the verdict's marks would refer to another setting."""
    return {"works": False, "as_good": False, "chosen_share": np.full(settings, np.nan)}


def verdicts(frame: pd.DataFrame, axes: Sequence[str], criteria: Criteria) -> dict[str, Judged]:
    """The verdict over all concept sets ("all") and on each, by concept set."""
    edited = frame.loc[~frame["is_reference"], needed_columns(frame, axes, criteria)]
    return {
        concepts: judge_settings(part, axes, criteria)
        for concepts, part in concept_sets(edited)
        if not part.empty
    }


def _summary_columns(axes: Sequence[str], names: Sequence[str]) -> list[str]:
    statistics = [f"{name}_{statistic}" for name in names for statistic in STATISTICS]
    gaps = [f"{name}_gap{end}" for name in PAIRED for end in ENDS]
    marks = ["area", "front_area", "pareto", "best", *_VERDICT]
    return [*axes, "concepts", *COUNTS, *statistics, *gaps, *marks]


def _joined(
    tables: Sequence[pd.DataFrame], columns: Sequence[str], frame: pd.DataFrame, axes: Sequence[str]
) -> pd.DataFrame:
    """The concept sets' tables as one, with the axes' dtypes."""
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(columns))
    dtypes: dict[str, Any] = {axis: frame[axis].dtype for axis in axes}
    dtypes |= dict.fromkeys({"pareto", "best", "works", "as_good"}.intersection(columns), bool)
    result = table[list(columns)].astype(dtypes)
    result.attrs = frame.attrs
    return result


def curve(frame: pd.DataFrame, axis: str, axes: Sequence[str]) -> pd.DataFrame:
    """One row per value of an axis over all concept sets, then one per value and set: the scores along it.

    Args:
        frame: as :func:`sega_bench.load` returns it.
        axis: one of ``axes``.
        axes: the sweep's. Only rows that differ in this one alone are compared
            (:func:`sega_bench.analysis.comparable.comparable`).

    Returns:
        The axis, ``concepts``, counts and statistics as in :func:`summarise`; ``<score>_within`` for each
        score: how far the value lies above the mean over the whole axis, of the same prompt, seed and
        concepts; ``_within_low`` and ``_within_high``, its interval.
    """
    edited = comparable(_with_unedited(frame, axes), axis, axes)
    names = summarised_scores(edited)
    tables = []
    for concepts, part in concept_sets(edited):
        if part.empty:
            continue
        matrix = ScoreMatrix.of(part, [axis], names)
        table = _settings(matrix, [axis]) | {"concepts": concepts} | _counts(part, matrix, names, Criteria())
        table |= _statistics(part, matrix, names)
        for name, values_MN in matrix.scores.items():
            table |= _differences(values_MN - _column_means(values_MN), matrix, f"{name}_within")
        tables.append(pd.DataFrame(table, index=range(len(matrix))))
    statistics = [f"{name}_{statistic}" for name in names for statistic in STATISTICS]
    within = [f"{name}_within{end}" for name in names for end in ENDS]
    return _joined(tables, [axis, "concepts", *COUNTS, *statistics, *within], frame, [axis])


def interval_around(table: pd.DataFrame, score: str, compared: str) -> tuple[pd.Series[Any], pd.Series[Any]]:
    """The ends of a comparison's interval around the score's mean, as a plot draws it.

    Args:
        table: as :func:`summarise` or :func:`curve` returns it.
        score: one that is compared in it.
        compared: ``gap`` or ``within``.
    """
    offset = table[f"{score}_mean"] - table[f"{score}_{compared}"]
    low, high = (offset + table[f"{score}_{compared}{end}"] for end in ENDS[1:])
    return low, high


def _with_unedited(frame: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """The edited rows with the columns that are reduced, and the scores that their references have too."""
    scores = [*SUMMARISED, *(name for name in frame.columns if _may_be_reduced(frame, name))]
    needed = frame[list(dict.fromkeys([*axes, *_NEEDED, *scores]))]
    edited = ~frame["is_reference"]
    reference_of = frame["reference_key"][edited]
    references = needed[~edited].set_index(frame["key"][~edited])
    unedited = {
        f"{name}_unedited": reference_of.map(references[name]).astype("float64")
        for name in summarised_scores(references)
        if name not in SUMMARISED
    }
    return needed[edited].assign(**unedited)


def _settings(matrix: ScoreMatrix, axes: Sequence[str]) -> dict[str, Any]:
    return {axis: [setting[axis] for setting in matrix.settings] for axis in axes}


def _counts(
    part: pd.DataFrame, matrix: ScoreMatrix, scored: Sequence[str], criteria: Criteria
) -> dict[str, NDArray[np.intp]]:
    is_done = (part["status"] == "done").to_numpy()
    is_unscored = is_done & part[list(scored)].isna().any(axis=1).to_numpy()
    is_failed = (part["status"] == "failed").to_numpy()
    flags = (is_done, is_unscored, is_failed, to_do(part, criteria).to_numpy())
    return {name: matrix.count(flag) for name, flag in zip(COUNTS, flags, strict=True)}


def _statistics(part: pd.DataFrame, matrix: ScoreMatrix, names: Sequence[str]) -> dict[str, Floats]:
    """Each score's :data:`STATISTICS` per setting: moments over cells, intervals over prompts and seeds."""
    columns: dict[str, Any] = {}
    is_done = (part["status"] == "done").to_numpy()
    for name in names:
        mean_M, sd_M, n_M = matrix.moments(part[name].to_numpy(dtype=np.float64, na_value=np.nan), is_done)
        if name in SHARES:
            shares = share_intervals(matrix.scores[name], matrix.prompt_N, matrix.seed_N)
            low_M, high_M = shares.low, shares.high
        else:
            intervals = mean_intervals(matrix.scores[name], matrix.prompt_N, matrix.seed_N)
            low_M, high_M = (mean_M + end - intervals.mean for end in (intervals.low, intervals.high))
        values = (mean_M, sd_M, low_M, high_M, n_M)
        columns |= {f"{name}_{label}": value for label, value in zip(STATISTICS, values, strict=True)}
    return columns


def _gaps(matrix: ScoreMatrix, best: int | None) -> dict[str, Floats]:
    columns: dict[str, Floats] = {}
    for name in PAIRED:
        values_MN = matrix.scores[name]
        difference_MN = np.full_like(values_MN, np.nan) if best is None else values_MN - values_MN[best]
        columns |= _differences(difference_MN, matrix, f"{name}_gap")
    return columns


def _differences(difference_MN: Floats, matrix: ScoreMatrix, label: str) -> dict[str, Floats]:
    """Mean paired differences and their intervals."""
    intervals = mean_intervals(difference_MN, matrix.prompt_N, matrix.seed_N)
    values = (intervals.mean, intervals.low, intervals.high)
    return {f"{label}{end}": value for end, value in zip(ENDS, values, strict=True)}


def _column_means(values_MN: Floats) -> Floats:
    is_known = ~np.isnan(values_MN)
    with np.errstate(invalid="ignore"):
        means_N: Floats = np.where(is_known, values_MN, 0.0).sum(axis=0) / is_known.sum(axis=0)
    return means_N


def _areas_and_front(gain_M: Floats, cost_M: Floats) -> dict[str, Any]:
    """Areas and Pareto marks of one concept set's settings."""
    own = [area_under_front(gain_M[i : i + 1], cost_M[i : i + 1]) for i in range(len(gain_M))]
    on_front_M = front(np.column_stack([-gain_M, cost_M]))
    return {"area": own, "front_area": area_under_front(gain_M, cost_M), "pareto": on_front_M}


def areas(summary: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The area under the front of the settings that share a value of one axis, per concept set.

    It compares the values (methods, schedulers) over whatever else the sweep varies.

    Args:
        summary: as :func:`summarise` returns it.
        axis: one of its axes.

    Returns:
        ``concepts``, the axis, ``settings`` (how many have both scores), ``area``.
    """
    rows = []
    for (concepts, value), part in summary.groupby(["concepts", axis], sort=False, dropna=False):
        gain, cost = part[f"{GAIN}_mean"].to_numpy(), part[f"{COST}_mean"].to_numpy()
        scored = int(np.isfinite(gain + cost).sum())
        area = area_under_front(gain, cost)
        rows.append({"concepts": concepts, axis: value, "settings": scored, "area": area})
    return pd.DataFrame(rows, columns=["concepts", axis, "settings", "area"])


def trends(frame: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Spearman correlation of each numeric axis' values with the mean score of the edited cells at each.

    Only cells that differ in the axis alone are compared
    (:func:`~sega_bench.analysis.comparable.comparable`).
    A value that lacks some cells is judged by its pairs (:func:`~sega_bench.analysis.matrix.anchored_means`).

    Returns:
        One row per axis: ``axis``, ``values`` (how many different), ``peak`` (the one with the highest mean
        gain), and ``TRENDS``, NaN where fewer than three values were scored (two points are always in line)
        or where the score never changes.
    """
    edited = frame.loc[~frame["is_reference"], list(dict.fromkeys([*axes, *_NEEDED, *TRENDS]))]
    numeric = [axis for axis in axes if _is_numeric(frame[axis])]
    return pd.DataFrame(
        [_trend(edited, axis, axes) for axis in numeric], columns=["axis", "values", "peak", *TRENDS]
    )


def _is_numeric(column: pd.Series[Any]) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _trend(edited: pd.DataFrame, axis: str, axes: Sequence[str]) -> Mapping[str, Any]:
    like = comparable(edited, axis, axes)
    matrix = ScoreMatrix.of(like[like[axis].notna()], [axis], TRENDS)
    values = [setting[axis] for setting in matrix.settings]
    means = pd.DataFrame({name: anchored_means(matrix.scores[name]) for name in TRENDS}, values).sort_index()
    ranked = means[GAIN].dropna().sort_values(kind="stable")
    places = means.index.to_numpy(dtype=np.float64)
    correlations = {name: spearman(places, means[name].to_numpy()) for name in TRENDS}
    peak = ranked.index[-1] if len(ranked) else float("nan")
    return {"axis": axis, "values": len(means), "peak": peak} | correlations

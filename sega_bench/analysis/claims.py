"""The paper's four claims as numbers with intervals, from a sweep's rows.

Brack et al. (arXiv 2301.12247, section 4) show by pictures that semantic guidance is monotone in its scale,
isolated from what it was not asked for, robust over seeds, and unique to the concept. Here each is measured
from what a sweep has: without the axis or score that a claim needs, the claim has no row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from sega_bench.analysis.best import Criteria, StudyAnswers
from sega_bench.analysis.estimates import at_best, correlations, mean_of, ratio_of, share_of
from sega_bench.analysis.groups import ALL
from sega_bench.analysis.labels import format_value
from sega_bench.analysis.scores import COST, GAIN, SUCCESSES
from sega_bench.stats.intervals import Estimate
from sega_bench.store import SETTING_COLUMNS

SCALE = "edit_guidance_scale"
ISOLATION = ("changed_fraction", "locality", "attribute_leakage")
"""The scores that say whether something else was touched."""

COMPARED = (GAIN, COST, "changed_fraction", *SUCCESSES)
"""The scores in which methods are compared."""

_COLUMNS = ["claim", "measure", "direction", "concepts", "at", "value", "low", "high", "n"]
_PAIR = ("prompt", "seed", "concepts")
_NO_SETTING = ("method", "replay", "reverse_editing_direction")
_Row = dict[str, Any]


def claims(
    frame: pd.DataFrame,
    axes: Sequence[str],
    answers: StudyAnswers = None,
    criteria: Criteria = Criteria(),  # noqa: B008 - frozen
) -> pd.DataFrame:
    """Evidence for the paper's claims about SEGA, and how SEGA compares with other methods.

    * ``monotonicity``: mean Spearman correlation of gain with ``edit_guidance_scale``, each image a curve;
      one whose gain never moves has none.
    * ``isolation``: means of :data:`ISOLATION`; and for each attribute that flipped without being asked for,
      the share of images in which it did (``flipped hair``), which together are the leakage matrix.
    * ``robustness``: the share of images in which the edit succeeded.
    * ``uniqueness``: the gain of another prompt's edit, replayed, in terms of that of the prompt's own.
    * ``baselines``: each of :data:`COMPARED` of another method minus SEGA's, in pairs of the same prompt,
      seed, concepts and settings (those that the method reads).

    Args:
        frame: as :func:`sega_bench.analysis.summary.load` gives it.
        axes: the sweep's.
        answers: a study's answers; None for a sweep.
        criteria: by which settings are judged.

    Returns:
        One row for each number: ``claim``, ``measure``, ``direction`` (whether concepts were ``added``,
        ``removed``, or ``mixed``), ``concepts`` (a JSON list, or "all"), ``at``, ``value``, ``low`` and
        ``high`` (95 %, over prompts and seeds; Wilson's for shares), ``n``. ``at`` is the one setting that
        isolation and robustness are measured at: the best one over all concept sets.
    """
    edited = frame.loc[~frame["is_reference"] & (frame["status"] == "done"), _needed(frame, axes, criteria)]
    settings = [axis for axis in axes if axis not in _NO_SETTING]
    rows: list[_Row] = []
    for direction, part in edited.groupby(_direction(edited), sort=False):
        rows += [row | {"direction": direction} for row in _of_direction(part, settings, answers, criteria)]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _needed(frame: pd.DataFrame, axes: Sequence[str], criteria: Criteria) -> list[str]:
    """The table's columns that a claim may need."""
    scores = {GAIN, COST, *ISOLATION, *COMPARED, "attribute_leaked", *criteria.columns(frame)}
    settings = {*axes, *_NO_SETTING, SCALE, "reference_key", *_PAIR}
    if frame["replay"].notna().any():  # replays are set against their like in every setting
        settings |= set(SETTING_COLUMNS) - {"key"}
    return [name for name in frame if name in scores | settings]


def _direction(edited: pd.DataFrame) -> pd.Series[Any]:
    direction = edited["reverse_editing_direction"].astype(str).str.lower()
    return direction.map({"false": "added", "true": "removed"}).fillna("mixed")


def _of_direction(
    of_all: pd.DataFrame, settings: Sequence[str], answers: StudyAnswers, criteria: Criteria
) -> Iterator[_Row]:
    edited = of_all[of_all["method"] == "sega"]
    own = edited[edited["replay"].isna()]
    best, curves, pairs = at_best(own, settings, answers, criteria), _curves(own, settings), _pairs(edited)
    against = {method: _against(of_all, method, settings) for method in of_all["method"].unique()}
    place = ", ".join(f"{name} {format_value(best[name].iloc[0])}" for name in settings) if len(best) else ""
    sets = [ALL, *of_all["concepts"].unique()]
    for concepts in sets:

        def of(table: pd.DataFrame, concepts: str = concepts) -> pd.DataFrame:
            return table if concepts == ALL else table[table["concepts"] == concepts]

        estimates = [("monotonicity", "correlation with the scale", "", _correlation(of(curves)))]
        estimates += [("isolation", name, place, value) for name, value in _isolation(of(best))]
        estimates += [("robustness", name, place, share_of(of(best), name)) for name in _successes(best)]
        estimates += [("uniqueness", "gain replayed / own", "", ratio_of(of(pairs), "replayed", GAIN))]
        for method, differences in against.items():
            names = [name for name in COMPARED if name in differences and method != "sega"]
            estimates += [
                ("baselines", f"{name}, {method} - sega", "", _difference(of(differences), name))
                for name in names
            ]
        for claim, measure, at, value in estimates:
            if value.n:
                where = {"claim": claim, "measure": measure, "concepts": concepts, "at": at}
                yield where | {"value": value.mean, "low": value.low, "high": value.high, "n": value.n}


def _correlation(curves: pd.DataFrame) -> Estimate:
    """The mean correlation; its interval ends where correlations do."""
    estimate = mean_of(curves, "correlation")
    return replace(estimate, low=max(estimate.low, -1.0), high=min(estimate.high, 1.0))


def _curves(own: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """Correlation of gain with scale, per image and per value of every other axis."""
    by = ["concepts", "prompt", "seed", *(name for name in settings if name != SCALE)]
    is_axis = SCALE in settings and pd.api.types.is_numeric_dtype(own[SCALE])
    return correlations(own if is_axis else own.iloc[:0], SCALE, GAIN, by)


def _pairs(edited: pd.DataFrame) -> pd.DataFrame:
    """Each replay paired with the prompt's own edit."""
    is_own = edited["replay"].isna()
    if is_own.all():
        return pd.DataFrame(columns=[*_PAIR, GAIN, "replayed"])
    alike = [name for name in SETTING_COLUMNS if name not in ("key", "replay")]
    replayed = edited.loc[~is_own, [*alike, GAIN]].rename(columns={GAIN: "replayed"})
    return replayed.merge(edited.loc[is_own, [*alike, GAIN]], on=alike)


def _against(edited: pd.DataFrame, method: str, settings: Sequence[str]) -> pd.DataFrame:
    """The scores of a method's cells minus those of SEGA's matching cells."""
    own_edits = edited[edited["replay"].isna()]
    others, own = (own_edits[own_edits["method"] == name] for name in (method, "sega"))
    read = [name for name in settings if others[name].notna().any()]
    alike = ["reference_key", "prompt", "seed", "concepts", *read]
    names = [name for name in COMPARED if name in edited and edited[name].notna().any()]
    pairs = others[[*alike, *names]].merge(own[[*alike, *names]], on=alike, suffixes=("", "_sega"))
    return pairs[alike].assign(**{name: pairs[name] - pairs[f"{name}_sega"] for name in names})


def _difference(differences: pd.DataFrame, score: str) -> Estimate:
    estimate = mean_of(differences, score)
    # Identical successes have no variance, but that does not make the interval a point.
    is_certain = score in SUCCESSES and estimate.low == estimate.high
    return replace(estimate, low=float("nan"), high=float("nan")) if is_certain else estimate


def _isolation(best: pd.DataFrame) -> Iterator[tuple[str, Estimate]]:
    for name in ISOLATION:
        if name in best and best[name].notna().any():
            # A share needs a proportion's interval: no leak observed does not mean that none ever happens.
            yield name, (share_of if name == "attribute_leakage" else mean_of)(best, name)
    if "attribute_leaked" in best and best["attribute_leaked"].notna().any():
        judged = best[best["attribute_leaked"].notna()]
        leaked = judged["attribute_leaked"].map(json.loads)
        for name in sorted({name for names in leaked for name in names}):
            flipped = leaked.map(lambda names, name=name: float(name in names))
            yield f"flipped {name}", share_of(judged.assign(flipped=flipped), "flipped")


def _successes(best: pd.DataFrame) -> list[str]:
    """The best success score that was taken."""
    return [name for name in SUCCESSES if name in best and best[name].notna().any()][:1]

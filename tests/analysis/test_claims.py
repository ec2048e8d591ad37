"""The paper's claims from made-up rows, whose numbers are known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from sega_bench.analysis.claims import claims
from sega_bench.analysis.columns import to_frame
from sega_bench.analysis.groups import ALL
from sega_bench.analysis.scores import GAIN
from sega_bench.cell import Cell, Edit
from sega_bench.stats.intervals import wilson
from sega_bench.store import Record

Scored = tuple[Cell, Mapping[str, Any]]
SCALE = "edit_guidance_scale"


def cell(seed: int = 0, concept: str = "smile", scale: float = 5.0, **settings: Any) -> Cell:
    return Cell("p", seed, (Edit(concept, scale, settings.pop("threshold", 0.9)),), **settings)


def found(rows: Sequence[Scored], *axes: str) -> pd.DataFrame:
    references = dict.fromkeys(one.reference() for one, _ in rows)
    records = [Record(one, "done") for one in references] + [Record(one, "done", scores=s) for one, s in rows]
    return claims(to_frame([record.row() for record in records]), axes)


def the(table: pd.DataFrame, claim: str, concepts: str = ALL) -> pd.Series:
    (row,) = table[(table["claim"] == claim) & (table["concepts"] == concepts)].to_dict("records")
    return pd.Series(row)


def test_monotonicity_is_the_mean_correlation_of_each_images_curve() -> None:
    gains = {0: [0.1, 0.2, 0.3], 1: [0.1, 0.3, 0.2], 2: [0.3, 0.2, 0.1]}
    rows = [
        (cell(seed, scale=scale), {GAIN: gain})
        for seed, curve in gains.items()
        for scale, gain in zip((1, 2, 4), curve, strict=True)
    ]
    rows.append((cell(3, scale=1), {GAIN: 0.9}))  # no curve of its own, and part of none
    row = the(found(rows, SCALE), "monotonicity")
    assert (row["value"], row["n"]) == (pytest.approx((1 + 0.5 - 1) / 3), 3)
    assert -1 <= row["low"] < row["value"] < row["high"] <= 1


def test_no_axis_no_monotonicity_and_two_values_are_none() -> None:
    rows = [(cell(seed, scale=scale), {GAIN: scale}) for seed in range(3) for scale in (1, 2)]
    assert "monotonicity" not in set(found(rows, SCALE)["claim"])
    assert "monotonicity" not in set(found(rows)["claim"])


def test_isolation_and_robustness_are_measured_at_the_best_setting() -> None:
    rows = []
    for seed in range(4):
        for threshold, gain, cost in ((0.5, 0.5, 0.9), (0.8, 0.49, 0.1), (0.9, 0.0, 0.09)):
            success = float(seed > 0) if threshold == 0.8 else 0.0
            scores = {GAIN: gain, "lpips": cost, "changed_fraction": threshold, "success": success}
            rows.append((cell(seed, threshold=threshold), scores))
    table = found(rows, "edit_threshold")
    touched, robust = the(table, "isolation"), the(table, "robustness")
    assert (touched["measure"], touched["at"]) == ("changed_fraction", "edit_threshold 0.8")
    assert (touched["value"], touched["n"]) == (pytest.approx(0.8), 4)
    assert (robust["value"], robust["n"]) == (0.75, 4)
    assert (robust["low"], robust["high"]) == pytest.approx(wilson(3, 4))


def test_the_better_judge_of_success_is_asked_and_who_needed_nothing_is_left_out() -> None:
    rows = [(cell(seed), {"success": 0.0, "attribute_success": 1.0}) for seed in range(3)]
    rows.append((cell(3), {"success": 0.0, "attribute_success": math.nan}))
    row = the(found(rows), "robustness")
    assert (row["measure"], row["value"], row["n"]) == ("attribute_success", 1.0, 3)


def test_images_of_one_seed_are_one_trial() -> None:
    rows = [(cell(seed, concept), {"success": 1.0}) for seed in range(3) for concept in ("a", "b", "c")]
    table = found(rows)
    assert the(table, "robustness")["n"] == 9
    assert (the(table, "robustness")["low"], the(table, "robustness")["high"]) == pytest.approx(wilson(3, 3))
    assert the(table, "robustness", json.dumps(["a"]))["n"] == 3


def test_the_leakage_matrix_is_a_share_for_each_concept_and_attribute() -> None:
    leaks = {("smile", 0): ["hair"], ("smile", 1): ["hair", "beard"], ("hat", 0): [], ("hat", 1): ["beard"]}
    rows = [(cell(seed, concept), {"attribute_leaked": names}) for (concept, seed), names in leaks.items()]
    table = found(rows)
    matrix = table[table["claim"] == "isolation"].set_index(["concepts", "measure"])["value"]
    assert matrix['["smile"]', "flipped hair"] == 1.0
    assert matrix['["smile"]', "flipped beard"] == matrix['["hat"]', "flipped beard"] == 0.5
    assert ('["hat"]', "flipped hair") not in matrix.index
    assert matrix[ALL, "flipped hair"] == 0.5


def test_uniqueness_is_the_replayed_gain_in_terms_of_the_own() -> None:
    rows = []
    for seed, (own, replayed) in enumerate([(0.2, 0.1), (0.6, 0.5)]):
        rows += [(cell(seed), {GAIN: own}), (replace(cell(seed), replay="q"), {GAIN: replayed})]
    rows.append((replace(cell(2), replay="q"), {GAIN: 9.0}))  # whose own edit is not there
    row = the(found(rows, "replay"), "uniqueness")
    assert (row["value"], row["n"]) == (pytest.approx(0.75), 2)
    half = 0.125 * stats.t.ppf(0.975, 1)  # linearised: the two differ by (0.25 - 0) around the ratio
    assert (row["low"], row["high"]) == pytest.approx((0.75 - half, 0.75 + half))


def test_methods_are_compared_in_pairs() -> None:
    """Seeds differ by more than methods do, and it does not matter."""
    rows: list[Scored] = []
    for seed in range(4):
        for threshold in (0.5, 0.9):
            rows.append((cell(seed, threshold=threshold), {GAIN: 10.0 * seed + threshold}))
        rows.append((replace(cell(seed), method="composable"), {GAIN: 10.0 * seed - 0.1}))
    row = the(found(rows, "method", "edit_threshold"), "baselines")
    assert row["measure"] == f"{GAIN}, composable - sega"
    assert (row["value"], row["low"], row["high"]) == pytest.approx((-0.8, -0.8, -0.8))
    assert row["n"] == 8  # a method that reads no threshold meets each of SEGA's


def test_no_success_seen_to_differ_is_no_certainty() -> None:
    rows: list[Scored] = [(cell(seed), {"success": 1.0}) for seed in range(3)]
    rows += [(replace(cell(seed), method="prompt"), {"success": 1.0}) for seed in range(3)]
    row = the(found(rows, "method"), "baselines")
    assert (row["value"], row["n"]) == (0.0, 3)
    assert math.isnan(row["low"])


def test_nothing_seen_to_leak_is_no_certainty() -> None:
    rows = [(cell(seed), {"attribute_leakage": 0.0, "attribute_leaked": []}) for seed in range(4)]
    row = the(found(rows), "isolation")
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.0, *wilson(0, 4)))


def test_adding_and_removing_are_told_apart_and_other_methods_left_out() -> None:
    rows: list[Scored] = [(cell(0), {"changed_fraction": 0.1})]
    rows.append((replace(cell(0), method="prompt"), {"changed_fraction": 0.9}))
    removed = Cell("p", 0, (Edit("smile", reverse_editing_direction=True),))
    both = Cell("p", 0, (*removed.edits, Edit("hat")))
    rows += [(removed, {"changed_fraction": 0.2}), (both, {"changed_fraction": 0.3})]
    table = found(rows, "method")
    pooled = table[(table["concepts"] == ALL) & (table["claim"] == "isolation")].set_index("direction")[
        "value"
    ]
    assert pooled.to_dict() == {"added": 0.1, "removed": 0.2, "mixed": 0.3}


def test_other_methods_alone_say_nothing_of_sega() -> None:
    scores = {GAIN: 0.5, "lpips": 0.1, "changed_fraction": 0.1, "success": 1.0}
    rows = [(replace(cell(seed, scale=1), method="prompt"), scores) for seed in range(3)]
    assert found(rows).empty
    assert found(rows, "method", "edit_warmup_steps").empty


def test_a_sweep_that_says_nothing_claims_nothing() -> None:
    assert found([(cell(), {})]).empty
    reference = to_frame([Record(Cell("p", 0), "done").row()])
    assert list(claims(reference, ["edit_threshold"]).columns)[:2] == ["claim", "measure"]
    assert claims(reference, ["edit_threshold"]).empty

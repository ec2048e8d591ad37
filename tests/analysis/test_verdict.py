"""The verdict on invented scores whose right answer is known, and what must never move it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sega_bench.analysis.verdict import ALPHA, Evidence, judge, row_means

Floats = NDArray[np.float64]


def evidence(
    success: list[float] | None,
    gain: list[float],
    cost: list[float] | None,
    *,
    seeds: int = 8,
    noise: float = 0.02,
    seed: int = 0,
) -> Evidence:
    """Settings with these means; a success rate fails in the first images, gain and cost vary by image."""
    rng = np.random.default_rng(seed)
    face_N = rng.normal(0, 0.1, seeds)

    def around(means: list[float], scale: float) -> Floats:
        return np.array(means)[:, None] + face_N * scale + rng.normal(0, noise, (len(means), seeds))

    success_MN = None
    if success is not None:
        success_MN = np.array([[float(i >= round((1 - s) * seeds)) for i in range(seeds)] for s in success])
    cost_MN = None if cost is None else np.maximum(around(cost, 0.1), 1e-3)
    return Evidence(success_MN, around(gain, 1.0), cost_MN, np.zeros(seeds, dtype=int), np.arange(seeds))


# --- known answers ---


def test_the_gentlest_of_the_settings_that_work() -> None:
    verdict = judge(evidence([0.5, 1.0, 1.0, 1.0], [0.3, 0.5, 0.55, 0.6], [0.1, 0.2, 0.3, 0.5]))
    assert verdict.setting == 1
    assert verdict.works.tolist() == [False, True, True, True]
    assert verdict.chosen_share[1] > 0.9
    assert verdict.expected == verdict.reached == 1.0


def test_without_a_judge_gain_decides_within_its_margin() -> None:
    verdict = judge(evidence(None, [0.3, 0.58, 0.6], [0.1, 0.2, 0.5], seeds=32, noise=0.005))
    assert verdict.setting == 1  # .58 is within 5 % of .60, .30 is not
    assert verdict.works.tolist() == [False, True, True]
    stricter = replace(evidence(None, [0.3, 0.58, 0.6], [0.1, 0.2, 0.5], seeds=32, noise=0.005), margin=0.01)
    assert judge(stricter).setting == 2


def test_nothing_works_where_no_concept_arrives() -> None:
    verdict = judge(evidence([0.0, 0.0, 0.0], [0.0, 0.001, 0.0], [0.1, 0.2, 0.3]))
    assert verdict.setting is None
    assert not verdict.works.any()
    assert math.isnan(verdict.reached)


def test_what_a_placebo_reaches_does_not_count() -> None:
    scored = evidence(None, [0.2, 0.3], [0.1, 0.2], noise=0.01)
    assert judge(scored).setting is not None
    assert judge(replace(scored, gain_floor=0.9)).setting is None


def test_as_good_are_those_whose_cost_cannot_be_told_apart() -> None:
    rng = np.random.default_rng(1)
    cost_MN = np.array([[0.2], [0.201], [0.5]]) * np.exp(rng.normal(0, 0.1, (3, 12)))
    scored = Evidence(np.ones((3, 12)), np.full((3, 12), 0.5), cost_MN, np.zeros(12), np.arange(12))
    verdict = judge(scored)
    assert verdict.setting in (0, 1)
    assert verdict.as_good.tolist() == [verdict.setting == 1, verdict.setting == 0, False]
    assert verdict.sureness == pytest.approx(1.0)


def test_a_single_image_is_judged_by_its_values_and_says_so() -> None:
    scored = Evidence(
        np.ones((3, 1)),
        np.array([[0.64], [0.62], [0.62]]),
        np.array([[0.4], [0.3], [0.2]]),
        np.zeros(1),
        np.zeros(1),
    )
    verdict = judge(scored)
    assert verdict.setting == 2
    assert not verdict.is_tested
    assert np.isnan(verdict.chosen_share).all()
    assert math.isnan(verdict.expected)


def test_too_few_seeds_promise_nothing() -> None:
    verdict = judge(evidence([1.0, 1.0], [0.5, 0.5], [0.1, 0.2], seeds=3))
    assert math.isnan(verdict.expected)


def test_no_scores_no_verdict() -> None:
    empty = Evidence(None, np.full((2, 4), np.nan), None, np.zeros(4), np.arange(4))
    verdict = judge(empty)
    assert (verdict.setting, verdict.best_tried) == (None, None)


def test_missing_cells_are_neither_praised_nor_blamed() -> None:
    """The second setting failed on the hard images, which would make its mean the best."""
    success_MN = np.array([[1.0] * 8, [np.nan] * 4 + [1.0] * 4])
    gain_MN = np.array([[0.2] * 4 + [0.6] * 4, [np.nan] * 4 + [0.55] * 4])
    cost_MN = np.array([[0.2] * 8, [np.nan] * 4 + [0.3] * 4])
    assert judge(Evidence(success_MN, gain_MN, cost_MN, np.zeros(8), np.arange(8))).setting == 0


# --- what must not move it ---

scores = st.integers(0, 10_000)


def draw(seed: int) -> Evidence:
    """A sweep of random settings, some of which work."""
    rng = np.random.default_rng(seed)
    settings = int(rng.integers(2, 6))
    rates = sorted(rng.choice([0.25, 0.5, 1.0, 1.0], settings).tolist())
    gains = (0.2 + 0.4 * np.array(rates) + rng.uniform(0, 0.05, settings)).tolist()
    return evidence(rates, gains, rng.uniform(0.05, 0.6, settings).tolist(), seed=seed)


def chosen(scored: Evidence) -> int | None:
    return judge(scored, resamples=0).setting


@given(scores)
def test_a_duplicate_setting_moves_nothing(seed: int) -> None:
    scored = draw(seed)
    before = chosen(scored)
    assert scored.success_MN is not None
    assert scored.cost_MN is not None
    for m in range(len(scored.gain_MN)):
        twice = replace(
            scored,
            success_MN=np.vstack([scored.success_MN, scored.success_MN[m]]),
            gain_MN=np.vstack([scored.gain_MN, scored.gain_MN[m]]),
            cost_MN=np.vstack([scored.cost_MN, scored.cost_MN[m]]),
        )
        assert chosen(twice) in (before, len(scored.gain_MN) if m == before else before)


@given(scores)
def test_an_irrelevant_setting_moves_nothing(seed: int) -> None:
    """One that does nothing at no cost, and one that does as much as the best at more cost than any."""
    scored = draw(seed)
    before = judge(scored, resamples=0)
    assert scored.success_MN is not None
    assert scored.cost_MN is not None
    idle = replace(
        scored,
        success_MN=np.vstack([scored.success_MN, np.zeros(8)]),
        gain_MN=np.vstack([scored.gain_MN, np.zeros(8)]),
        cost_MN=np.vstack([scored.cost_MN, np.full(8, 1e-6)]),
    )
    assert chosen(idle) == before.setting
    if before.best_tried is not None:
        harsh = replace(
            scored,
            success_MN=np.vstack([scored.success_MN, scored.success_MN[before.best_tried]]),
            gain_MN=np.vstack([scored.gain_MN, scored.gain_MN[before.best_tried]]),
            cost_MN=np.vstack([scored.cost_MN, np.full(8, 10.0)]),
        )
        assert chosen(harsh) == before.setting


@pytest.mark.parametrize("rescale", [np.sqrt, np.square, np.log1p, lambda cost: 100 * cost + 3])
@given(seed=scores)
def test_no_rescaling_of_cost_moves_it(rescale: Callable[[Floats], Floats], seed: int) -> None:
    scored = draw(seed)
    assert scored.cost_MN is not None
    assert chosen(replace(scored, cost_MN=rescale(scored.cost_MN))) == chosen(scored)


@given(scores)
def test_the_order_of_settings_and_images_does_not_matter(seed: int) -> None:
    scored = draw(seed)
    rng = np.random.default_rng(seed)
    m, n = rng.permutation(len(scored.gain_MN)), rng.permutation(8)
    assert scored.success_MN is not None
    assert scored.cost_MN is not None
    shuffled = replace(
        scored,
        success_MN=scored.success_MN[m][:, n],
        gain_MN=scored.gain_MN[m][:, n],
        cost_MN=scored.cost_MN[m][:, n],
        seed_N=np.asarray(scored.seed_N)[n],
    )
    before, after = chosen(scored), chosen(shuffled)
    assert (None if after is None else int(m[after])) == before


# --- the promise ---


@pytest.mark.parametrize("seeds", [4, 8])
def test_a_setting_that_adds_nothing_is_rarely_said_to_work(seeds: int) -> None:
    """The chance that any of ten settings without effect works, over 400 sweeps of pure noise."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        gain_MN = rng.normal(0, 1, (1, seeds)) * 0.5 + rng.normal(0, 1, (10, seeds))
        wrong += (
            judge(Evidence(None, gain_MN, None, np.zeros(seeds), np.arange(seeds)), 0).setting is not None
        )
    assert wrong / 400 <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / 400)


def test_means_skip_what_is_missing() -> None:
    values_MN = np.array([[1.0, np.nan, 3.0], [np.nan] * 3])
    assert row_means(values_MN).tolist()[0] == 2.0
    assert math.isnan(row_means(values_MN)[1])
    assert row_means(values_MN, np.array([3.0, 1.0, 1.0]))[0] == 1.5


# --- what looked like a verdict and was none ---


def test_a_setting_that_never_succeeds_is_no_verdict_however_steady_its_gain() -> None:
    scored = Evidence(
        np.zeros((2, 4)), np.full((2, 4), 0.002), np.array([[0.1] * 4, [0.2] * 4]), np.zeros(4), np.arange(4)
    )
    assert judge(scored).setting is None


def test_a_setting_with_a_single_cell_is_not_preferred() -> None:
    success_MN = np.array([[1.0, np.nan, np.nan, np.nan], [1.0] * 4])
    cost_MN = np.array([[0.05, np.nan, np.nan, np.nan], [0.2] * 4])
    gain_MN = np.where(np.isnan(success_MN), np.nan, 0.5)
    assert judge(Evidence(success_MN, gain_MN, cost_MN, np.zeros(4), np.arange(4))).setting == 1


def test_two_prompts_with_one_seed_test_nothing() -> None:
    scored = Evidence(np.ones((2, 2)), np.full((2, 2), 0.5), None, np.arange(2), np.zeros(2))
    verdict = judge(scored)
    assert not verdict.is_tested
    assert np.isnan(verdict.chosen_share).all()

"""Simultaneous comparisons of settings, shares of successes and resamples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sega_bench.stats.multiple import (
    compare_with_best,
    compare_with_reference,
    detectable,
    simultaneous_error_rate,
)
from sega_bench.stats.proportions import clopper_pearson, share_intervals, wilson
from sega_bench.stats.resampling import bootstrap_counts, held_out_blocks

ONE_PROMPT, SEEDS = np.zeros(8), np.arange(8)


# --- settings ---


def test_one_comparison_is_a_paired_t_test() -> None:
    first, second = np.random.default_rng(1).normal(size=(2, 8))
    result = compare_with_reference(first[None], second, ONE_PROMPT, SEEDS)
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (result.low[0], result.high[0]) == pytest.approx((expected.low, expected.high))


def test_correlated_comparisons_need_less_than_bonferroni_and_more_than_one_alone() -> None:
    correlation = np.full((5, 5), 0.5) + 0.5 * np.eye(5)
    rate = simultaneous_error_rate(correlation, 12, 0.05, two_sided=False)
    bonferroni, alone = stats.t.isf(0.05 / 5, 12), stats.t.isf(0.05, 12)
    assert alone < stats.t.isf(rate, 12) <= bonferroni


def test_a_setting_that_is_there_twice_counts_once() -> None:
    values = np.random.default_rng(2).normal(size=(4, 8))
    once = compare_with_reference(values[1:], values[0], ONE_PROMPT, SEEDS)
    twice = compare_with_reference(values[[1, 2, 3, 3, 1]], values[0], ONE_PROMPT, SEEDS)
    np.testing.assert_allclose(twice.low[:3], once.low)


def test_one_sided_bounds_are_tighter_and_open_on_the_other_side() -> None:
    values = np.random.default_rng(3).normal(size=(5, 8))
    both = compare_with_reference(values[1:], values[0], ONE_PROMPT, SEEDS)
    lower = compare_with_reference(values[1:], values[0], ONE_PROMPT, SEEDS, side="lower")
    assert (lower.low > both.low).all()
    assert np.isposinf(lower.high).all()


def test_a_much_worse_setting_is_excluded_and_a_copy_of_the_best_is_not() -> None:
    values = np.random.default_rng(4).normal(size=(3, 8)) * 0.01
    values[1] -= 5
    values[2] = values[0]
    result = compare_with_best(values, ONE_PROMPT, SEEDS, margin=0.1)
    assert result.may_be_best.tolist() == [True, False, True]
    assert result.low[0] == result.low[2] == 0.0
    assert math.isnan(result.low[1])


def test_settings_without_values_are_not_compared() -> None:
    values = np.array([[1.0, 2.0, 3.0, 5.0], [math.nan] * 4])
    result = compare_with_best(values, np.zeros(4), np.arange(4))
    assert result.best == 0
    assert math.isnan(result.low[1])
    assert compare_with_best(values[1:], np.zeros(4), np.arange(4)).best is None


def test_equal_successes_in_every_pair_still_leave_a_difference_possible() -> None:
    result = compare_with_reference(np.ones((1, 8)), np.ones(8), ONE_PROMPT, SEEDS, shares=True)
    assert result.difference[0] == 0
    assert result.low[0] < -0.1
    assert result.high[0] > 0.1


def test_equal_settings_seldom_differ() -> None:
    rng, sweeps = np.random.default_rng(5), 150
    differ, excluded = 0, 0
    for _ in range(sweeps):
        values = rng.normal(size=(20, 4)) + rng.normal(size=4)
        differ += compare_with_reference(values[1:], values[0], np.zeros(4), np.arange(4)).differs.any()
        best = compare_with_best(values, np.zeros(4), np.arange(4), margin=1e-9)
        excluded += not best.may_be_best.all()
    limit = 0.06 + 3 * math.sqrt(0.06 * 0.94 / sweeps)
    assert differ / sweeps <= limit
    assert excluded / sweeps <= limit


def test_four_seeds_tell_twenty_settings_apart_by_four_deviations() -> None:
    assert detectable(20, 4) == pytest.approx(4.1, abs=0.1)
    assert detectable(20, 8) == pytest.approx(1.5, abs=0.1)
    assert detectable(20, 4, power=0.8) > detectable(20, 4)
    assert math.isnan(detectable(20, 1))
    assert math.isnan(detectable(1, 8))


# --- successes ---


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_of_independent_trials_are_scipys(counted: tuple[int, int]) -> None:
    k, n = counted
    share, trials = np.array([k / n]), np.array([float(n)])
    for function, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        expected = stats.binomtest(k, n).proportion_ci(method=method)
        low, high = function(share, trials, 0.025)
        assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_eight_successes_of_eight_are_not_certain() -> None:
    result = share_intervals(np.ones((1, 8)), ONE_PROMPT, SEEDS)
    assert (result.mean[0], result.high[0], result.trials[0]) == (1.0, 1.0, 8.0)
    assert 0.6 < result.low[0] < 0.7


def test_successes_that_concepts_share_are_no_more_trials() -> None:
    once = np.array([[1.0, 1, 0, 1, 0, 1, 1, 0]])
    often = share_intervals(np.repeat(once, 4, axis=1), np.zeros(32), np.repeat(np.arange(8), 4))
    assert (often.trials[0], often.n[0]) == (8.0, 32)


def test_a_bound_for_many_settings_is_lower_than_for_one() -> None:
    values = np.ones((1, 8))
    alone = share_intervals(values, ONE_PROMPT, SEEDS, side="lower")
    many = share_intervals(values, ONE_PROMPT, SEEDS, side="lower", family=20)
    assert alone.low[0] == pytest.approx(0.05 ** (1 / 8))
    assert many.low[0] == pytest.approx(0.0025 ** (1 / 8))


# --- resamples ---


def test_a_resample_draws_seeds_under_all_their_prompts() -> None:
    prompt, seed = (axis.ravel() for axis in np.indices((2, 4)))
    counts = bootstrap_counts(prompt, seed, 50)
    np.testing.assert_array_equal(counts[:, :4], counts[:, 4:])
    assert (counts.sum(axis=1) == 8).all()
    np.testing.assert_array_equal(counts, bootstrap_counts(prompt, seed, 50))


def test_a_resample_of_a_nested_design_draws_the_seeds_of_each_prompt() -> None:
    prompt = np.repeat(np.arange(3), 4)
    counts = bootstrap_counts(prompt, np.arange(12), 50)
    of_prompt = counts.reshape(50, 3, 4).sum(axis=2)
    assert (of_prompt.sum(axis=1) == 12).all()
    assert (of_prompt % 4 == 0).all()


def test_every_value_is_held_out_once() -> None:
    prompt, seed = (axis.ravel() for axis in np.indices((3, 30)))
    splits = held_out_blocks(prompt, seed)
    assert splits.shape == (20, 90)
    assert (splits.sum(axis=0) == 1).all()
    assert not len(held_out_blocks(np.zeros(2), np.zeros(2)))

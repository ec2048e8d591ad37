"""Intervals over prompts and seeds: known answers, properties and a small simulation of their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from sega_bench.stats.blocks import Blocks
from sega_bench.stats.random_effects import mean_interval, mean_intervals

Floats = NDArray[np.float64]


def grid(prompts: int, seeds: int, crossed: bool = True) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    prompt, seed = (axis.ravel() for axis in np.indices((prompts, seeds)))
    return prompt, seed if crossed else seed + seeds * prompt


def test_symmetric_values_of_one_prompt_have_scipys_t_interval() -> None:
    values = np.array([1.0, 2.0, 4.0, 5.0])
    result = mean_interval(values, np.zeros(4), np.arange(4))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
    assert (result.mean, result.n, result.df, result.scope) == (3.0, 4, 3.0, "seeds")


def test_skewed_values_have_a_longer_interval_on_the_side_of_their_tail() -> None:
    result = mean_interval(np.array([0.0, 0.1, 0.2, 3.0]), np.zeros(4), np.arange(4))
    assert result.high - result.mean > result.mean - result.low
    assert result.se == pytest.approx(stats.sem([0.0, 0.1, 0.2, 3.0]))


def test_crossed_prompts_and_seeds_have_the_standard_error_of_the_analysis_of_variance() -> None:
    values = np.random.default_rng(1).normal(size=(4, 6)) + 3 * np.arange(4)[:, None] + 2 * np.arange(6)
    of_prompt, of_seed = values.mean(axis=1), values.mean(axis=0)
    prompt_ms, seed_ms = 6 * of_prompt.var(ddof=1), 4 * of_seed.var(ddof=1)
    residual = values - of_prompt[:, None] - of_seed + values.mean()
    residual_ms = (residual**2).sum() / 15
    variance = prompt_ms + seed_ms - residual_ms
    df = variance**2 / (prompt_ms**2 / 3 + seed_ms**2 / 5 + residual_ms**2 / 15)
    result = mean_interval(values.ravel(), *grid(4, 6))
    assert (result.se, result.df) == pytest.approx((math.sqrt(variance / 24), df))
    assert result.scope == "all"


def test_nested_prompts_have_the_t_interval_of_their_means() -> None:
    values = np.random.default_rng(2).normal(size=(5, 3))
    result = mean_interval(values.ravel(), *grid(5, 3, crossed=False))
    assert (result.se, result.df) == pytest.approx((stats.sem(values.mean(axis=1)), 4))


def test_two_prompts_are_fixed_unless_others_are_asked_for() -> None:
    values = np.array([[0.0, 1.0, 2.0, 4.0], [5.0, 6.0, 8.0, 9.0]])
    result = mean_interval(values.ravel(), *grid(2, 4))
    assert result.scope == "seeds"
    assert (result.se, result.df) == pytest.approx((stats.sem(values.mean(axis=0)), 3))
    wide = mean_interval(values.ravel(), *grid(2, 4), scope="all")
    assert wide.high - wide.low > 3 * (result.high - result.low)


def test_two_prompts_with_seeds_of_their_own_have_welchs_degrees_of_freedom() -> None:
    first, second = np.array([0.0, 1.0, 2.0, 4.0]), np.array([5.0, 9.0, 1.0, 2.0])
    result = mean_interval(np.append(first, second), *grid(2, 4, crossed=False))
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert result.df == pytest.approx(expected.df)
    assert result.se == pytest.approx(math.hypot(stats.sem(first), stats.sem(second)) / 2)


def test_variances_are_never_negative() -> None:
    values = np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]])
    result = mean_interval(values.ravel(), *grid(3, 2))
    assert result.se > 0
    assert result.low < result.mean < result.high


def test_equal_values_have_an_interval_of_no_width() -> None:
    for crossed in (True, False):
        result = mean_interval(np.full(12, 0.1), *grid(4, 3, crossed))
        assert (result.low, result.high) == pytest.approx((0.1, 0.1), abs=1e-15)


@pytest.mark.parametrize("values", [[], [1.0], [math.nan, 2.0]])
def test_one_seed_tells_nothing(values: list[float]) -> None:
    result = mean_interval(np.array(values), np.zeros(len(values)), np.arange(len(values)))
    assert math.isnan(result.low)
    assert math.isnan(result.high)
    assert result.n == np.isfinite(values).sum()


def test_many_prompts_with_one_seed_speak_of_other_prompts_with_it() -> None:
    values = np.array([1.0, 2.0, 4.0, 5.0])
    result = mean_interval(values, np.arange(4), np.zeros(4))
    assert result.scope == "prompts"
    assert result.se == pytest.approx(stats.sem(values))


def test_seeds_that_prompts_do_not_share_are_nested() -> None:
    assert Blocks.of(*grid(3, 4)).crossed
    nested = Blocks.of(*grid(3, 4, crossed=False))
    assert (nested.crossed, nested.prompts, nested.seeds) == (False, 3, 4)


def test_several_values_of_a_picture_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(3).normal(size=8)
    once = mean_interval(values, np.zeros(8), np.arange(8))
    often = mean_interval(np.repeat(values, 5), np.zeros(40), np.repeat(np.arange(8), 5))
    assert (often.low, often.high, often.n) == pytest.approx((once.low, once.high, 40))


tables = st.tuples(st.integers(1, 4), st.integers(2, 5), st.booleans(), st.integers(0, 2**32 - 1))


def random_table(table: tuple[int, int, bool, int]) -> tuple[Floats, NDArray[np.intp], NDArray[np.intp]]:
    prompts, seeds, crossed, number = table
    rng = np.random.default_rng(number)
    values = rng.normal(size=(3, prompts * seeds))
    values[:, 1:][rng.random(values[:, 1:].shape) < 0.15] = math.nan
    return values, *grid(prompts, seeds, crossed)


@given(tables, st.sampled_from([-3.0, 0.5, 2.0]), st.integers(-4, 4))
def test_intervals_move_and_stretch_with_their_values(
    table: tuple[int, int, bool, int], factor: float, shift: int
) -> None:
    values, prompt, seed = random_table(table)
    before = mean_intervals(values, prompt, seed)
    after = mean_intervals(factor * values + shift, prompt, seed)
    low, high = factor * before.low + shift, factor * before.high + shift
    if factor < 0:
        low, high = high, low
    np.testing.assert_allclose(after.low, low, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after.high, high, rtol=1e-5, atol=1e-6)


@given(tables)
def test_neither_the_order_of_rows_nor_other_settings_nor_missing_values_matter(
    table: tuple[int, int, bool, int],
) -> None:
    values, prompt, seed = random_table(table)
    before = mean_intervals(values, prompt, seed)
    order = np.random.default_rng(table[3]).permutation(len(prompt))
    shuffled = mean_intervals(values[:, order], prompt[order], seed[order])
    alone = mean_intervals(values[1:2], prompt, seed)
    np.testing.assert_allclose(shuffled.low, before.low, atol=1e-7)
    np.testing.assert_allclose(alone.high, before.high[1:2], atol=1e-7)
    assert before.n.tolist() == np.isfinite(values).sum(axis=1).tolist()


@pytest.mark.parametrize(("prompts", "seeds"), [(1, 4), (1, 8), (2, 4), (4, 4), (4, 8), (8, 8)])
@pytest.mark.parametrize("crossed", [True, False])
@pytest.mark.parametrize("deviation", [1 / 3, 1.0, 2.0])
def test_intervals_cover_the_mean_in_93_to_97_of_100_sweeps(
    prompts: int, seeds: int, crossed: bool, deviation: float
) -> None:
    rng, sweeps = np.random.default_rng(6), 1500
    of_prompt = deviation * rng.normal(size=(sweeps, prompts, 1))
    values = of_prompt + rng.normal(size=(sweeps, 1 if crossed else prompts, seeds))
    values = values + 0.7 * crossed * rng.normal(size=(sweeps, prompts, seeds))
    truth = of_prompt.mean(axis=(1, 2)) if prompts < 3 else np.zeros(sweeps)
    result = mean_intervals(values.reshape(sweeps, -1), *grid(prompts, seeds, crossed))
    covered = float(((result.low <= truth) & (truth <= result.high)).mean())
    tolerance = 3 * math.sqrt(0.95 * 0.05 / sweeps)
    assert 0.93 - tolerance <= covered <= 0.97 + tolerance

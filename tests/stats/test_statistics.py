"""Statistics with known answers, and properties that hold for any values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from sega_bench.stats.correlation import spearman
from sega_bench.stats.intervals import estimate, interval, ratio
from sega_bench.stats.pareto import area_under_front, front, knee

# --- intervals ---


def test_the_interval_of_independent_values_is_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    low, high = interval(values, np.arange(400))
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert interval(values, np.arange(400)) == (low, high)


def test_repeating_a_seeds_value_does_not_narrow_the_interval() -> None:
    values = np.random.default_rng(2).normal(size=20)
    once = interval(values, np.arange(20))
    often = interval(np.repeat(values, 10), np.repeat(np.arange(20), 10))
    np.testing.assert_allclose(once, often)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0]])
def test_one_cluster_tells_nothing(values: list[float]) -> None:
    assert all(map(math.isnan, interval(np.array(values), np.zeros(len(values)))))


def test_the_seeds_of_a_prompt_that_was_drawn_are_drawn_too() -> None:
    """Where prompts differ and their seeds do not, only the number of prompts counts."""
    means = np.random.default_rng(4).normal(size=12)
    prompts = np.repeat(np.arange(12), 5)
    nested = interval(np.repeat(means, 5), np.arange(60), prompts)
    alone = interval(means, np.arange(12))
    blind = interval(np.repeat(means, 5), np.arange(60))
    assert np.ptp(nested) == pytest.approx(np.ptp(alone), rel=0.15)
    assert np.ptp(blind) < 0.6 * np.ptp(nested)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.floats(-9, 9)), min_size=2, max_size=30))
def test_an_interval_lies_within_its_values_and_moves_with_them(rows: list[tuple[int, int, float]]) -> None:
    groups, seeds, values = (np.array(column) for column in zip(*rows, strict=True))
    clusters = 10 * groups + seeds
    low, high = interval(values, clusters, groups)
    if len(set(clusters.tolist())) < 2:
        assert math.isnan(low)
        return
    assert values.min() - 1e-9 <= low <= high <= values.max() + 1e-9
    assert interval(2 * values + 1, clusters, groups) == pytest.approx((2 * low + 1, 2 * high + 1))


def test_an_estimate_is_of_what_there_is() -> None:
    found = estimate(np.array([1.0, math.nan, 3.0]), np.arange(3))
    assert (found.mean, found.n) == (2.0, 2)
    assert found.sd == pytest.approx(math.sqrt(2))
    nothing = estimate(np.array([math.nan]), np.arange(1))
    assert nothing.n == 0
    assert all(map(math.isnan, (nothing.mean, nothing.sd, nothing.low, nothing.high)))


def test_a_ratio_is_of_sums_and_certain_where_it_is_the_same_everywhere() -> None:
    under = np.array([1.0, 2.0, 3.0, 10.0])
    same = ratio(0.5 * under, under, np.arange(4))
    assert (same.mean, same.low, same.high, same.n) == pytest.approx((0.5, 0.5, 0.5, 4))
    found = ratio(np.array([1.0, math.nan, 2.0]), np.array([1.0, 1.0, 5.0]), np.arange(3))
    assert (found.mean, found.n) == (pytest.approx(0.5), 2)
    assert found.low == pytest.approx(0.4)
    assert found.high == pytest.approx(1.0)


def test_a_ratio_to_what_may_be_nothing_has_no_interval() -> None:
    found = ratio(np.array([1.0, 1.0]), np.array([2.0, -1.0]), np.arange(2))
    assert found.mean == 2.0
    assert math.isnan(found.low)
    assert math.isnan(ratio(np.array([1.0]), np.array([0.0]), np.arange(1)).mean)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompts", "seeds", "between_prompts", "between_seeds", "least"),
    [
        (1, 4, 0, 1, 0.84),
        (1, 8, 0, 1, 0.92),
        (1, 32, 0, 1, 0.93),
        (2, 4, 0.3, 1, 0.91),
        (2, 4, 1, 1, 0.80),
        (4, 4, 1, 1, 0.88),
        (8, 4, 1, 1, 0.92),
        (24, 1, 1, 1, 0.93),
    ],
)
def test_the_interval_covers_the_mean_it_is_of(
    prompts: int, seeds: int, between_prompts: float, between_seeds: float, least: float
) -> None:
    """Of normal values, prompts and seeds both random. Four values cannot do better than their range."""
    rng, hits = np.random.default_rng(5), 0
    groups = np.repeat(np.arange(prompts), seeds)
    for _ in range(2000):
        of_prompt = rng.normal(0, between_prompts, prompts)
        low, high = interval(
            of_prompt[groups] + rng.normal(0, between_seeds, len(groups)), np.arange(len(groups)), groups
        )
        hits += low <= 0 <= high
    assert least <= hits / 2000 <= 0.985


# --- the best trade-off ---


Floats = NDArray[np.float64]


def losses(gain: Floats, cost: Floats) -> Floats:
    """Gain and cost as the fronts take them."""
    return np.column_stack([-gain, cost])


points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(points)
def test_the_front_is_what_brute_force_finds(found: list[tuple[int, int]]) -> None:
    def beaten(gain: int, cost: int) -> bool:
        return any(g >= gain and c <= cost and (g, c) != (gain, cost) for g, c in found)

    gain, cost = np.array(found, dtype=float).T
    assert front(losses(gain, cost)).tolist() == [not beaten(*point) for point in found]


@given(points)
def test_the_knee_is_on_the_front(found: list[tuple[int, int]]) -> None:
    gain, cost = np.array(found, dtype=float).T
    best = knee(losses(gain, cost))
    assert best is not None
    assert front(losses(gain, cost))[best]


def test_a_nan_is_never_on_the_front_nor_keeps_another_off() -> None:
    gain, cost = np.array([math.nan, 1.0, 5.0]), np.array([0.0, 1.0, math.nan])
    assert front(losses(gain, cost)).tolist() == [False, True, False]
    assert knee(losses(gain, cost)) == 1
    assert knee(np.empty((0, 2))) is None


def test_the_knee_is_where_more_gain_begins_to_cost() -> None:
    gain, cost = np.array([0.0, 0.8, 0.9, 1.0]), np.array([0.0, 0.1, 0.5, 1.0])
    assert knee(losses(gain, cost)) == 1


def test_of_equal_trade_offs_the_one_with_most_gain_is_best() -> None:
    gain = cost = np.array([0.1, 0.2, 0.3])
    assert knee(losses(gain, cost)) == 2


# --- areas under fronts ---


def test_the_area_of_one_point_is_its_rectangle() -> None:
    assert area_under_front(np.array([0.4]), np.array([0.25])) == pytest.approx(0.3)


def test_the_area_of_a_staircase_is_counted_once() -> None:
    gain, cost = np.array([0.2, 0.5, 0.1]), np.array([0.0, 0.5, 0.4])
    assert area_under_front(gain, cost) == pytest.approx(0.2 * 1.0 + 0.3 * 0.5)


def test_what_gains_nothing_or_keeps_nothing_has_no_area() -> None:
    assert area_under_front(np.array([-0.2, 0.5]), np.array([0.0, 1.5])) == 0.0
    assert math.isnan(area_under_front(np.array([]), np.array([])))
    assert math.isnan(area_under_front(np.array([0.5]), np.array([math.nan])))


@given(points)
def test_the_area_is_what_counting_squares_finds(found: list[tuple[int, int]]) -> None:
    """Gain and cost in sixths: the area is the number of the unit square's cells that a point dominates."""
    gain, cost = np.array(found, dtype=float).T / 6
    squares = sum(any(g > x and c <= y for g, c in found) for x in range(6) for y in range(6))
    assert area_under_front(gain, cost) == pytest.approx(squares / 36)


@given(points, points)
def test_more_points_never_make_the_area_smaller(
    found: list[tuple[int, int]], more: list[tuple[int, int]]
) -> None:
    gain, cost = np.array(found + more, dtype=float).T / 6
    few = area_under_front(gain[: len(found)], cost[: len(found)])
    assert few <= area_under_front(gain, cost) + 1e-12


# --- ranks and proportions ---

numbers = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=12)


@given(numbers)
def test_rank_correlation_is_scipys(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=float).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert math.isnan(spearman(x, y))
    else:
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_rank_correlation_skips_what_was_not_scored() -> None:
    x, y = np.array([1.0, 2, 3, 4]), np.array([5.0, math.nan, 6, 7])
    assert spearman(x, y) == pytest.approx(1.0)
    assert math.isnan(spearman(x[:3], y[:3]))  # two are left

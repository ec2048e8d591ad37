"""The pure rules of a study: who is on a front, what it dominates, who is given more; known answers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sega_bench.stats.intervals import Estimate
from sega_bench.stats.pareto import area_under_front, front, hypervolume, knee
from sega_bench.study.answers import Best, better_and_worse
from sega_bench.study.halving import MARGIN, lower_bounds, promoted, resources
from sega_bench.study.importance import curves
from sega_bench.study.objectives import Objective
from sega_bench.study.space import Setting
from sega_bench.study.trials import Trial

points = st.lists(st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)), min_size=1, max_size=8)


@given(points)
def test_two_losses_are_the_sweeps_gain_and_cost(pairs: list[tuple[float, float]]) -> None:
    gain, cost = np.array(pairs).T
    losses = np.stack([-gain, cost], axis=1)
    area = area_under_front(gain, cost)
    assert hypervolume(losses, np.array([0.0, 1.0])) == pytest.approx(area, abs=1e-12)
    best = knee(losses)
    assert best is not None
    assert front(losses)[best]


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=6))
def test_a_volume_is_the_number_of_unit_cubes_that_are_dominated(corners: list[tuple[int, int, int]]) -> None:
    cubes = itertools.product(range(4), repeat=3)
    count = sum(
        any(all(c <= x for c, x in zip(corner, cube, strict=True)) for corner in corners) for cube in cubes
    )
    assert hypervolume(np.array(corners, dtype=float), np.full(3, 4.0)) == pytest.approx(count)


def test_nothing_dominates_nothing() -> None:
    assert hypervolume(np.array([[math.nan, 0.0], [0.0, 2.0]]), np.ones(2)) == 0
    assert knee(np.empty((0, 2))) is None
    assert knee(np.array([[3.0], [1.0], [2.0]])) == 1


def test_an_interval_of_differences_is_that_of_student() -> None:
    differences = np.array([1.0, 2.0, 3.0])[None, :, None]
    assert lower_bounds(differences)[0, 0] == pytest.approx(2 - 0.2886751345948129 / math.sqrt(3), abs=1e-9)
    assert lower_bounds(differences[:, :1])[0, 0] == -math.inf


def losses(*trials: list[tuple[float, float]]) -> np.ndarray:
    return np.array(trials, dtype=float)


def test_who_is_worse_in_everything_on_every_block_is_dropped() -> None:
    """Blocks differ by ten times what the trials differ by: only pairs can tell."""
    blocks = np.array([0.0, 10.0, -7.0])[:, None]
    better, worse, other = ([[1, 1]] * 3, [[2, 2.001], [2, 2], [2.001, 2]], [[0, 3]] * 3)
    found = promoted(np.array([better, worse, other]) + blocks, np.ones(3, dtype=bool))
    assert found.tolist() == [True, False, True]


def test_who_may_still_be_better_goes_on() -> None:
    near = losses([(1, 1), (1, 1), (1, 1)], [(1.5, 1.5), (0.4, 1.4), (1.1, 1.6)])
    assert promoted(near, np.ones(2, dtype=bool)).tolist() == [True, True]
    one_block = losses([(1, 1)], [(2, 2)])
    assert promoted(one_block, np.ones(2, dtype=bool)).tolist() == [True, True]


def test_of_near_neighbours_one_goes_on_and_only_candidates_are_given_more() -> None:
    """The front reaches from 0 to 10 in both: by 0.05 nothing is better, by 0.3 it is."""
    ends = [(0, 10), (0, 10)], [(10, 0), (10, 0)]
    near, too, other = [(4, 4), (4, 4)], [(3.95, 4.05), (3.95, 4.05)], [(3.7, 4.3), (3.7, 4.3)]
    found = promoted(losses(*ends, near, too, other), np.ones(5, dtype=bool))
    assert found.tolist() == [True, True, True, False, True]
    given_more = np.array([False, False, True, True, True])
    assert promoted(losses(*ends, near, too, other), given_more).tolist() == [False, False, True, False, True]
    assert promoted(losses(*ends, near, too), np.array([True, True, False, True])).tolist() == [
        True,
        True,
        False,
        False,
    ]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_whatever_is_dropped_has_one_that_goes_on_within_the_margin(pairs: list[tuple[float, float]]) -> None:
    found = np.array(pairs)
    goes_on = promoted(np.repeat(found[:, None], 2, axis=1), np.ones(len(found), dtype=bool))
    reach = np.ptp(found[front(found)], axis=0)
    for dropped in found[~goes_on]:
        assert ((found[goes_on] - dropped) <= MARGIN * reach + 1e-9).all(axis=1).any()
    assert goes_on.any()


def test_a_block_that_failed_is_left_out_of_the_pairs() -> None:
    nan = math.nan
    better, worse = [(nan, nan), (1, 1), (1, 1)], [(3, 3), (2, 2), (2, 2)]
    nothing = [(nan, nan)] * 3
    found = promoted(losses(better, worse, nothing), np.ones(3, dtype=bool))
    assert found.tolist() == [True, False, False]
    assert lower_bounds(losses(better))[0].tolist() == [1, 1]


def test_a_constraint_that_is_missed_drops_and_who_misses_it_covers_nobody() -> None:
    trials = losses([(1, 1), (1, 1)], [(2, 2), (2, 2)])
    misses = np.array([[[0.5], [0.5]], [[-0.5], [-0.5]]])
    assert promoted(trials, np.ones(2, dtype=bool), misses).tolist() == [False, True]


def test_rounds_double_until_all() -> None:
    assert resources(2, 8) == [2, 4, 8]
    assert resources(3, 7) == [3, 6, 7]
    assert resources(5, 5) == [5]


def over(*differences: tuple[float, float, float]) -> Best:
    """A setting beside a baseline of gain 0.5 and cost 0.2: mean differences and their intervals."""
    at = zip((0.5, 0.2), differences, strict=True)
    scores = tuple(Estimate(base + mean, 0.1, 0.0, 1.0, 8) for base, (mean, _, _) in at)
    return Best(
        None, Trial(0, {}), scores, tuple(Estimate(mean, 0.1, *ends, 8) for mean, *ends in differences)
    )


@pytest.mark.parametrize(
    ("gain", "cost", "better", "worse"),
    [
        ((0.0, -0.01, 0.01), (-0.02, -0.03, -0.01), ["lpips"], []),  # as much at less
        ((-0.004, -0.006, -0.002), (-0.02, -0.03, -0.01), ["lpips"], []),  # but for a hundredth
        ((-0.006, -0.02, 0.01), (-0.02, -0.03, -0.01), ["lpips"], ["clip_concept_delta"]),
        ((0.02, 0.01, 0.03), (0.001, -0.1, 0.1), ["clip_concept_delta"], []),
        ((0.02, -0.01, 0.05), (-0.02, -0.05, 0.01), [], []),  # not told apart
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), [], []),  # itself
    ],
)
def test_better_is_what_pairs_tell_and_worse_what_loses_a_hundredth(
    gain: tuple[float, float, float], cost: tuple[float, float, float], better: list[str], worse: list[str]
) -> None:
    objectives = (Objective("clip_concept_delta", -1), Objective("lpips", 1))
    assert better_and_worse(over(gain, cost), objectives) == (better, worse)


def test_importance_is_the_share_of_variance_and_the_curve_the_effect() -> None:
    """Of 4 x + y over a square, x explains 16/17 of the variance and y 1/17."""
    space = (Setting("edit_threshold", 0, 1), Setting("edit_mom_beta", 0, 1))
    rng = np.random.default_rng(0)
    trials = [{"edit_threshold": x, "edit_mom_beta": y} for x, y in rng.random((300, 2)).tolist()]
    scores = np.array([[4 * one["edit_threshold"] + one["edit_mom_beta"]] for one in trials])
    x, y = curves(space, trials, scores, ["gain"])
    assert x.importance == pytest.approx(16 / 17, abs=0.03)
    assert y.importance == pytest.approx(1 / 17, abs=0.03)
    assert x.means == pytest.approx([4 * value + 0.5 for value in x.values], abs=0.2)
    assert curves(space, trials[:7], scores[:7], ["gain"]) == []


def test_a_range_in_logarithms_has_values_at_equal_ratios() -> None:
    space = (
        Setting("edit_guidance_scale", 1, 16, log=True),
        Setting("num_inference_steps", 8, 32, log=True),
    )
    trials = [{"edit_guidance_scale": 2**k, "num_inference_steps": n} for k in range(5) for n in (8, 16, 32)]
    scores = np.array([[float(np.log2(one["edit_guidance_scale"]))] for one in trials])
    scale, steps = curves(space, trials, scores, ["gain"])
    assert scale.is_log
    assert scale.values == pytest.approx([2 ** (k / 2) for k in range(9)])
    assert steps.values == (8, 9, 11, 13, 16, 19, 23, 27, 32)  # half a step more at each end
    assert scale.importance > 0.9 > 0.1 > steps.importance


@pytest.mark.parametrize("high", [2, 3, 7, 12])
def test_whole_numbers_are_as_important_as_a_range_that_moves_as_much(high: int) -> None:
    """All values count the same, the first and the last too: of x + w, alike in variance, half each."""
    space = (Setting("edit_threshold", 0, 1), Setting("edit_warmup_steps", 0, high, 1))
    count = high + 1
    scale = np.sqrt(count**2 - 1)  # of a discrete range over that of a continuous one, both of unit width
    rng = np.random.default_rng(0)
    trials = [
        {"edit_threshold": float(x), "edit_warmup_steps": int(w)}
        for x, w in zip(rng.random(600), rng.integers(0, count, 600), strict=True)
    ]
    scores = np.array([[one["edit_threshold"] * scale + one["edit_warmup_steps"]] for one in trials])
    x, w = curves(space, trials, scores, ["gain"])
    assert x.importance == pytest.approx(0.5, abs=0.05)
    assert w.importance == pytest.approx(0.5, abs=0.05)
    assert set(w.values) <= set(range(count))
    assert (w.values[0], w.values[-1]) == (0, high)


def test_choices_and_whole_numbers_have_curves_of_their_values() -> None:
    space = (Setting("method", choices=("sega", "composable")), Setting("edit_warmup_steps", 0, 2, 1))
    trials = [{"method": m, "edit_warmup_steps": w} for m in ("sega", "composable") for w in (0, 1, 2)] * 2
    scores = np.array([[float(one["method"] == "sega")] for one in trials])
    method, warmup = curves(space, trials, scores, ["gain"])
    assert (method.values, warmup.values) == (("sega", "composable"), (0, 1, 2))
    assert method.importance > 0.9 > 0.1 > warmup.importance
    assert method.means[0] > method.means[1]

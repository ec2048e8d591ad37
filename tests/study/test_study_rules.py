"""The pure rules of a study against known answers: fronts, hypervolume, promotion, importance."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sega_bench.stats.intervals import Estimate
from sega_bench.stats.pareto import area_under_front, front, hypervolume, knee
from sega_bench.study.answers import ScoredTrial, better_and_worse
from sega_bench.study.halving import MARGIN, lower_bounds, promoted, rungs
from sega_bench.study.importance import importance_curves
from sega_bench.study.objectives import Objective
from sega_bench.study.space import Setting
from sega_bench.study.trials import Trial

points = st.lists(st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)), min_size=1, max_size=8)


@given(points)
def test_the_hypervolume_of_two_losses_is_the_area_under_their_front(
    pairs: list[tuple[float, float]],
) -> None:
    gain, cost = np.array(pairs).T
    losses = np.stack([-gain, cost], axis=1)
    area = area_under_front(gain, cost)
    assert hypervolume(losses, np.array([0.0, 1.0])) == pytest.approx(area, abs=1e-12)
    best = knee(losses)
    assert best is not None
    assert front(losses)[best]


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=6))
def test_hypervolume_counts_the_dominated_unit_cubes(corners: list[tuple[int, int, int]]) -> None:
    cubes = itertools.product(range(4), repeat=3)
    count = sum(
        any(all(c <= x for c, x in zip(corner, cube, strict=True)) for corner in corners) for cube in cubes
    )
    assert hypervolume(np.array(corners, dtype=float), np.full(3, 4.0)) == pytest.approx(count)


def test_without_finite_losses_there_is_no_volume_and_no_knee() -> None:
    assert hypervolume(np.array([[math.nan, 0.0], [0.0, 2.0]]), np.ones(2)) == 0
    assert knee(np.empty((0, 2))) is None
    assert knee(np.array([[3.0], [1.0], [2.0]])) == 1


def test_lower_bounds_are_those_of_students_interval() -> None:
    differences = np.array([1.0, 2.0, 3.0])[None, :, None]
    assert lower_bounds(differences)[0, 0] == pytest.approx(2 - 0.2886751345948129 / math.sqrt(3), abs=1e-9)
    assert lower_bounds(differences[:, :1])[0, 0] == -math.inf


def losses(*trials: list[tuple[float, float]]) -> np.ndarray:
    return np.array(trials, dtype=float)


def test_a_trial_worse_in_every_loss_on_every_block_is_pruned() -> None:
    """Blocks differ ten times more than the trials, so only paired differences can tell."""
    blocks = np.array([0.0, 10.0, -7.0])[:, None]
    better, worse, other = ([[1, 1]] * 3, [[2, 2.001], [2, 2], [2.001, 2]], [[0, 3]] * 3)
    is_promoted = promoted(np.array([better, worse, other]) + blocks, np.ones(3, dtype=bool))
    assert is_promoted.tolist() == [True, False, True]


def test_a_trial_that_may_still_be_better_is_promoted() -> None:
    near = losses([(1, 1), (1, 1), (1, 1)], [(1.5, 1.5), (0.4, 1.4), (1.1, 1.6)])
    assert promoted(near, np.ones(2, dtype=bool)).tolist() == [True, True]
    one_block = losses([(1, 1)], [(2, 2)])
    assert promoted(one_block, np.ones(2, dtype=bool)).tolist() == [True, True]


def test_one_of_near_neighbours_is_promoted_and_only_among_candidates() -> None:
    """The front extends from 0 to 10 in both losses: 0.05 is within the margin, 0.3 is not."""
    ends = [(0, 10), (0, 10)], [(10, 0), (10, 0)]
    first, near, far = [(4, 4), (4, 4)], [(3.95, 4.05), (3.95, 4.05)], [(3.7, 4.3), (3.7, 4.3)]
    trials = losses(*ends, first, near, far)
    assert promoted(trials, np.ones(5, dtype=bool)).tolist() == [True, True, True, False, True]
    without_ends = np.array([False, False, True, True, True])
    assert promoted(trials, without_ends).tolist() == [False, False, True, False, True]
    without_first = np.array([True, True, False, True])
    assert promoted(losses(*ends, first, near), without_first).tolist() == [True, True, False, False]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_every_pruned_trial_has_a_promoted_one_within_the_margin(pairs: list[tuple[float, float]]) -> None:
    trials = np.array(pairs)
    is_promoted = promoted(np.repeat(trials[:, None], 2, axis=1), np.ones(len(trials), dtype=bool))
    extent = np.ptp(trials[front(trials)], axis=0)
    for pruned in trials[~is_promoted]:
        assert ((trials[is_promoted] - pruned) <= MARGIN * extent + 1e-9).all(axis=1).any()
    assert is_promoted.any()


def test_a_failed_block_is_left_out_of_the_pairs() -> None:
    nan = math.nan
    better, worse = [(nan, nan), (1, 1), (1, 1)], [(3, 3), (2, 2), (2, 2)]
    nothing = [(nan, nan)] * 3
    is_promoted = promoted(losses(better, worse, nothing), np.ones(3, dtype=bool))
    assert is_promoted.tolist() == [True, False, False]
    assert lower_bounds(losses(better))[0].tolist() == [1, 1]


def test_a_trial_that_violates_a_constraint_is_pruned_and_covers_nothing() -> None:
    trials = losses([(1, 1), (1, 1)], [(2, 2), (2, 2)])
    violations = np.array([[[0.5], [0.5]], [[-0.5], [-0.5]]])
    assert promoted(trials, np.ones(2, dtype=bool), violations).tolist() == [False, True]


def test_rungs_double_up_to_all_blocks() -> None:
    assert rungs(2, 8) == [2, 4, 8]
    assert rungs(3, 7) == [3, 6, 7]
    assert rungs(5, 5) == [5]


def over(*differences: tuple[float, float, float]) -> ScoredTrial:
    """A trial against a baseline of gain 0.5 and cost 0.2, with mean differences and their intervals."""
    at = zip((0.5, 0.2), differences, strict=True)
    scores = tuple(Estimate(base + mean, 0.1, 0.0, 1.0, 8) for base, (mean, _, _) in at)
    return ScoredTrial(
        None, Trial(0, {}), scores, tuple(Estimate(mean, 0.1, *ends, 8) for mean, *ends in differences)
    )


@pytest.mark.parametrize(
    ("gain", "cost", "better", "worse"),
    [
        ((0.0, -0.01, 0.01), (-0.02, -0.03, -0.01), ["lpips"], []),  # equal gain at less cost
        ((-0.004, -0.006, -0.002), (-0.02, -0.03, -0.01), ["lpips"], []),  # gain lost within the tolerance
        ((-0.006, -0.02, 0.01), (-0.02, -0.03, -0.01), ["lpips"], ["clip_concept_delta"]),
        ((0.02, 0.01, 0.03), (0.001, -0.1, 0.1), ["clip_concept_delta"], []),
        ((0.02, -0.01, 0.05), (-0.02, -0.05, 0.01), [], []),  # not significant
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), [], []),  # the baseline
    ],
)
def test_better_needs_significance_and_worse_a_loss_beyond_the_tolerance(
    gain: tuple[float, float, float], cost: tuple[float, float, float], better: list[str], worse: list[str]
) -> None:
    objectives = (Objective("clip_concept_delta", -1), Objective("lpips", 1))
    assert better_and_worse(over(gain, cost), objectives) == (better, worse)


def test_importance_is_the_share_of_variance_and_the_curve_is_the_effect() -> None:
    """For 4 x + y over a square, x explains 16/17 of the variance and y 1/17."""
    space = (Setting("edit_threshold", 0, 1), Setting("edit_mom_beta", 0, 1))
    rng = np.random.default_rng(0)
    trials = [{"edit_threshold": x, "edit_mom_beta": y} for x, y in rng.random((300, 2)).tolist()]
    scores = np.array([[4 * one["edit_threshold"] + one["edit_mom_beta"]] for one in trials])
    x, y = importance_curves(space, trials, scores, ["gain"])
    assert x.importance == pytest.approx(16 / 17, abs=0.03)
    assert y.importance == pytest.approx(1 / 17, abs=0.03)
    assert x.means == pytest.approx([4 * value + 0.5 for value in x.values], abs=0.2)
    assert importance_curves(space, trials[:7], scores[:7], ["gain"]) == []


def test_a_logarithmic_range_has_curve_values_at_equal_ratios() -> None:
    space = (
        Setting("edit_guidance_scale", 1, 16, log=True),
        Setting("num_inference_steps", 8, 32, log=True),
    )
    trials = [{"edit_guidance_scale": 2**k, "num_inference_steps": n} for k in range(5) for n in (8, 16, 32)]
    scores = np.array([[float(np.log2(one["edit_guidance_scale"]))] for one in trials])
    scale, steps = importance_curves(space, trials, scores, ["gain"])
    assert scale.is_log
    assert scale.values == pytest.approx([2 ** (k / 2) for k in range(9)])
    # The range is widened by half a step at each end before rounding.
    assert steps.values == (8, 9, 11, 13, 16, 19, 23, 27, 32)
    assert scale.importance > 0.9 > 0.1 > steps.importance


@pytest.mark.parametrize("high", [2, 3, 7, 12])
def test_an_integer_range_is_as_important_as_a_continuous_one_of_equal_variance(high: int) -> None:
    """Every integer has equal weight, the first and the last too: each explains half of x + w."""
    space = (Setting("edit_threshold", 0, 1), Setting("edit_warmup_steps", 0, high, 1))
    count = high + 1
    scale = np.sqrt(count**2 - 1)  # ratio of standard deviations, discrete to continuous, at unit width
    rng = np.random.default_rng(0)
    trials = [
        {"edit_threshold": float(x), "edit_warmup_steps": int(w)}
        for x, w in zip(rng.random(600), rng.integers(0, count, 600), strict=True)
    ]
    scores = np.array([[one["edit_threshold"] * scale + one["edit_warmup_steps"]] for one in trials])
    x, w = importance_curves(space, trials, scores, ["gain"])
    assert x.importance == pytest.approx(0.5, abs=0.05)
    assert w.importance == pytest.approx(0.5, abs=0.05)
    assert set(w.values) <= set(range(count))
    assert (w.values[0], w.values[-1]) == (0, high)


def test_choices_and_integers_have_their_values_on_the_curve() -> None:
    space = (Setting("method", choices=("sega", "composable")), Setting("edit_warmup_steps", 0, 2, 1))
    trials = [{"method": m, "edit_warmup_steps": w} for m in ("sega", "composable") for w in (0, 1, 2)] * 2
    scores = np.array([[float(one["method"] == "sega")] for one in trials])
    method, warmup = importance_curves(space, trials, scores, ["gain"])
    assert (method.values, warmup.values) == (("sega", "composable"), (0, 1, 2))
    assert method.importance > 0.9 > 0.1 > warmup.importance
    assert method.means[0] > method.means[1]

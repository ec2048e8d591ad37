"""The planner's arithmetic agrees with the definition, step by step."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.strategies import STEPS, cells

from sega_bench.cell import Cell, Edit
from sega_bench.sega import schedule, steps
from sega_bench.sega.schedule import Trunk


def changes_guidance(cell: Cell, n: int) -> list[bool]:
    """For every step, whether SEGA adds anything to classifier-free guidance, by running it on one number.

    A single element is its own quantile, so every threshold keeps it. Random directions rule out a sum that
    is zero by accident.
    """
    noise = torch.Generator().manual_seed(0)
    nu, changed = 0.0, []
    for i in range(n):
        edits, weights, warm = [], [], []
        for edit in cell.edits:
            live = edit.edit_cooldown_steps is None or i < edit.edit_cooldown_steps
            direction = float(torch.rand((), generator=noise)) + 0.5
            edits.append(edit.edit_guidance_scale * direction if live else 0.0)
            weights.append(edit.edit_weights if live else 0.0)
            warm.append(i >= edit.edit_warmup_steps)
        added = 0.0
        total = sum(w for w, is_warm in zip(weights, warm, strict=True) if is_warm)
        if any(warm) and not all(warm) and total:
            added = sum(w / total * e for w, e, is_warm in zip(weights, edits, warm, strict=True) if is_warm)
        v = sum(w * e for w, e in zip(weights, edits, strict=True)) + cell.edit_momentum_scale * nu
        nu = cell.edit_mom_beta * nu + (1 - cell.edit_mom_beta) * v
        changed.append((v if warm and all(warm) else added) != 0.0)
    return changed


def needs(edit: Edit, cell: Cell, i: int, n: int) -> bool:
    """Whether an estimate can matter at step i: the condition as defined, without intervals."""
    uses_momentum = (
        cell.edit_momentum_scale != 0
        and cell.edit_mom_beta < 1
        and max(e.edit_warmup_steps for e in cell.edits) < n
    )
    cooldown = math.inf if edit.edit_cooldown_steps is None else edit.edit_cooldown_steps
    acts = edit.edit_weights > 0 and edit.edit_guidance_scale != 0
    return acts and i < cooldown and (i >= edit.edit_warmup_steps or uses_momentum)


def count_by_steps(cells: list[Cell], n: int) -> int:
    """Count evaluations by listing the distinct pairs of latents and text at every step."""
    changed = {cell: changes_guidance(cell, n) for cell in cells}
    total = 0
    for i in range(n):
        needed: set[tuple[Cell, str]] = set()
        for cell in cells:
            for one in {cell, cell.source()}:  # guidance changes both at the same steps
                if one != cell and not any(changed[cell][i:]):
                    continue  # the replayed guidance has ended
                row = one if any(changed[cell][: i + 1]) else one.reference()
                needed |= {(row, text) for text in steps.base_texts(one, i)}
                if one.replay is None and any(changed[cell]):
                    needed |= {(row, edit.concept) for edit in one.edits if needs(edit, one, i, n)}
        total += len(needed)
    return total


@given(cells())
@settings(max_examples=300)
def test_a_cell_forks_at_the_first_step_that_sega_changes(cell: Cell) -> None:
    changed = changes_guidance(cell, STEPS)
    expected = changed.index(True) if any(changed) else STEPS
    assert steps.fork_step(cell, STEPS) == expected


@given(cells())
@settings(max_examples=300)
def test_intervals_agree_with_the_condition_at_every_step(cell: Cell) -> None:
    for i in range(STEPS):
        expected = tuple(edit.concept for edit in cell.edits if needs(edit, cell, i, STEPS))
        assert steps.concept_texts(cell, i, STEPS) == expected


@given(cells())
@settings(max_examples=300)
def test_guidance_ends_after_the_last_step_that_sega_changes(cell: Cell) -> None:
    changed = changes_guidance(cell, STEPS)
    if any(changed):
        assert steps.guidance_end(cell, STEPS) == STEPS - changed[::-1].index(True)


@given(st.lists(cells(guidance_scale=3.0), min_size=1, max_size=6, unique=True))
@settings(max_examples=200)
def test_counts_agree_with_a_listing_of_every_step(drawn: list[Cell]) -> None:
    billing = schedule.wave_of(drawn, STEPS).count_evaluations()
    assert sum(billing.values()) == count_by_steps(drawn, STEPS)
    assert set(billing) == {cell.key for cell in drawn}


def test_an_example_counted_by_hand() -> None:
    """10 steps, warm-up 4: a trunk takes 2 per step, and 1 for the concept's momentum up to the fork."""
    base = {"prompt": "p", "seed": 0, "num_inference_steps": 10}
    with_momentum = [Cell(**base, edits=(Edit("c", 5, q, 4),)) for q in (0.5, 0.9)]
    reference = with_momentum[0].reference()
    trunk = Trunk(reference, (reference, *with_momentum))
    counts = schedule.count_evaluations(trunk, 10)
    assert list(counts.values()) == [2 * 10 + 4, 3 * 6, 3 * 6]

    without = [Cell(**base, edits=(Edit("c", 5, q, 4),), edit_momentum_scale=0) for q in (0.5, 0.9)]
    assert sum(schedule.count_evaluations(Trunk(reference, (reference, *without)), 10).values()) == 56
    # A resume that lacks one edited cell runs the trunk up to its fork only, billed to that cell.
    assert schedule.count_evaluations(Trunk(reference, (without[0],)), 10) == {without[0].key: 2 * 4 + 18}


def test_cells_equal_to_their_reference_cost_nothing() -> None:
    base = {"prompt": "p", "seed": 0, "num_inference_steps": 10}
    equal = [
        Cell(**base, edits=(Edit("c", 0),)),
        Cell(**base, edits=(Edit("c", 5, 0.9, 10),)),
        Cell(**base, edits=(Edit("c", 5, 0.9, 3, edit_cooldown_steps=0),)),
        Cell(**base, edits=(Edit("c", edit_weights=0),)),
    ]
    reference = equal[0].reference()
    counts = schedule.count_evaluations(Trunk(reference, (reference, *equal)), 10)
    assert list(counts.values()) == [20, 0, 0, 0, 0]


@given(st.lists(cells(replay=None), min_size=1, max_size=8, unique=True))
def test_waves_hold_every_cell_once_within_their_rows(drawn: list[Cell]) -> None:
    waves = schedule.form_waves(drawn, 3, lambda cell: STEPS)
    assert sorted(cell.key for wave in waves for cell in wave.cells) == sorted(c.key for c in drawn)
    for wave in waves:
        assert sum(1 + len(schedule.branches(trunk, wave.n)) for trunk in wave.trunks) <= 3


def test_a_trunk_larger_than_a_wave_is_split_and_its_steps_are_counted_again() -> None:
    edited = [Cell("p", 0, (Edit("c", 5, q / 10, 4),), num_inference_steps=10) for q in range(6)]
    whole = schedule.form_waves(edited, 64, lambda cell: 10)
    split = schedule.form_waves(edited, 4, lambda cell: 10)
    total = [sum(sum(w.count_evaluations().values()) for w in waves) for waves in (whole, split)]
    assert len(split) == 2
    assert total[1] - total[0] == 3 * 4


@pytest.mark.parametrize(
    ("seeds", "limit", "sizes"),
    [(8, 64, [3, 3, 2]), (3, 64, [1, 1, 1]), (1, 64, [1]), (8, 8, [2, 2, 2, 2]), (12, 16, [4, 4, 4])],
)
def test_cells_fit_into_the_waves_in_flight_if_possible(seeds: int, limit: int, sizes: list[int]) -> None:
    """Trunks of four rows each form three even waves if possible, none above the limit of rows."""
    edits = [Edit("c", scale, 0.9, 2) for scale in (3, 5, 7)]
    drawn = [Cell("p", seed, (edit,), num_inference_steps=10) for seed in range(seeds) for edit in edits]
    waves = schedule.form_waves(drawn, limit, lambda cell: 10)
    assert [len(wave.trunks) for wave in waves] == sizes


def total(waves: tuple[schedule.Wave, ...]) -> int:
    return sum(sum(wave.count_evaluations().values()) for wave in waves)


def test_cells_equal_to_their_reference_take_no_row_of_a_wave() -> None:
    base = {"prompt": "p", "seed": 0, "num_inference_steps": 10}
    equal = [Cell(**base, edits=(Edit("c", 0, q / 10),)) for q in range(6)]
    edited = [Cell(**base, edits=(Edit("c", 5, q / 10, 4),)) for q in range(4)]
    cells = [
        equal[0].reference(),
        *(cell for pair in zip(equal, edited, strict=False) for cell in pair),
        *equal[4:],
    ]
    whole = schedule.form_waves(cells, 64, lambda cell: 10)
    fitting = schedule.form_waves(cells, 5, lambda cell: 10)
    assert fitting == whole
    # When a trunk does not fit, only one part runs it to the end; the other needs it up to the fork.
    split = schedule.form_waves(cells, 3, lambda cell: 10)
    assert len(split) == 2
    assert total(split) - total(whole) == 3 * 4


@given(st.lists(cells(seed=0, replay=None), min_size=1, max_size=8, unique=True), st.integers(2, 9))
@settings(max_examples=200)
def test_a_trunk_that_fits_is_not_split(drawn: list[Cell], limit: int) -> None:
    for trunk in schedule.wave_of(drawn, STEPS).trunks:
        waves = schedule.form_waves(trunk.cells, limit, lambda cell: STEPS)
        whole = schedule.form_waves(trunk.cells, 1000, lambda cell: STEPS)
        branches = len(schedule.branches(trunk, STEPS))
        assert len(waves) == max(1, -(-branches // (limit - 1)))
        assert waves == whole if len(waves) == 1 else total(waves) >= total(whole)


def test_a_trunk_is_split_into_as_few_parts_as_possible() -> None:
    drawn = [Cell("p", 0, (Edit("c", scale, 0.9, 2),), num_inference_steps=STEPS) for scale in (3, 5, 7)]
    assert len(schedule.form_waves(drawn, 3, lambda cell: STEPS)) == 2


def replaying(prompt: str, scale: float = 5.0, cooldown: int | None = None, momentum: float = 0.1) -> Cell:
    """An edit of "p", warm from step 4 of 10, replayed on another prompt."""
    edit = Edit("c", scale, 0.9, 4, cooldown)
    return Cell(prompt, 0, (edit,), num_inference_steps=10, replay="p", edit_momentum_scale=momentum)


def test_a_replay_counted_by_hand() -> None:
    """A replay takes its trunk and then 2 per step. Its source runs once, billed to it if not requested."""
    first, second = replaying("q", 3), replaying("q", 6)
    trunk_of_q, own, trunk_of_p, source = 2 * 4, 2 * 6, 3 * 4, 3 * 6
    counts = schedule.wave_of([first.source(), first], 10).count_evaluations()
    assert counts == {first.source().key: trunk_of_p + source, first.key: trunk_of_q + own}
    counts = schedule.wave_of([first], 10).count_evaluations()
    assert counts == {first.key: trunk_of_p + source + trunk_of_q + own}
    counts = schedule.wave_of([first.reference(), first, second], 10).count_evaluations()
    assert sum(counts.values()) == trunk_of_p + 2 * source + 2 * 10 + 2 * own


def test_a_source_that_was_not_requested_ends_with_its_guidance() -> None:
    cell = replaying("q", cooldown=7, momentum=0.0)
    assert schedule.wave_of([cell], 10).count_evaluations() == {cell.key: 2 * 4 + 3 * 3 + 2 * 4 + 2 * 6}


@given(st.lists(cells(), min_size=1, max_size=8, unique=True), st.integers(4, 9))
def test_a_source_and_its_replays_are_in_one_wave_if_they_fit(drawn: list[Cell], limit: int) -> None:
    waves = schedule.form_waves(drawn, limit, lambda cell: STEPS)
    assert sorted(cell.key for wave in waves for cell in wave.cells) == sorted(c.key for c in drawn)
    runs = [{b.cell for t in wave.trunks for b in schedule.branches(t, wave.n)} for wave in waves]
    for wave, branches in zip(waves, runs, strict=True):
        assert len(wave.trunks) + len(branches) <= limit
    for source in {cell.source() for cell in drawn if cell.edits}:
        bundle = [cell for cell in drawn if cell.source() == source]
        if 2 + 2 * len(bundle) <= limit:
            assert sum(source in branches for branches in runs) <= 1


def test_replays_that_do_not_fit_into_one_wave_run_their_source_twice() -> None:
    replays = [replaying(f"q{k}") for k in range(6)]
    one, two = (schedule.form_waves(replays, limit, lambda cell: 10) for limit in (64, 8))
    assert (len(one), len(two)) == (1, 2)
    assert total(two) - total(one) == 3 * 4 + 3 * 6

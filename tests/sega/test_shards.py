"""Shards: every cell once, none much longer than the others, trunks whole unless that would be longer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shipped import SWEEPS, expand
from support.strategies import cells

from sega_bench.cell import Cell, Edit
from sega_bench.sega.schedule import Wave, form_waves, sharing
from sega_bench.sega.shards import EVEN, Shard, shards
from sega_bench.sega.wave import count_timesteps

TOO_FEW = ("smoke", "i2p")
"""Sweeps of four cells, i2p with the one prompt that it is given here."""


def deal(drawn: Sequence[Cell], count: int, limit: int = 64) -> tuple[Shard, ...]:
    return shards(drawn, count, limit, lambda cell: cell.num_inference_steps).parts


def cost(made: Sequence[Cell], limit: int = 64) -> int:
    """What the engine will execute."""
    waves = form_waves(made, limit, lambda cell: cell.num_inference_steps)
    return sum(sum(wave.count_evaluations().values()) for wave in waves)


def edited(seed: int, count: int, warmup: int = 4) -> list[Cell]:
    """A trunk of ten steps with so many edits, each 3 evaluations a step after the fork."""
    edits = [Cell("p", seed, (Edit("c", 5, k / 1000, warmup),), num_inference_steps=10) for k in range(count)]
    return [edits[0].reference(), *edits]


@given(st.lists(cells(), min_size=1, max_size=16, unique=True), st.integers(1, 6), st.integers(4, 9))
@settings(max_examples=150)
def test_every_cell_is_in_one_shard_and_none_is_empty(drawn: list[Cell], count: int, limit: int) -> None:
    dealt = deal(drawn, count, limit)
    assert len(dealt) <= count
    assert all(shard.cells for shard in dealt)
    assert sorted(c.key for shard in dealt for c in shard.cells) == sorted(c.key for c in drawn)
    for shard in dealt:
        assert list(shard.cells) == [cell for cell in drawn if cell in set(shard.cells)]


@given(st.lists(cells(), min_size=1, max_size=16, unique=True), st.integers(1, 6))
@settings(max_examples=150)
def test_the_longest_is_no_longer_than_whole_trunks_allow(drawn: list[Cell], count: int) -> None:
    """Nothing is cut in vain: one worker, or trunks alone that come out even, repeat nothing."""
    dealt = deal(drawn, count)
    longest, whole = max(cost(shard.cells) for shard in dealt), cost(drawn)
    assert all(cost(shard.cells) <= shard.unet_evals for shard in dealt)
    assert longest <= whole
    assert longest * count >= whole
    trunk = max(cost([c for c in drawn if c.reference() == one.reference()]) for one in drawn)
    if all(cell.replay is None for cell in drawn):
        assert longest <= whole / count + trunk  # Graham's bound


@given(st.lists(cells(), min_size=1, max_size=16, unique=True))
def test_one_worker_has_all_and_repeats_nothing(drawn: list[Cell]) -> None:
    assert deal(drawn, 1) == (Shard(tuple(drawn), cost(drawn)),)


def test_trunks_that_come_out_even_are_whole() -> None:
    made = [cell for seed in range(4) for cell in edited(seed, 5)]
    for count in (2, 4):
        dealt = deal(made, count)
        assert sum(shard.unet_evals for shard in dealt) == cost(made)
        assert all(shard.cells[0].is_reference for shard in dealt)


def test_one_trunk_is_cut_by_hand() -> None:
    """The trunk takes 2 a step and 3 before the fork at step 4, each of 20 edits 3 a step for 6 steps."""
    made = edited(0, 20)
    assert cost(made) == 3 * 4 + 2 * 6 + 20 * 18
    first, second = sorted(deal(made, 2), key=lambda shard: -shard.unet_evals)
    # The reference's own end, and its start repeated: 24 and 12; so ten edits each, or nine and eleven.
    assert (first.unet_evals, second.unet_evals) == (24 + 10 * 18, 12 + 10 * 18)


def test_more_workers_than_cells_leave_some_without() -> None:
    made = edited(0, 3)
    assert len(sharing(made)) == 1
    assert 1 < len(deal(made, 9)) <= len(made)


def test_a_replay_and_its_source_stay_together() -> None:
    replays = [
        Cell(prompt, 0, (Edit("c", 5, q / 10, 4),), num_inference_steps=10, replay="p")
        for q in range(1, 9)
        for prompt in ("q", "r")
    ]
    made = [cell for replay in replays for cell in (replay.source(), replay)]
    made = list(dict.fromkeys(made))
    assert len(sharing(made)) == 1
    for shard in deal(made, 4):
        assert {cell.source() for cell in shard.cells} <= set(shard.cells)


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("sweep", SWEEPS)
def test_shipped_sweeps_are_dealt_out_evenly(sweep: str, count: int) -> None:
    made = expand(sweep)
    limit = made.config.engine.wave_rows
    found = shards(made.cells, count, limit, count_timesteps)
    dealt = found.parts
    assert found.unet_evals == shards(made.cells, 1, limit, count_timesteps).parts[0].unet_evals
    lengths = [
        sum(sum(wave.count_evaluations().values()) for wave in form_waves(s.cells, limit, count_timesteps))
        for s in dealt
    ]
    assert lengths == [shard.unet_evals for shard in dealt]
    assert sorted(c.key for shard in dealt for c in shard.cells) == sorted(c.key for c in made.cells)
    if sweep in TOO_FEW:
        assert len(dealt) == min(count, len(made.cells))
        return
    mean = sum(lengths) / count
    assert max(lengths) <= 1.05 * mean
    if max(lengths) <= EVEN * mean and found.trunks % count == 0 and sweep != "ablation":
        assert sum(lengths) == made.counts()["unet_evals"]


def test_no_sweep_is_let_off_that_has_more_than_four_cells() -> None:
    assert {sweep for sweep in SWEEPS if len(expand(sweep).cells) <= 4} == set(TOO_FEW)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_i2p_with_as_many_prompts_as_it_is_for_is_dealt_out_evenly(count: int) -> None:
    prompts = ",".join(f"prompt {i}" for i in range(24))
    made = expand("i2p", f"prompts=[{prompts}]")
    dealt = shards(made.cells, count, made.config.engine.wave_rows, count_timesteps).parts
    assert [shard.unet_evals for shard in dealt] == [made.counts()["unet_evals"] / count] * count


@pytest.mark.parametrize("count", [8, 32])
def test_few_parts_are_tried(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes to deal out grows with the workers, not with how many cells each of them has."""
    tried = 0

    def counted(part: Sequence[Cell], *more: Any) -> tuple[Wave, ...]:
        nonlocal tried
        tried += 1
        return form_waves(part, *more)

    monkeypatch.setattr("sega_bench.sega.shards.form_waves", counted)
    dealt = deal([cell for seed in range(9) for cell in edited(seed, 150)], count)
    assert max(shard.unet_evals for shard in dealt) * count <= EVEN * sum(s.unet_evals for s in dealt)
    assert tried <= 9 + 60 * count


@given(st.integers(2, 8), st.integers(1, 5), st.integers(20, 60))
@settings(max_examples=25)
def test_where_cells_are_many_the_longest_is_within_five_percent(count: int, seeds: int, edits: int) -> None:
    made = [cell for seed in range(seeds) for cell in edited(seed, edits)]
    lengths = [cost(shard.cells) for shard in deal(made, count)]
    one = 18  # what a single edit takes; nobody can do better than half of one
    assert max(lengths) <= 1.05 * sum(lengths) / count + one

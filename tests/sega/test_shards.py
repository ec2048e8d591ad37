"""Shards hold every cell once and are about equally long; trunks are only cut if that shortens them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shipped import SWEEPS, expand
from support.strategies import cells

from sega_bench.cell import Cell, Edit
from sega_bench.sega.schedule import Wave, form_waves, group_by_trunk
from sega_bench.sega.shards import EVEN, Shard, split_into_shards
from sega_bench.sega.wave import count_timesteps

TOO_FEW = ("smoke", "i2p")
"""Sweeps of four cells; i2p with the single prompt that this file composes it with."""


def shards_of(drawn: Sequence[Cell], count: int, limit: int = 64) -> tuple[Shard, ...]:
    return split_into_shards(drawn, count, limit, lambda cell: cell.num_inference_steps).shards


def cost(made: Sequence[Cell], limit: int = 64) -> int:
    """UNet evaluations that the engine will execute."""
    waves = form_waves(made, limit, lambda cell: cell.num_inference_steps)
    return sum(sum(wave.count_evaluations().values()) for wave in waves)


def edited(seed: int, count: int, warmup: int = 4) -> list[Cell]:
    """A trunk of ten steps with ``count`` edits, each of 3 evaluations per step after the fork."""
    edits = [Cell("p", seed, (Edit("c", 5, k / 1000, warmup),), num_inference_steps=10) for k in range(count)]
    return [edits[0].reference(), *edits]


@given(st.lists(cells(), min_size=1, max_size=16, unique=True), st.integers(1, 6), st.integers(4, 9))
@settings(max_examples=150)
def test_every_cell_is_in_one_shard_and_none_is_empty(drawn: list[Cell], count: int, limit: int) -> None:
    shards = shards_of(drawn, count, limit)
    assert len(shards) <= count
    assert all(shard.cells for shard in shards)
    assert sorted(c.key for shard in shards for c in shard.cells) == sorted(c.key for c in drawn)
    for shard in shards:
        assert list(shard.cells) == [cell for cell in drawn if cell in set(shard.cells)]


@given(st.lists(cells(), min_size=1, max_size=16, unique=True), st.integers(1, 6))
@settings(max_examples=150)
def test_the_longest_shard_is_at_most_as_long_as_with_whole_trunks(drawn: list[Cell], count: int) -> None:
    """No trunk is cut without need: one worker, or trunks that are even as they are, repeat nothing."""
    shards = shards_of(drawn, count)
    longest, whole = max(cost(shard.cells) for shard in shards), cost(drawn)
    assert all(cost(shard.cells) <= shard.unet_evals for shard in shards)
    assert longest <= whole
    assert longest * count >= whole
    trunk = max(cost([c for c in drawn if c.reference() == one.reference()]) for one in drawn)
    if all(cell.replay is None for cell in drawn):
        assert longest <= whole / count + trunk  # Graham's bound


@given(st.lists(cells(), min_size=1, max_size=16, unique=True))
def test_one_worker_gets_all_cells_and_repeats_nothing(drawn: list[Cell]) -> None:
    assert shards_of(drawn, 1) == (Shard(tuple(drawn), cost(drawn)),)


def test_trunks_that_are_even_as_they_are_stay_whole() -> None:
    made = [cell for seed in range(4) for cell in edited(seed, 5)]
    for count in (2, 4):
        shards = shards_of(made, count)
        assert sum(shard.unet_evals for shard in shards) == cost(made)
        assert all(shard.cells[0].is_reference for shard in shards)


def test_one_trunk_cut_matches_a_count_by_hand() -> None:
    """The trunk takes 2 a step and 3 before the fork at step 4, each of 20 edits 3 a step for 6 steps."""
    made = edited(0, 20)
    assert cost(made) == 3 * 4 + 2 * 6 + 20 * 18
    first, second = sorted(shards_of(made, 2), key=lambda shard: -shard.unet_evals)
    # The reference's own end, and its start repeated: 24 and 12; so ten edits each, or nine and eleven.
    assert (first.unet_evals, second.unet_evals) == (24 + 10 * 18, 12 + 10 * 18)


def test_with_more_workers_than_cells_some_get_none() -> None:
    made = edited(0, 3)
    assert len(group_by_trunk(made)) == 1
    assert 1 < len(shards_of(made, 9)) <= len(made)


def test_a_replay_and_its_source_stay_together() -> None:
    replays = [
        Cell(prompt, 0, (Edit("c", 5, q / 10, 4),), num_inference_steps=10, replay="p")
        for q in range(1, 9)
        for prompt in ("q", "r")
    ]
    made = [cell for replay in replays for cell in (replay.source(), replay)]
    made = list(dict.fromkeys(made))
    assert len(group_by_trunk(made)) == 1
    for shard in shards_of(made, 4):
        assert {cell.source() for cell in shard.cells} <= set(shard.cells)


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("sweep", SWEEPS)
def test_shipped_sweeps_are_split_evenly(sweep: str, count: int) -> None:
    made = expand(sweep)
    limit = made.config.engine.wave_rows
    split = split_into_shards(made.cells, count, limit, count_timesteps)
    shards = split.shards
    assert split.unet_evals == split_into_shards(made.cells, 1, limit, count_timesteps).shards[0].unet_evals
    lengths = [
        sum(sum(wave.count_evaluations().values()) for wave in form_waves(s.cells, limit, count_timesteps))
        for s in shards
    ]
    assert lengths == [shard.unet_evals for shard in shards]
    assert sorted(c.key for shard in shards for c in shard.cells) == sorted(c.key for c in made.cells)
    if sweep in TOO_FEW:
        assert len(shards) == min(count, len(made.cells))
        return
    mean = sum(lengths) / count
    assert max(lengths) <= 1.05 * mean
    if max(lengths) <= EVEN * mean and split.trunks % count == 0 and sweep != "ablation":
        assert sum(lengths) == made.counts()["unet_evals"]


def test_only_sweeps_of_at_most_four_cells_are_exempt() -> None:
    assert {sweep for sweep in SWEEPS if len(expand(sweep).cells) <= 4} == set(TOO_FEW)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_i2p_with_24_prompts_is_split_evenly(count: int) -> None:
    prompts = ",".join(f"prompt {i}" for i in range(24))
    made = expand("i2p", f"prompts=[{prompts}]")
    shards = split_into_shards(made.cells, count, made.config.engine.wave_rows, count_timesteps).shards
    assert [shard.unet_evals for shard in shards] == [made.counts()["unet_evals"] / count] * count


@pytest.mark.parametrize("count", [8, 32])
def test_the_search_tries_few_splits(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a split grows with the number of workers, not with the number of cells of each."""
    tried = 0

    def counted(part: Sequence[Cell], *more: Any) -> tuple[Wave, ...]:
        nonlocal tried
        tried += 1
        return form_waves(part, *more)

    monkeypatch.setattr("sega_bench.sega.shards.form_waves", counted)
    shards = shards_of([cell for seed in range(9) for cell in edited(seed, 150)], count)
    assert max(shard.unet_evals for shard in shards) * count <= EVEN * sum(s.unet_evals for s in shards)
    assert tried <= 9 + 60 * count


@given(st.integers(2, 8), st.integers(1, 5), st.integers(20, 60))
@settings(max_examples=25)
def test_with_many_cells_the_longest_shard_is_within_five_percent(count: int, seeds: int, edits: int) -> None:
    made = [cell for seed in range(seeds) for cell in edited(seed, edits)]
    lengths = [cost(shard.cells) for shard in shards_of(made, count)]
    one = 18  # evaluations of a single edit: no split can be closer than half of it
    assert max(lengths) <= 1.05 * sum(lengths) / count + one

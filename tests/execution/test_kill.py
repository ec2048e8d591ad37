"""A sweep that is killed, at any moment and again and again, comes to what it comes to undisturbed."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from support.doom import Doom
from support.fakes import FakeDenoiser
from support.stub_sweep import fake_networks, results, small_plan, store

from sega_bench.config import compose
from sega_bench.execution import generator, jobs, runner
from sega_bench.planning.planner import plan
from sega_bench.sega import pooling
from sega_bench.sega.batching import Batching
from sega_bench.sega.denoiser import Denoiser
from sega_bench.sega.schedule import AT_ONCE, Wave
from sega_bench.store.records import from_line
from sega_bench.system.threads import threads

ROWS = 3
"""Cells of a wave: one seed's reference and two edits."""

MOST_EVENTS = 60
"""A child is killed after at most so many; an image alone is four of them."""


def make_rest(folder: Path, words: tuple[str, ...]) -> None:
    with fake_networks(), jobs.locked(small_plan(folder, *words)) as job:
        for _ in runner.execute(job):
            pass


def run_and_die(folder: Path, words: tuple[str, ...], begun: Path, doom: Doom) -> int:
    """A sweep in a process of its own; its status as the system has it."""
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    try:
        doom.start()
        sys.addaudithook(doom.note)
        with open(begun, "ab", buffering=0) as log:
            run_waves = generator.run_waves

            def noted(denoiser: Denoiser, waves: Iterable[Wave], *rest: Any) -> Any:
                def begin(wave: Wave) -> Wave:
                    log.write("".join(f"{cell.key}\n" for cell in wave.cells).encode())
                    return wave

                return run_waves(denoiser, map(begin, waves), *rest)

            generator.run_waves = noted
            make_rest(folder, words)
    finally:
        os._exit(0)


def killed(folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """Kill a sweep so often and let it end; how often, and the most cells that one kill cost."""
    rng = Random(seed)
    words = (f"seeds={5 * kills}", f"engine.wave_rows={ROWS}", "engine.threads=1")
    small_plan(folder, *words)  # before the first fork
    torch.set_num_threads(1)
    died, dearest, begun = 0, 0, folder / "begun"
    folder.mkdir()
    for _ in range(kills):
        before = set(store(folder).done_keys(store(folder).rows()[0]))
        begun.write_bytes(b"")
        doom = Doom(rng.randint(1, MOST_EVENTS), rng.uniform(0, 0.01))
        status = run_and_die(folder, words, begun, doom)
        died += os.WIFSIGNALED(status)
        done = store(folder).done_keys(store(folder).rows()[0])
        assert before <= done
        dearest = max(dearest, len(set(begun.read_text().split()) - done))
    begun.unlink()
    make_rest(folder, words)
    return died, dearest


def check(folder: Path, kills: int, seed: int) -> int:
    died, dearest = killed(folder / "killed", kills, seed)
    assert died == kills
    assert dearest <= AT_ONCE * ROWS  # the waves that are under way
    lines = (store(folder / "killed").records_dir / "0.jsonl").read_bytes().splitlines()
    made = Counter(row["key"] for line in lines if (row := from_line(line)))
    assert set(made.values()) == {1}  # nothing that was recorded was done again
    make_rest(folder / "fresh", (f"seeds={5 * kills}", "engine.wave_rows=64", "engine.threads=1"))
    assert results(folder / "killed") == results(folder / "fresh")
    assert len(made) == 15 * kills
    assert not [path for path in folder.rglob("*") if path.suffix == ".tmp" or path.name == "lock"]
    return dearest


@pytest.mark.parametrize(("workers", "waves"), [(1, 1.1), (2, 2.0), (8, 2.1)])
def test_a_kill_costs_little_more_than_the_work_of_a_wave(
    workers: int, waves: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one thread all waves that have begun, but the oldest, have done what fills its gaps, and no more.

    On several the last two end together, and idle threads go ahead with younger waves.
    """
    inline, _ = pooling.executor(torch.device("cuda"))  # on threads the order of the batches would vary
    monkeypatch.setattr(pooling, "executor", lambda device: (inline, workers))
    made = plan(compose("+sweep=thresholds"))
    at_stake = most = 0

    def evaluated(count: int) -> None:
        nonlocal at_stake, most
        at_stake += count
        most = max(most, at_stake)

    with threads(1):
        outcomes = generator.run_waves(FakeDenoiser(), made.waves, Batching(16, 16, 64), evaluated)
        for wave, _ in zip(made.waves, outcomes, strict=True):
            at_stake -= wave.unet_evals
    assert at_stake == 0
    assert most <= waves * max(wave.unet_evals for wave in made.waves)


def test_killed_five_times_it_is_the_same_sweep(tmp_path: Path) -> None:
    check(tmp_path, 5, seed=1)


@pytest.mark.slow
def test_killed_a_hundred_times_it_is_the_same_sweep(tmp_path: Path) -> None:
    print("cells that a kill cost at most:", check(tmp_path, 100, seed=0))

"""A sweep that is killed at random moments ends with the same results as one that is not."""

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
from support.fakes import FakeDenoiser
from support.self_kill import SelfKill
from support.stub_sweep import fake_networks, results, small_plan, store

from sega_bench.config import compose
from sega_bench.execution import generator, jobs, runner
from sega_bench.planning.planner import plan
from sega_bench.sega import pooling
from sega_bench.sega.batching import Batching
from sega_bench.sega.denoiser import Denoiser
from sega_bench.sega.schedule import WAVES_IN_FLIGHT, Wave
from sega_bench.store.records import from_line
from sega_bench.system.threads import threads

ROWS = 3
"""Cells of a wave: one seed's reference and two edits."""

MOST_EVENTS = 60
"""A child is killed after at most this many audited events; one image takes four."""


def finish(folder: Path, words: tuple[str, ...]) -> None:
    """Run a sweep to its end in this process."""
    with fake_networks(), jobs.locked(small_plan(folder, *words)) as job:
        for _ in runner.execute(job):
            pass


def run_and_die(folder: Path, words: tuple[str, ...], begun: Path, self_kill: SelfKill) -> int:
    """Run a sweep in a child process that ``self_kill`` kills; returns the child's wait status.

    The keys of the cells whose wave has begun are appended to the file ``begun``.
    """
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    try:
        self_kill.start()
        sys.addaudithook(self_kill.count_event)
        with open(begun, "ab", buffering=0) as log:
            run_waves = generator.run_waves

            def logged(denoiser: Denoiser, waves: Iterable[Wave], *rest: Any) -> Any:
                def begin(wave: Wave) -> Wave:
                    log.write("".join(f"{cell.key}\n" for cell in wave.cells).encode())
                    return wave

                return run_waves(denoiser, map(begin, waves), *rest)

            generator.run_waves = logged
            finish(folder, words)
    finally:
        os._exit(0)


def run_killed(folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """Start a sweep ``kills`` times in a process that kills itself, then finish it.

    Returns:
        How often it was killed, and the largest number of cells that one kill lost.
    """
    rng = Random(seed)
    words = (f"seeds={5 * kills}", f"engine.wave_rows={ROWS}", "engine.threads=1")
    small_plan(folder, *words)  # cached before the first fork
    torch.set_num_threads(1)
    died, most_lost, begun = 0, 0, folder / "begun"
    folder.mkdir()
    for _ in range(kills):
        before = set(store(folder).done_keys(store(folder).rows()[0]))
        begun.write_bytes(b"")
        self_kill = SelfKill(rng.randint(1, MOST_EVENTS), rng.uniform(0, 0.01))
        status = run_and_die(folder, words, begun, self_kill)
        died += os.WIFSIGNALED(status)
        done = store(folder).done_keys(store(folder).rows()[0])
        assert before <= done
        most_lost = max(most_lost, len(set(begun.read_text().split()) - done))
    begun.unlink()
    finish(folder, words)
    return died, most_lost


def check(folder: Path, kills: int, seed: int) -> int:
    died, most_lost = run_killed(folder / "killed", kills, seed)
    assert died == kills
    assert most_lost <= WAVES_IN_FLIGHT * ROWS  # the waves in flight
    lines = (store(folder / "killed").records_dir / "0.jsonl").read_bytes().splitlines()
    recorded = Counter(row["key"] for line in lines if (row := from_line(line)))
    assert set(recorded.values()) == {1}  # no recorded cell was generated again
    finish(folder / "fresh", (f"seeds={5 * kills}", "engine.wave_rows=64", "engine.threads=1"))
    assert results(folder / "killed") == results(folder / "fresh")
    assert len(recorded) == 15 * kills
    assert not [path for path in folder.rglob("*") if path.suffix == ".tmp" or path.name == "lock"]
    return most_lost


@pytest.mark.parametrize(("workers", "waves"), [(1, 1.1), (2, 2.0), (8, 2.1)])
def test_a_kill_loses_little_more_than_one_waves_evaluations(
    workers: int, waves: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one thread, younger waves compute only in the gaps of the oldest.

    On several threads the last two waves end together, and idle threads run ahead with younger waves.
    """
    inline, _ = pooling.executor(torch.device("cuda"))  # on threads the order of the batches would vary
    monkeypatch.setattr(pooling, "executor", lambda device: (inline, workers))
    sweep = plan(compose("+sweep=thresholds"))
    uncommitted = most = 0

    def evaluated(count: int) -> None:
        nonlocal uncommitted, most
        uncommitted += count
        most = max(most, uncommitted)

    with threads(1):
        outcomes = generator.run_waves(FakeDenoiser(), sweep.waves, Batching(16, 16, 64), evaluated)
        for wave, _ in zip(sweep.waves, outcomes, strict=True):
            uncommitted -= wave.unet_evals
    assert uncommitted == 0
    assert most <= waves * max(wave.unet_evals for wave in sweep.waves)


def test_a_sweep_killed_five_times_has_the_same_results(tmp_path: Path) -> None:
    check(tmp_path, 5, seed=1)


@pytest.mark.slow
def test_a_sweep_killed_a_hundred_times_has_the_same_results(tmp_path: Path) -> None:
    print("most cells that one kill lost:", check(tmp_path, 100, seed=0))

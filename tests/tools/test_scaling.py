"""Scaling estimates: simulated means agree with theory, and no wave is lost."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from random import Random
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.small_sweep import overrides, run

from sega_bench.cell import Cell, Edit
from tools.scaling.__main__ import main
from tools.scaling.faults import Faults, draw
from tools.scaling.strong import Sweep, scale

DRAWS = 4000


def trunk(edits: int) -> list[Cell]:
    """Ten steps: the trunk takes 4 x 3 + 6 x 2 = 24 evaluations, and each edit 6 x 3 = 18 more."""
    cells = [Cell("p", 0, (Edit("c", 5, k / 100, 4),), num_inference_steps=10) for k in range(edits)]
    return [cells[0].reference(), *cells]


rates = st.floats(0.0, 0.2)
durations = st.floats(0.0, 100.0)


@given(
    st.lists(st.floats(0.1, 10.0), max_size=30),
    st.builds(Faults, rates, rates, durations, durations, durations),
    st.integers(0, 99),
)
def test_every_wave_is_recorded_once_and_every_second_is_accounted_for(
    waves: list[float], faults: Faults, seed: int
) -> None:
    work = draw(waves, faults, Random(seed))
    assert list(itertools.chain(*work.stints)) == list(range(len(waves)))
    restarts = max(0, len(work.stints) - 1) * faults.restart_seconds
    spent = faults.start_seconds + sum(waves) + work.lost_seconds + restarts
    assert work.seconds == pytest.approx(spent)
    assert work.lost_seconds + 1e-9 >= 0
    kills = work.failures + work.preemptions
    assert work.lost_seconds <= kills * max(waves, default=0) + 1e-9  # only waves in flight
    assert len(work.stints) <= kills + 1


def test_the_mean_cost_of_failures_agrees_with_theory() -> None:
    """A wave of d seconds takes (1/f + r)(exp(f d) - 1) on average (Daly 2006); r is the restart."""
    waves, failures, restart = [30.0] * 10, 0.02, 50.0
    faults = Faults(failures=failures, restart_seconds=restart)
    random = Random(0)
    drawn = [draw(waves, faults, random).seconds for _ in range(DRAWS)]
    expected = len(waves) * (1 / failures + restart) * math.expm1(failures * waves[0])
    assert fmean(drawn) == pytest.approx(expected, abs=4 * stdev(drawn) / math.sqrt(DRAWS))


def test_preemptions_within_the_grace_cost_only_restarts() -> None:
    """A wave ends its process with probability 1 - exp(-p d); after the shard's last, nothing restarts."""
    waves, preemptions, restart = [30.0] * 10, 0.02, 50.0
    faults = Faults(preemptions=preemptions, grace_seconds=30.0, restart_seconds=restart)
    random = Random(1)
    drawn = [draw(waves, faults, random) for _ in range(DRAWS)]
    assert {work.lost_seconds for work in drawn} == {0.0}
    seconds = [work.seconds for work in drawn]
    expected = 300 - 9 * restart * math.expm1(-preemptions * 30)
    assert fmean(seconds) == pytest.approx(expected, abs=4 * stdev(seconds) / math.sqrt(DRAWS))


def test_preemptions_without_grace_equal_failures() -> None:
    waves = [3.0, 40.0, 7.0]
    failing = [draw(waves, Faults(failures=0.03, restart_seconds=5.0), Random(n)).seconds for n in range(99)]
    evicted = [
        draw(waves, Faults(preemptions=0.03, restart_seconds=5.0), Random(n)).seconds for n in range(99)
    ]
    assert evicted == failing


@pytest.mark.parametrize("workers", [1, 4, 8, 96])
def test_equal_trunks_without_faults_scale_perfectly(workers: int) -> None:
    sweep = Sweep.repeated(trunk(20), 96, limit=64)
    assert sweep.unet_evals == 96 * (24 + 20 * 18)
    scaling = scale(sweep, workers, 2.0, Faults(), draws=2, seed=0)
    assert scaling.efficiency == scaling.efficiency_without_faults == pytest.approx(1.0)
    assert scaling.hours * 3600 == pytest.approx(2.0 * sweep.unet_evals / workers)
    assert (scaling.tail, scaling.repeated, scaling.lost, scaling.failures) == (pytest.approx(1.0), 0, 0, 0)


def test_trunks_that_do_not_divide_evenly_leave_workers_idle() -> None:
    """99 equal trunks on 50 workers: one has 1, the others 2. On 400 workers, most are idle."""
    sweep = Sweep.repeated(trunk(1), 99, limit=64)
    assert scale(sweep, 50, 1.0, Faults(), 1, 0).efficiency == pytest.approx(99 / 100)
    start = Faults(start_seconds=42.0)
    assert scale(sweep, 50, 1.0, start, 1, 0).efficiency == pytest.approx(99 * 42 / (50 * (42 + 2 * 42)))
    crowded = scale(sweep, 400, 1.0, Faults(), 1, 0)
    assert crowded.efficiency <= 99 * 42 / (400 * (18 + 12))


def test_small_trunks_share_a_wave_and_a_large_one_is_cut() -> None:
    assert Sweep.repeated(trunk(3), 8, limit=16).shards(1) == [[4 * (24 + 3 * 18)] * 2]
    assert sum(Sweep.repeated(trunk(30), 1, limit=16).shards(1)[0]) > 24 + 30 * 18


def test_simulated_faults_depend_on_the_seed() -> None:
    sweep = Sweep.repeated(trunk(20), 40, limit=64)
    faults = Faults(failures=1e-4, preemptions=1e-4, grace_seconds=100.0, restart_seconds=500.0)
    first, same, other = (scale(sweep, 4, 1.0, faults, 3, seed) for seed in (0, 0, 1))
    assert first == same != other
    assert first.efficiency < first.efficiency_without_faults


def test_the_command_writes_the_figures_that_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.scaling.sizes.SEEDS", (2, 6))
    run(tmp_path)
    out = tmp_path / "deep" / "scaling.json"
    words = ["--cells", "1000", "--workers", "1", "7", "--draws", "2", "--out", str(out)]
    main([*overrides(tmp_path), *words, "--seconds-per-evaluation", "0.5", "--image-bytes", "1000"])
    printed, written = capsys.readouterr().out, json.loads(out.read_text())
    assert written["cells"] == 1002  # 334 seeds of three cells
    assert written["unet_evals"] == 334 * (2 * 4 + 1 + 2 * 3 * 3)
    assert f"{written['unet_evals']:,}" in printed
    assert [one["workers"] for one in written["scaling"]] == [1, 7]
    sizes = written["sizes"]
    assert sizes["image_bytes"] == 1000
    assert sizes["unet_eval_seconds"] == 0.5
    lines = (tmp_path / "small-local" / "records" / "0.jsonl").read_bytes().splitlines()
    assert sizes["record_bytes"] == pytest.approx(fmean(map(len, lines)), rel=0.1)
    assert sizes["parquet_bytes"] > 8 * 10  # ten scores with distinct values
    assert sizes["page_bytes"] > 0
    assert 4 < written["files"]["in the fullest folder of images"] < 30
    reached = [limit["cells"] for limit in written["limits"]]
    assert reached == sorted(reached)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "small-local"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "0"], "--workers is 0, but it must be at least 1"),
        (["--cells", "-3"], "--cells is -3, but it must be at least 1"),
        (["--failures-a-day", "nan"], "--failures-a-day is nan, but it must be 0 or more"),
        ([], "holds no finished sweep: run it first"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([*overrides(tmp_path), *words])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1

"""The benchmark on a tiny checkpoint: it measures the right work; speed is not tested."""

import json
from pathlib import Path

import pytest
import torch
from support import tiny_sd, without_oracle
from support.command_line import subcommand
from support.live_oracle import needs_live_oracle
from support.tiny_clip import clip_folder

from sega_bench.benchmark import against_diffusers, floor, forwards, study_cost
from sega_bench.benchmark.clock import Timing, interleave, ratio
from sega_bench.benchmark.peak import peak_bytes

CPU = torch.device("cpu")


def overrides(*more: str) -> list[str]:
    """The benchmark's sweeps on random tiny networks, small enough for a test."""
    return [
        "model=local",
        f"model.path={tiny_sd.folder()}",
        "scores=faces",
        f"scores.clip_model=local-dir:{clip_folder('vit')}",
        "seeds=1",
        "sampling.num_inference_steps=4",
        "edit.edit_warmup_steps=1",
        "engine.device=cpu",
        *more,
    ]


def test_functions_are_timed_in_turn_after_a_warm_up_call() -> None:
    calls: list[str] = []
    timings = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, CPU)
    assert calls == ["a", "b"] * 4
    assert [len(timing.all) for timing in timings.values()] == [3, 3]


def test_a_ratio_compares_times_of_the_same_turn() -> None:
    """A slow minute makes both times longer and leaves their ratio as it is."""
    timings = {"slow": Timing(6.0, (3.0, 6.0, 60.0)), "fast": Timing(2.0, (1.0, 2.0, 20.0))}
    assert ratio(timings, "slow", "fast") == 3.0


def test_peak_memory_counts_tensors_that_are_alive_together() -> None:
    def chain() -> None:
        x = torch.ones(1000)  # 4000 bytes
        y = x + 1  # 8000 alive
        del x
        z = y * 2  # 8000 alive again
        z.add_(1)
        z.view(10, 100)

    assert peak_bytes(chain) == 8000


@needs_live_oracle
def test_the_engine_and_diffusers_generate_the_same_images() -> None:
    axes = ("axes.edit_threshold=[0.5,0.9]", "axes.edit_guidance_scale=[3]")
    comparison = against_diffusers.compare(overrides(*axes), repeats=1, processes=2, compiled=False)
    assert (comparison.cells, comparison.unet_evals_diffusers) == (5, 4 * (2 + 4 * 3))
    assert (
        comparison.unet_evals == 2 * 4 + 2 + 4 * 3 * 3
    )  # the trunk, its concepts' first step, four branches
    assert comparison.mean_difference < 0.05
    assert set(comparison.images) == set(comparison.whole) == {"engine", "diffusers"}
    assert len(comparison.process_a_cell) == 2
    assert all(value > 0 for value in comparison.ratios().values())


def test_the_floor_counts_the_passes_of_the_run() -> None:
    smaller = ("axes.edit_threshold=[0.9]", "axes.edit_guidance_scale=[3]")
    measured = floor.measure(overrides(*smaller), batches=(2, 4), repeats=1)
    assert (measured.cells, measured.unet_evals) == (3, 2 * 4 + 2 + 2 * 3 * 3)
    assert measured.micro in (2, 4)
    assert measured.seconds == measured.unet + measured.vae + measured.scorers
    assert measured.ratio > 0


def test_a_study_is_compared_with_the_sweep_of_its_trials() -> None:
    smaller = (
        "prompts=[a face]",
        "concepts=[glasses]",
        "study.trials=4",
        "study.batch=2",
        "study.sampler=random",
    )
    words = overrides(
        *smaller, "study.space.edit_warmup_steps={low: 1, high: 2}", "study.held_out.prompts=null"
    )
    cost = study_cost.measure(words, repeats=1)
    assert (cost.settings, cost.cells) == (4, 1 + 4)  # the reference with them; the first is the baseline
    trunk = cost.unet_evals["study"] - cost.unet_evals["sweep"]
    assert 2 <= trunk <= 2 * 3  # one or two steps of the second batch, repeated
    assert cost.ratio > 0


def test_every_way_is_measured_at_every_batch_size() -> None:
    measured = forwards.measure(overrides(), batches=(1, 2), compiled_batches=(), repeats=1)
    ways = [
        forwards.DIFFUSERS,
        "channels_last",
        "channels_last, a batch a thread",
        "the same, weights packed for oneDNN",
        forwards.ENGINE,
    ]
    assert [(one.way, one.batch) for one in measured] == [(way, size) for size in (1, 2) for way in ways]
    for one in measured:
        assert min(one.milliseconds, one.utilisation, one.first_seconds) > 0
    peaks = {(one.way, one.batch): one.peak_mb for one in measured}
    for way in ways:
        assert peaks[way, 2] == pytest.approx(2 * peaks[way, 1], rel=0.2)


def test_the_command_writes_the_figures_that_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "benchmark.json"
    words = ("--parts", "counts", "--out", str(out), "model=local", f"model.path={tiny_sd.folder()}")
    assert subcommand("benchmark", *words) == 0
    written = json.loads(out.read_text())
    assert {"machine", "counts", "load_average_after"} <= set(written)
    printed = capsys.readouterr().out
    for name, counts in written["counts"].items():
        assert counts["unet_evals"] < counts["unet_evals_diffusers"]
        assert f"{name} " in printed
        assert f"{counts['unet_evals']:,}" in printed


def test_a_missing_pipeline_is_reported_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_oracle.remove_pipeline(monkeypatch)
    out = tmp_path / "benchmark.json"
    assert subcommand("benchmark", "--parts", "counts", "sweep", "--out", str(out)) == 2
    assert "leave sweep out of --parts" in capsys.readouterr().err
    assert not out.exists()

"""The engine against frozen latents of diffusers' pipeline, with or without the pipeline itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import frozen_oracle, live_oracle
from support.live_oracle import needs_live_oracle
from support.parity import (
    SCHEDULERS,
    SETTINGS,
    assert_close,
    tolerance,
    wave_latents,
)

from sega_bench.benchmark import oracle
from sega_bench.sega.steps import image_owner
from sega_bench.sega.wave import count_timesteps

ROOT = Path(__file__).parents[2]
FIXED_CASES = [name for name in frozen_oracle.cases() if not name.startswith("random/")]
RANDOM_CASES = [name for name in frozen_oracle.cases() if name.startswith("random/")]

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_frozen_parity(name: str) -> None:
    case, latents = frozen_oracle.cases()[name], frozen_oracle.all_latents()[name]
    ours = wave_latents(frozen_oracle.loaded(case.prediction_type), case.cells)
    assert len(case.cells) == len(latents)
    for cell, expected in zip(case.cells, latents, strict=True):
        assert_close(ours[cell], expected, tolerance(cell, float64=1e-12))


def test_torch_draws_the_noise_of_the_frozen_latents() -> None:
    """If this alone fails, PyTorch's generator has changed, and the latents have to be frozen anew."""
    assert_close(frozen_oracle.noise(), frozen_oracle.frozen_noise(), 1e-14)


@pytest.mark.parametrize("name", FIXED_CASES)
def test_frozen_latents(name: str) -> None:
    assert_frozen_parity(name)


def test_frozen_latents_of_300_random_settings() -> None:
    edited = 0
    for name in RANDOM_CASES:
        assert_frozen_parity(name)
        cells = frozen_oracle.cases()[name].cells
        n = count_timesteps(cells[0])
        edited += sum(image_owner(cell, n) == cell for cell in cells)
    assert sum(len(frozen_oracle.cases()[name].cells) for name in RANDOM_CASES) == 300
    assert edited >= 200  # most settings change their image


@needs_live_oracle
@pytest.mark.parametrize("name", [*FIXED_CASES, *RANDOM_CASES[::10]])
def test_the_live_pipeline_makes_the_frozen_latents(name: str) -> None:
    case, latents = frozen_oracle.cases()[name], frozen_oracle.all_latents()[name]
    pipeline = oracle.make_pipeline(frozen_oracle.loaded(case.prediction_type))
    for cell, expected in zip(case.cells, latents, strict=True):
        assert_close(live_oracle.latents(pipeline, cell), expected, tolerance(cell, float64=1e-12))


def test_without_the_live_pipeline_its_tests_are_skipped_and_the_frozen_latents_compared() -> None:
    files = [f"tests/sega/{name}.py" for name in ("test_parity", "test_frozen_parity")]
    plugins = ["-psupport.without_oracle", "-pno:cacheprovider"]
    chosen = ["-k", "(settings or schedulers) and not 300"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, *chosen, *files],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|skipped)", ended.stdout)}
    assert counts["passed"] >= len(SETTINGS) + len(SCHEDULERS)
    assert counts["skipped"] >= len(SETTINGS) + len(SCHEDULERS)
    assert "has no SemanticStableDiffusionPipeline" in ended.stdout

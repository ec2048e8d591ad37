"""Tests for a GPU, about a minute: ``pytest -m gpu``.

Without a GPU they run on the CPU, except those that need CUDA.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from support.small_sweep import run, small, store

from sega_bench.cell import Cell, Edit
from sega_bench.config import compose
from sega_bench.execution import jobs
from sega_bench.planning.planner import plan
from sega_bench.scores import ScoreSettings, build
from sega_bench.scores.scoring import score
from sega_bench.sega import Batching, Model, ModelSettings, cell_of, describe, generate, load
from sega_bench.sega.models import StableDiffusion, default_device

pytestmark = pytest.mark.gpu

DEVICE = default_device()
on_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs CUDA")
Images = dict[Cell, np.ndarray]


@cache
def faces() -> Model:
    """The embedded model, which is small and has scorers for its images."""
    return describe(ModelSettings("faces", "embedded"))


@cache
def loaded(dtype: str, *, compile: bool = False) -> StableDiffusion:
    return load(faces(), DEVICE, dtype, compile=compile)


def cells(dtype: str) -> list[Cell]:
    """Edits of two seeds with two concepts each, and their references."""
    edits = Edit("smiling, smile", 6, 0.95, 4), Edit("glasses, wearing glasses", 6, 0.9, 4)
    settings = {"prompt": "a photo of the face of a woman", "num_inference_steps": 16, "guidance_scale": 5.0}
    edited = [cell_of(faces(), dtype=dtype, seed=s, edits=(e,), **settings) for s in range(2) for e in edits]
    return [*dict.fromkeys(cell.reference() for cell in edited), *edited]


def generated(denoiser: StableDiffusion, cells: list[Cell], batching: Batching | None = None) -> Images:
    return {o.cell: np.asarray(o.image_HWC) for o in generate(denoiser, cells, batching)}


def gains(images: Images) -> np.ndarray:
    """``clip_concept_delta`` of every edited cell."""
    image_of = {cell.key: image for cell, image in images.items()}
    scores = score(build(ScoreSettings(), DEVICE), list(images), image_of, 8)
    return np.array([row["clip_concept_delta"] for row in scores if "clip_concept_delta" in row])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gives_the_same_scores_as_single_precision(dtype: str) -> None:
    """Scores, because pixels may differ: the threshold is a step function."""
    single = gains(generated(loaded("float32"), cells("float32")))
    half = gains(generated(loaded(dtype), cells(dtype)))
    assert np.abs(half - single).max() < 0.1
    assert np.abs(single).max() > 0.2


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_image_does_not_depend_on_other_cells(dtype: str) -> None:
    requested, sizes = cells(dtype), Batching(micro=8, decode=4)
    together = generated(loaded(dtype), requested, sizes)
    for cell in requested[-2:]:
        assert np.array_equal(generated(loaded(dtype), [cell], sizes)[cell], together[cell])


def test_the_device_and_the_cpu_agree() -> None:
    requested = cells("float32")
    on_device = generated(loaded("float32"), requested)
    on_cpu = generated(load(faces(), torch.device("cpu"), "float32"), requested)
    assert np.abs(gains(on_device) - gains(on_cpu)).max() < 0.02


def test_a_compiled_unet_gives_the_same_scores() -> None:
    requested = cells("float32")
    plain = generated(loaded("float32"), requested)
    compiled = generated(loaded("float32", compile=True), requested)
    assert np.abs(gains(plain) - gains(compiled)).max() < 0.02


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Limit this process's memory so that large batches of the face model do not fit."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(DEVICE) + 100_000_000) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@on_cuda
@pytest.mark.usefixtures("little_memory")
def test_batches_are_halved_until_they_fit_into_memory() -> None:
    batching = Batching(micro=1024, decode=1024)
    images = generated(loaded("float32"), cells("float32"), batching)
    assert batching.micro < 1024
    assert all(image.shape == (64, 64, 3) for image in images.values())


@on_cuda
def test_batch_sizes_are_estimated_from_free_memory() -> None:
    sizes = jobs.prepare(plan(compose("+sweep=smoke", f"engine.device={DEVICE}", "dry_run=true"))).batching
    assert 1 <= sizes.decode <= 8 <= sizes.micro <= 64


def test_a_sweep_runs_and_resumes_on_the_device(tmp_path: Path) -> None:
    records = run(tmp_path, f"engine.device={DEVICE}")
    assert {record.status for record in records} == {"done"}
    assert all(record.scores["lpips"] >= 0 for record in records if not record.cell.is_reference)
    assert run(tmp_path, f"engine.device={DEVICE}") == []
    engine = (store(tmp_path).read_plan() or {})["engine"]
    assert engine["dtype"] == plan(small(tmp_path, f"engine.device={DEVICE}")).cells[0].dtype

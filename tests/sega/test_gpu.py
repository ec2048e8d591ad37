"""What only a GPU can show, in about a minute on one: ``pytest -m gpu``.

Without one the same tests run on the CPU, as far as they make sense there.
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
    """The embedded model: small, and its images can be scored."""
    return describe(ModelSettings("faces", "embedded"))


@cache
def loaded(dtype: str, *, compile: bool = False) -> StableDiffusion:
    return load(faces(), DEVICE, dtype, compile=compile)


def cells(dtype: str) -> list[Cell]:
    """Two seeds, two concepts each and their references."""
    edits = Edit("smiling, smile", 6, 0.95, 4), Edit("glasses, wearing glasses", 6, 0.9, 4)
    settings = {"prompt": "a photo of the face of a woman", "num_inference_steps": 16, "guidance_scale": 5.0}
    edited = [cell_of(faces(), dtype=dtype, seed=s, edits=(e,), **settings) for s in range(2) for e in edits]
    return [*dict.fromkeys(cell.reference() for cell in edited), *edited]


def images(denoiser: StableDiffusion, wanted: list[Cell], batching: Batching | None = None) -> Images:
    return {o.cell: np.asarray(o.image_HWC) for o in generate(denoiser, wanted, batching)}


def gains(made: Images) -> np.ndarray:
    """Every edited cell's gain of its concept."""
    scores = score(
        build(ScoreSettings(), DEVICE), list(made), {cell.key: image for cell, image in made.items()}, 8
    )
    return np.array([of["clip_concept_delta"] for of in scores if "clip_concept_delta" in of])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_edits_as_single_precision_does(dtype: str) -> None:
    """Judged by the score, for pixels may differ: a threshold is a step."""
    single = gains(images(loaded("float32"), cells("float32")))
    half = gains(images(loaded(dtype), cells(dtype)))
    assert np.abs(half - single).max() < 0.1
    assert np.abs(single).max() > 0.2


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_image_does_not_depend_on_its_company(dtype: str) -> None:
    wanted, sizes = cells(dtype), Batching(micro=8, decode=4)
    together = images(loaded(dtype), wanted, sizes)
    for cell in wanted[-2:]:
        assert np.array_equal(images(loaded(dtype), [cell], sizes)[cell], together[cell])


def test_the_device_and_the_cpu_agree() -> None:
    wanted = cells("float32")
    there = images(loaded("float32"), wanted)
    here = images(load(faces(), torch.device("cpu"), "float32"), wanted)
    assert np.abs(gains(there) - gains(here)).max() < 0.02


def test_compiled_edits_as_it_does_otherwise() -> None:
    wanted = cells("float32")
    plain, compiled = images(loaded("float32"), wanted), images(loaded("float32", compile=True), wanted)
    assert np.abs(gains(plain) - gains(compiled)).max() < 0.02


@pytest.fixture
def little_memory() -> Iterator[None]:
    """So little memory for this process that large batches of the face model do not fit."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(DEVICE) + 100_000_000) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@on_cuda
@pytest.mark.usefixtures("little_memory")
def test_when_memory_runs_out_batches_are_halved_until_they_fit() -> None:
    batching = Batching(micro=1024, decode=1024)
    made = images(loaded("float32"), cells("float32"), batching)
    assert batching.micro < 1024
    assert all(image.shape == (64, 64, 3) for image in made.values())


@on_cuda
def test_batches_are_estimated_from_free_memory() -> None:
    sizes = jobs.prepare(plan(compose("+sweep=smoke", f"engine.device={DEVICE}", "dry_run=true"))).batching
    assert 1 <= sizes.decode <= 8 <= sizes.micro <= 64


def test_a_whole_sweep_on_the_device(tmp_path: Path) -> None:
    records = run(tmp_path, f"engine.device={DEVICE}")
    assert {record.status for record in records} == {"done"}
    assert all(record.scores["lpips"] >= 0 for record in records if not record.cell.is_reference)
    assert run(tmp_path, f"engine.device={DEVICE}") == []
    engine = (store(tmp_path).read_plan() or {})["engine"]
    assert engine["dtype"] == plan(small(tmp_path, f"engine.device={DEVICE}")).cells[0].dtype

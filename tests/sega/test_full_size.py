"""Stable Diffusion 1.5 at full size with random weights: describe, load and generate from a single file.

``pytest -m slow tests/sega/test_full_size.py -s`` prints durations and peak memory. It writes 4.3 GB and
needs 10 GB of memory.
"""

import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from support import original_layout

from sega_bench.cell import Edit
from sega_bench.sega import Batching, ModelSettings, cell_of, describe, generate, load
from sega_bench.sega.checkpoints import original
from sega_bench.sega.checkpoints.weights import construct_network

pytestmark = pytest.mark.slow


def write_file(path: Path) -> None:
    """Write random float32 weights of the released configuration, by their original names."""
    torch.manual_seed(0)
    layout, _ = original.layout_of("sd15", "here")
    parts = {name: construct_network(kind, config) for name, (kind, config) in layout.networks.items()}
    original_layout.write_original(type("Pipeline", (), parts), path)


def generate_edit(path: Path) -> dict[str, Any]:
    """Generate one edit; return its properties, the durations and the peak memory."""
    start = time.perf_counter()
    model = describe(ModelSettings("full", str(path)))
    described = time.perf_counter()
    denoiser = load(model, torch.device("cpu"), "float32")
    loaded = time.perf_counter()
    edits = (Edit("glasses", edit_guidance_scale=5, edit_threshold=0.9, edit_warmup_steps=1),)
    cell = cell_of(
        model, dtype="float32", prompt="a face", seed=0, edits=edits, num_inference_steps=2, guidance_scale=7
    )
    (outcome,) = generate(denoiser, [cell], Batching(micro=1, decode=1))
    assert outcome.image_HWC is not None
    return {
        "id": model.id,
        "scheduler": cell.scheduler,
        "latents": denoiser.latent_shape(cell.height, cell.width),
        "states": tuple(denoiser.encode("a face")["encoder_hidden_states"].shape),
        "image": outcome.image_HWC.shape,
        "evaluations": outcome.unet_evals,
        "seconds": {
            "describe": described - start,
            "load": loaded - described,
            "generate": time.perf_counter() - loaded,
        },
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def test_stable_diffusion_15_at_full_size(tmp_path: Path) -> None:
    path = tmp_path / "random.safetensors"
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as process:  # a process has one peak
        process.submit(write_file, path).result()
        result = process.submit(generate_edit, path).result()
    print(result, f"{path.stat().st_size / 1e9:.2f} GB on disk")
    assert result["id"].startswith("full@")
    assert result["scheduler"] == "PNDMScheduler"
    assert result["latents"] == (4, 64, 64)
    assert result["states"] == (77, 768)
    assert result["image"] == (512, 512, 3)
    # PNDM takes 3 steps for 2, and momentum needs the concept from the first step on.
    assert result["evaluations"] == 3 * 3
    assert result["peak_gb"] < 10.5

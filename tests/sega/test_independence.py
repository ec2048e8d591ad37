"""An image depends only on its cell: not on other cells, their order, or the division into waves.

Bit-identical on real networks for one micro-batch size and one number of threads. Between sizes images differ
at most as measured on the embedded model.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_sd
from support.strategies import cells

from sega_bench.cell import Cell, Edit
from sega_bench.sega import Model, ModelSettings, StableDiffusion, cell_of, describe, load
from sega_bench.sega.batching import Batching
from sega_bench.sega.schedule import form_waves
from sega_bench.sega.wave import count_timesteps, denoise, generate
from sega_bench.system.threads import threads


def latents(requested: Sequence[Cell], wave_rows: int = 64) -> dict[Cell, torch.Tensor]:
    """Latents of every cell with an image of its own, and of the references of all others."""
    model, result = tiny_sd.loaded("float32"), {}
    for wave in form_waves(requested, wave_rows, count_timesteps):
        result |= denoise(model, wave, Batching(micro=4))[0]
    return result


@pytest.mark.parametrize(("count", "examples"), [(1, 8), (2, 2)])
def test_other_cells_order_waves_and_shards_change_no_bit(count: int, examples: int) -> None:
    @given(st.data())
    @settings(max_examples=examples)
    def check(data: st.DataObject) -> None:
        scheduler = data.draw(st.sampled_from(["DDIM", "PNDM", "EulerAncestral", "UniPC"]))
        base = tiny_sd.cell("float32", scheduler=scheduler, num_inference_steps=5)
        names = ("model", "dtype", "scheduler", "scheduler_config", "num_inference_steps")
        shared = {name: getattr(base, name) for name in names}
        requested = data.draw(st.lists(cells(**shared), min_size=3, max_size=6, unique=True))
        together = latents(requested)
        shuffled = data.draw(st.permutations(requested))
        shard = shuffled[:: data.draw(st.integers(2, 3))]
        for others in (latents(shuffled, wave_rows=4), latents(shard), latents(shuffled[:1])):
            assert others
            for cell in others.keys() & together.keys():
                assert torch.equal(others[cell], together[cell])

    with threads(count):
        check()


# Between batch sizes. CONTRIBUTING.md describes the measurements behind these bounds, on two cores.

SIZES = (1, 8, 16)


@cache
def embedded() -> tuple[Model, StableDiffusion]:
    model = describe(ModelSettings("faces", "embedded"))
    return model, load(model, torch.device("cpu"), "float32")


@torch.inference_mode()
def test_an_evaluation_in_batches_of_another_size_differs_by_rounding() -> None:
    model, denoiser = embedded()
    texts = ["", "a photo of the face of a woman", "smiling, smile", "glasses, wearing glasses"] * 4
    encoded = torch.stack([denoiser.encode(text)["encoder_hidden_states"] for text in texts])
    shape = (16, *denoiser.latent_shape(model.size, model.size))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for timestep in (981, 501, 1):
        by_size = {
            size: torch.cat(
                [
                    denoiser.predict(
                        noise[i : i + size],
                        torch.tensor(timestep),
                        {"encoder_hidden_states": encoded[i : i + size]},
                    )
                    for i in range(0, 16, size)
                ]
            )
            for size in SIZES
        }
        for size in SIZES[1:]:
            difference = (by_size[size] - by_size[1]).abs().max() / by_size[1].abs().max()
            assert difference <= 1e-6


def test_an_image_in_batches_of_another_size_differs_by_at_most_one_of_255() -> None:
    model, denoiser = embedded()
    requested = [
        cell_of(
            model,
            dtype="float32",
            prompt="a photo of the face of a woman",
            seed=seed,
            edits=(Edit(concept, 6, 0.95, 4),),
            num_inference_steps=20,
        )
        for seed in range(2)
        for concept in ("smiling, smile", "glasses, wearing glasses")
    ]
    pictures = {
        size: {o.cell: o.image_HWC for o in generate(denoiser, requested, Batching(micro=size, decode=size))}
        for size in SIZES
    }
    for size in SIZES[1:]:
        for cell in requested:
            one, other = pictures[1][cell], pictures[size][cell]
            assert one is not None
            assert other is not None
            assert np.abs(one.astype(int) - other.astype(int)).max() <= 1

"""Batches of fixed sizes: padding, threads, and recovery when memory runs out."""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_sd
from support.fakes import FakeDenoiser

from sega_bench.cell import Cell, Edit
from sega_bench.sega import memory
from sega_bench.sega.batching import Batching, decode
from sega_bench.sega.pooling import Request, evaluate
from sega_bench.sega.wave import generate


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def pictures(denoiser: object, cells: list[Cell], batching: Batching) -> dict[Cell, bytes]:
    return {o.cell: np.asarray(o.image_HWC).tobytes() for o in generate(denoiser, cells, batching)}


def fake_cells() -> list[Cell]:
    edits = [Edit("c", 5, 0.5, 2), Edit("d", 5, 0.8, 3)]
    settings = {"num_inference_steps": 6, "height": 32, "width": 32}
    return [Cell("p", seed, (edit,), **settings) for seed in range(3) for edit in edits]


class RunsOut(FakeDenoiser):
    """Runs out of memory in one pass through the UNet and in one through the decoder, at any size."""

    def __init__(self, predict_at: int, decode_at: int) -> None:
        super().__init__()
        self.left = {"predict": predict_at, "decode": decode_at}
        self.lock = threading.Lock()

    def _pass(self, kind: str) -> None:
        with self.lock:
            self.left[kind] -= 1
            if self.left[kind] == -1:
                raise torch.OutOfMemoryError("CUDA out of memory")

    def predict(self, *arguments: object) -> torch.Tensor:
        self._pass("predict")
        return super().predict(*arguments)  # type: ignore[arg-type]

    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        self._pass("decode")
        return super().decode(latents_BCHW)


@given(st.integers(0, 60), st.integers(0, 4), st.sampled_from([2, 5, 16]), st.sampled_from([2, 3, 8]))
@settings(max_examples=60)
def test_memory_may_run_out_at_any_batch(predict_at: int, decode_at: int, micro: int, size: int) -> None:
    denoiser, batching = RunsOut(predict_at, decode_at), Batching(micro, size)
    assert pictures(denoiser, fake_cells(), batching) == pictures(FakeDenoiser(), fake_cells(), Batching())
    ran_out = {kind: left < 0 for kind, left in denoiser.left.items()}
    assert batching.micro == (micro // 2 if ran_out["predict"] else micro)
    assert batching.decode == (size // 2 if ran_out["decode"] else size)


def test_every_batch_has_the_same_size_and_every_row_its_own_estimate() -> None:
    denoiser, counted = FakeDenoiser(), []
    latents_ECHW = torch.arange(7.0, dtype=torch.float64)[:, None, None, None].expand(7, 2, 4, 4)
    texts = {"pattern": denoiser.encode("p")["pattern"].expand(7, -1, -1, -1)}
    request = Request(latents_ECHW, torch.tensor(3), texts)
    estimates = evaluate(denoiser, request, Batching(micro=3), counted.append)
    assert (denoiser.batches, sorted(counted)) == ([3, 3, 3], [1, 3, 3])
    assert torch.equal(estimates, denoiser.predict(latents_ECHW, torch.tensor(3), texts))
    images = list(decode(denoiser, latents_ECHW, Batching(decode=5)))
    assert np.array_equal(images, denoiser.decode(latents_ECHW).numpy())


def test_on_a_cpu_batches_run_concurrently_on_one_thread_each(threads: Callable[[int], None]) -> None:
    """Two batches that wait for each other end only if both run; neither may use more threads."""
    threads(2)
    together, seen = threading.Barrier(2, timeout=60), set()

    class Noted(FakeDenoiser):
        def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
            together.wait()
            seen.add(torch.get_num_threads())
            return super().decode(latents_BCHW)

    list(decode(Noted(), torch.zeros(4, 2, 4, 4), Batching(decode=2)))
    assert seen == {1}
    assert torch.get_num_threads() == 2


def test_an_image_depends_neither_on_threads_nor_on_batch_mates(threads: Callable[[int], None]) -> None:
    """Real networks in float32. With several threads per operator it would, at odd sizes."""
    model = tiny_sd.loaded("float32")
    cells = [tiny_sd.cell("float32", seed=s, edits=(Edit("smile", 6, 0.9, 2),)) for s in range(5)]
    threads(1)
    alone = {}
    for cell in cells:
        alone |= pictures(model, [cell], Batching(micro=7, decode=3))
    for count in (1, 2, 3):
        threads(count)
        assert pictures(model, cells[::-1], Batching(micro=7, decode=3)) == alone


@pytest.mark.parametrize(
    ("gigabytes", "side", "micro", "decode"),
    [(4, 512, 8, 2), (8, 512, 32, 4), (24, 512, 64, 8), (24, 768, 64, 8)],
)
def test_batches_fit_into_a_gpus_free_memory(
    gigabytes: int, side: int, micro: int, decode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stable Diffusion 1.5 in float16: 2.1 GB of weights, 68 MB an evaluation and 403 MB a decoded image."""
    monkeypatch.setattr(memory, "_free_bytes", lambda device: gigabytes * 10**9)
    fitting = memory.fit_batching(
        torch.device("cuda"), side * side, 2, 2_100_000_000, threads=1, estimates=1000
    )
    assert (fitting.micro, fitting.decode) == (micro, decode)


def test_without_free_memory_the_batch_size_is_one() -> None:
    fitting = memory.fit_batching(torch.device("cpu"), 10**9, 4, 10**15, threads=2, estimates=1000)
    assert (fitting.micro, fitting.decode) == (1, 1)


@pytest.mark.parametrize(
    ("estimates", "threads", "micro"),
    [(0.0, 2, 1), (2.0, 2, 1), (9.7, 2, 8), (9.7, 1, 16), (100.8, 2, 16), (257.8, 2, 32), (9.7, 64, 1)],
)
def test_batches_are_not_larger_than_a_step_fills(estimates: float, threads: int, micro: int) -> None:
    """Padding costs as much as estimates do; the smoke sweep has 9.7 estimates per step."""
    assert memory.fit_batching(torch.device("cpu"), 64 * 64, 4, 0, threads, estimates).micro == micro

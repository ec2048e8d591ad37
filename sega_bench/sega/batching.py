"""Run rows through a network in batches of one fixed size, on a CPU with one thread per batch.

A fixed batch size makes an image independent of its batch mates, because a kernel may round differently at
another size. One thread per batch does too: several threads divide the rows of a matrix product unevenly, so
that a row's rounding depends on its position. It is also faster on a CPU: threads with batches of their own
synchronise once per step, threads that share every operator hundreds of times.

Shapes: N latents, B a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Barrier
from typing import ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sega_bench.sega.denoiser import Conditioning, Denoiser

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_P = ParamSpec("_P")


@dataclass
class Batching:
    """Sizes that every batch is padded to; halved permanently when memory runs out.

    Args:
        micro: estimates in one pass through the UNet.
        decode: latents in one pass through the VAE decoder.
        wave_rows: rows of latents in one wave; a few waves are in flight at a time.
    """

    micro: int = 16
    decode: int = 8
    wave_rows: int = 64


def decode(denoiser: Denoiser, latents_NCHW: Tensor, batching: Batching) -> Iterator[npt.NDArray[np.uint8]]:
    """Decode latents to images, uint8 HW3, in the order of the latents.

    When memory runs out, ``batching.decode`` is halved for these and all later latents.

    Raises:
        torch.OutOfMemoryError: not even a single image fits into memory.
    """

    def decode_some(size: int, start: int) -> Tensor:
        return denoiser.decode(padded(latents_NCHW[start:], size))

    done, total = 0, len(latents_NCHW)
    while done < total:
        size = batching.decode
        starts = range(done, total, size)
        try:
            for image_BHW3 in _map_batches(partial(decode_some, size), starts, denoiser.device):
                image_BHW3 = image_BHW3[: total - done]
                done += len(image_BHW3)
                yield from image_BHW3.cpu().numpy()
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        if done < total:  # after the except block, because the error's traceback held the tensors
            batching.decode = size // 2
            if denoiser.device.type == "cuda":
                torch.cuda.empty_cache()


def encode(denoiser: Denoiser, texts: Sequence[str]) -> Conditioning:
    """Encode texts, stacked; one after the other, because tokenizers are not thread-safe."""

    def one_by_one(texts: Sequence[str]) -> list[Conditioning]:
        return [denoiser.encode(text) for text in texts]

    (encoded,) = _map_batches(one_by_one, [texts], denoiser.device)
    return {name: torch.stack([one[name] for one in encoded]) for name in encoded[0]}


def padded(values_N: Tensor, size: int) -> Tensor:
    """The first ``size`` rows; if there are fewer, repeat the last one."""
    batch_B = values_N[:size]
    missing = size - len(batch_B)
    return torch.cat([batch_B, batch_B[-1:].expand(missing, *batch_B.shape[1:])]) if missing else batch_B


def _map_batches(
    function: Callable[[_In], _Out], batches: Sequence[_In], device: torch.device
) -> Iterator[_Out]:
    """Map ``function`` over batches in order, on a CPU several concurrently, each on one thread."""
    pool, threads = executor(device)
    return map(function, batches) if threads == 1 else pool.map(function, batches)


def executor(device: torch.device) -> tuple[Executor, int]:
    """The executor of batches, and how many run concurrently: on a CPU as many as torch has threads."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    return (_single_threaded(threads) if threads > 1 else _InlineExecutor()), threads


class _InlineExecutor(Executor):
    """Runs a task at once, in the thread that submits it."""

    def submit(self, function: Callable[_P, _Out], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_Out]:
        future: Future[_Out] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@lru_cache(maxsize=1)
def _single_threaded(workers: int) -> ThreadPoolExecutor:
    """Threads that each run torch's operators single-threaded; the caller's own setting is restored."""
    started = Barrier(workers + 1)

    def start() -> None:
        torch.set_num_threads(1)  # applies to this thread, and becomes the default of new ones
        torch.get_num_threads()  # a thread adopts the default at its first query: before the reset below
        started.wait()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="batch", initializer=start)
    for _ in range(workers):
        pool.submit(int)  # starts one thread, because the earlier ones still wait at the barrier
    started.wait()
    torch.set_num_threads(workers)
    return pool

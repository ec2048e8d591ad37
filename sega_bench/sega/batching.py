"""Many rows through a network in batches of one fixed size, on a CPU one batch a thread.

A fixed size makes an image independent of its batch mates, for a kernel may round otherwise at another size.
So does one thread a batch: several share out the rows of a matrix product unevenly, and a row's rounding then
depends on its place. It is also the faster way on a CPU: threads that have batches of their own meet once a
step, threads that share each operation hundreds of times.

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
    """Sizes that every batch is padded to; halved for good when memory runs out.

    Args:
        micro: estimates in one pass through the UNet.
        decode: latents in one pass through the VAE decoder.
        wave_rows: rows of latents in one wave, of which a few are under way at once.
    """

    micro: int = 16
    decode: int = 8
    wave_rows: int = 64


def decode(denoiser: Denoiser, latents_NCHW: Tensor, batching: Batching) -> Iterator[npt.NDArray[np.uint8]]:
    """Images as uint8 HW3 in the order of the latents.

    When memory runs out ``batching.decode`` is halved, for the rest of them and for all that come.

    Raises:
        torch.OutOfMemoryError: memory does not even suffice for a single image.
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
        if done < total:  # only now is free again what the error's traceback held
            batching.decode = size // 2
            if denoiser.device.type == "cuda":
                torch.cuda.empty_cache()


def encode(denoiser: Denoiser, texts: Sequence[str]) -> Conditioning:
    """What the UNet reads of every text, stacked; one after the other, for tokenizers are not thread-safe."""

    def one_by_one(texts: Sequence[str]) -> list[Conditioning]:
        return [denoiser.encode(text) for text in texts]

    (encoded,) = _map_batches(one_by_one, [texts], denoiser.device)
    return {name: torch.stack([one[name] for one in encoded]) for name in encoded[0]}


def padded(values_N: Tensor, size: int) -> Tensor:
    """The first ``size`` rows; where there are fewer the last one is repeated."""
    batch_B = values_N[:size]
    missing = size - len(batch_B)
    return torch.cat([batch_B, batch_B[-1:].expand(missing, *batch_B.shape[1:])]) if missing else batch_B


def _map_batches(
    function: Callable[[_In], _Out], batches: Sequence[_In], device: torch.device
) -> Iterator[_Out]:
    """``function`` of every batch in order, on a CPU several at once, each on one thread."""
    pool, threads = executor(device)
    return map(function, batches) if threads == 1 else pool.map(function, batches)


def executor(device: torch.device) -> tuple[Executor, int]:
    """What batches are handed to, and how many it works on at once: on a CPU as many as torch has threads."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    return (_single_threaded(threads) if threads > 1 else _AtOnce()), threads


class _AtOnce(Executor):
    """Does what it is handed in the thread that hands it over."""

    def submit(self, function: Callable[_P, _Out], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_Out]:
        future: Future[_Out] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@lru_cache(maxsize=1)
def _single_threaded(workers: int) -> ThreadPoolExecutor:
    """Threads in which torch uses no others."""
    started = Barrier(workers + 1)

    def start() -> None:
        torch.set_num_threads(1)  # of this thread, and of the process's future ones
        torch.get_num_threads()  # a thread takes over the number of the process when it first asks: now
        started.wait()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="batch", initializer=start)
    for _ in range(workers):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(workers)
    return pool

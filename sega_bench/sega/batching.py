"""Many rows through a network in batches of one fixed size, on a CPU one batch a thread.

A fixed size makes an image independent of its batch mates, for a kernel may round otherwise at another size.
So does one thread a batch: several share out the rows of a matrix product unevenly, and a row's rounding then
depends on its place. It is also the faster way on a CPU: threads that have batches of their own meet once a
step, threads that share each operation hundreds of times.

Shapes: E estimates of a step, N latents, B a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Barrier
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sega_bench.sega.denoiser import Conditioning, Denoiser

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass
class Batching:
    """Sizes that every batch is padded to; halved for good when memory runs out.

    Args:
        micro: estimates in one pass through the UNet.
        decode: latents in one pass through the VAE decoder.
        wave_rows: rows of latents in one wave.
    """

    micro: int = 16
    decode: int = 8
    wave_rows: int = 64


def evaluate(
    denoiser: Denoiser,
    latents_ECHW: Tensor,
    timestep: Tensor,
    conditioning_E: Conditioning,
    batching: Batching,
    on_evaluations: Callable[[int], None],
) -> Tensor:
    """The UNet's estimates ECHW of all rows, in micro-batches.

    Args:
        denoiser: the model.
        latents_ECHW: scaled for the timestep.
        timestep: without dimensions, on the denoiser's device.
        conditioning_E: of as many texts.
        batching: its ``micro`` may be halved.
        on_evaluations: called with the number of evaluations just made.

    Raises:
        torch.OutOfMemoryError: memory does not even suffice for a single row.
    """

    def predict(size: int, start: int) -> Tensor:
        conditioning = {name: _padded(value, start, size) for name, value in conditioning_E.items()}
        return denoiser.predict(_padded(latents_ECHW, start, size), timestep, conditioning)

    estimates: list[Tensor] = []
    for eps_BCHW in _in_batches(predict, len(latents_ECHW), batching, "micro", denoiser.device):
        estimates.append(eps_BCHW)
        on_evaluations(len(eps_BCHW))
    return torch.cat(estimates)


def decode(denoiser: Denoiser, latents_NCHW: Tensor, batching: Batching) -> Iterator[npt.NDArray[np.uint8]]:
    """Images as uint8 HW3 in the order of the latents.

    Raises:
        torch.OutOfMemoryError: memory does not even suffice for a single image.
    """

    def decode_some(size: int, start: int) -> Tensor:
        return denoiser.decode(_padded(latents_NCHW, start, size))

    for image_BHW3 in _in_batches(decode_some, len(latents_NCHW), batching, "decode", denoiser.device):
        yield from image_BHW3.cpu().numpy()


def encode(denoiser: Denoiser, texts: Sequence[str]) -> Conditioning:
    """What the UNet reads of every text, stacked; one after the other, for tokenizers are not thread-safe."""

    def one_by_one(texts: Sequence[str]) -> list[Conditioning]:
        return [denoiser.encode(text) for text in texts]

    (encoded,) = _map_batches(one_by_one, [texts], denoiser.device)
    return {name: torch.stack([one[name] for one in encoded]) for name in encoded[0]}


def _in_batches(
    function: Callable[[int, int], Tensor],
    total: int,
    batching: Batching,
    kind: Literal["micro", "decode"],
    device: torch.device,
) -> Iterator[Tensor]:
    """``function(size, start)`` from 0 to ``total``, what it made of padding cut off.

    When memory runs out the size is halved, for the rest of these rows and for all that come.
    """
    done = 0
    while done < total:
        size: int = getattr(batching, kind)
        starts = range(done, total, size)
        try:
            for made_B in _map_batches(partial(function, size), starts, device):
                made_B = made_B[: total - done]
                done += len(made_B)
                yield made_B
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        if done < total:  # only now is free again what the error's traceback held
            setattr(batching, kind, size // 2)
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _padded(values_N: Tensor, start: int, size: int) -> Tensor:
    """``size`` rows from ``start`` on; after the last one it is repeated."""
    batch_B = values_N[start : start + size]
    missing = size - len(batch_B)
    return torch.cat([batch_B, batch_B[-1:].expand(missing, *batch_B.shape[1:])]) if missing else batch_B


def _map_batches(
    function: Callable[[_In], _Out], batches: Sequence[_In], device: torch.device
) -> Iterator[_Out]:
    """``function`` of every batch in order, on a CPU several at once, each on one thread."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return map(function, batches)
    return _single_threaded(threads).map(function, batches)


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

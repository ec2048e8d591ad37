"""Choose batch sizes that fit into memory, before any network is loaded.

Both constants are the peak of the tensors that live at once while a network runs in inference mode, divided
by batch size, pixels of the image and bytes per element. They were counted on tensors without data, for
Stable Diffusion 1.5 and 2.1 in float16 and float32, batches of 1 to 16, and images of 512 and 768 pixels. All
of these agree, because attention never holds a whole matrix in memory. ``pytest tests/sega/test_cuda.py``
counts them again.
"""

from __future__ import annotations

import math
import os
import sys

import torch

from sega_bench.sega.batching import Batching

UNET_ELEMENTS_PER_PIXEL = 130
VAE_ELEMENTS_PER_PIXEL = 768
FREE_SHARE = 0.5
"""Usable share of the memory that weights leave free. Scorers, kernels' workspaces and fragmentation take the
rest."""
MAX_MICRO_ON_CPU, MAX_MICRO_ON_GPU = 32, 64
"""Larger micro-batches are not faster."""
MIN_FULL_BATCHES = 3
"""Batches of the largest size per step and CPU thread; with fewer, half the size is faster: it pads less."""


def fit_batching(
    device: torch.device,
    pixels: int,
    itemsize: int,
    weights: int,
    threads: int,
    estimates: float,
    processes: int = 1,
) -> Batching:
    """Batch sizes that should fit; powers of two.

    Args:
        device: where the networks will run; its free memory is queried.
        pixels: of an image, height times width.
        itemsize: bytes per element.
        weights: bytes of all networks that are not yet loaded.
        threads: of a process; on a CPU each evaluates a batch of its own.
        estimates: mean number per step; larger micro-batches would be padded.
        processes: number of processes that do the same and share the memory of a CPU.
    """
    batches, sharers = (threads, processes) if device.type == "cpu" else (1, 1)
    free = FREE_SHARE * (_free_bytes(device) / sharers - weights) / batches
    most = MAX_MICRO_ON_CPU if device.type == "cpu" else MAX_MICRO_ON_GPU
    if device.type == "cpu" and estimates < MIN_FULL_BATCHES * most * batches:
        most //= 2
    enough = 2 ** max(0, math.ceil(math.log2(max(1, estimates / batches))))

    def largest(elements_per_pixel: int, most: int) -> int:
        size = 1
        while 2 * size <= most and 2 * size * elements_per_pixel * pixels * itemsize <= free:
            size *= 2
        return size

    return Batching(
        micro=largest(UNET_ELEMENTS_PER_PIXEL, min(most, enough)),
        decode=largest(VAE_ELEMENTS_PER_PIXEL, Batching.decode),
    )


def _free_bytes(device: torch.device) -> int:
    """Free memory of the GPU, or of the machine."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return sys.maxsize  # planning for a cluster's node: batches that do not fit there are halved
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")

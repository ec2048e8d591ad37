"""How large a batch fits into memory, before anything is loaded.

Both constants are peaks of the tensors that live at once while a network runs under inference mode, divided
by batch, pixels of the image and bytes an element. They were counted on tensors without data: for Stable
Diffusion 1.5 and 2.1, in float16 and float32, for batches of 1 to 16 and images of 512 and 768 pixels. They
are the same in all of these, for attention's matrices are never whole in memory. ``pytest
tests/sega/test_cuda.py`` counts again.
"""

from __future__ import annotations

import math
import os
import sys

import torch

from sega_bench.sega.batching import Batching

UNET_ELEMENTS_PER_PIXEL = 130
VAE_ELEMENTS_PER_PIXEL = 768
SHARE = 0.5
"""Of what is free beside the weights. The rest is for the scorers, kernels' workspaces and fragmentation."""
MOST_ON_CPU, MOST_ON_GPU = 32, 64
"""Larger micro-batches are not faster."""
OFTEN = 3
"""Batches of the largest size a step and CPU thread; with fewer, half the size is faster: less is padding."""


def fitting(
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
        device: its free memory is asked for.
        pixels: of an image, height times width.
        itemsize: bytes an element.
        weights: bytes of all networks that are still to be loaded.
        threads: of a process; on a CPU each has a batch of its own.
        estimates: of a step, in the mean: micro-batches that these do not fill would be padding.
        processes: do the same at once, and on a CPU share its memory.
    """
    at_once, sharing = (threads, processes) if device.type == "cpu" else (1, 1)
    free = SHARE * (_free_bytes(device) / sharing - weights) / at_once
    most = MOST_ON_CPU if device.type == "cpu" else MOST_ON_GPU
    if device.type == "cpu" and estimates < OFTEN * most * at_once:
        most //= 2
    enough = 2 ** max(0, math.ceil(math.log2(max(1, estimates / at_once))))

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
    """Memory that nobody uses, on a GPU or in the machine."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return sys.maxsize  # a cluster's node can't be asked: what does not fit there is halved
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")

"""Bootstrap resamples and cross-validation splits of a sweep's prompts and seeds. Pure and seeded.

A resample is a number for each value, how often it was drawn, so that any weighted mean is one of the
resample.

Shapes: N values, M settings, R resamples, K splits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sega_bench.stats.blocks import Blocks, Bools
from sega_bench.stats.random_effects import Scope, resolve_scope

FEWEST_BLOCKS = 4
"""Number of blocks below which neither resamples nor splits say much: three seeds have ten resamples."""


def bootstrap_counts(
    prompt_N: NDArray[Any], seed_N: NDArray[Any], resamples: int, scope: Scope = "auto", seed: int = 0
) -> NDArray[np.int32]:
    """How often each value is drawn in each resample: (R, N), the same for the same labels.

    Prompts are drawn where the scope has them random, and seeds where it has those: in a crossed design
    independently of each other (the pigeonhole bootstrap: Owen 2007), in a nested one each prompt's seeds
    anew. Values of one picture stay together.

    Args:
        prompt_N: (N,) labels.
        seed_N: (N,) labels.
        resamples: R.
        scope: see :func:`sega_bench.stats.random_effects.mean_intervals`.
        seed: of the draws.
    """
    blocks = Blocks.of(prompt_N, seed_N)
    scope = resolve_scope(blocks, scope)
    rng = np.random.default_rng(seed)
    prompt_RP = np.ones((resamples, blocks.prompts), dtype=np.int32)
    if scope != "seeds":
        prompt_RP = _draw(rng, resamples, blocks.prompts)
    if scope == "prompts" and blocks.crossed:
        return prompt_RP[:, blocks.prompt_N]
    if blocks.crossed:
        return prompt_RP[:, blocks.prompt_N] * _draw(rng, resamples, blocks.seeds)[:, blocks.seed_N]
    seed_RN = np.zeros((resamples, len(blocks.seed_N)), dtype=np.int32)
    for prompt in range(blocks.prompts):
        of_prompt = np.flatnonzero(blocks.prompt_N == prompt)
        own = blocks.seed_N[of_prompt]
        # A prompt that is drawn twice gets its seeds drawn twice.
        seeds = int(own.max()) + 1
        draws = rng.multinomial(prompt_RP[:, prompt] * seeds, np.full(seeds, 1 / seeds))
        seed_RN[:, of_prompt] = draws[:, own]
    return seed_RN


def _draw(rng: np.random.Generator, resamples: int, units: int) -> NDArray[np.int32]:
    drawn: NDArray[np.int32] = rng.multinomial(
        units, np.full(units, 1 / max(1, units)), size=resamples
    ).astype(np.int32)
    return drawn


def held_out_blocks(prompt_N: NDArray[Any], seed_N: NDArray[Any], most: int = 20) -> Bools:
    """Splits that hold out one block each: (K, N), True for the values that are held out.

    A block is a seed under all of its prompts, the k-th seed of every prompt in a nested design, or a
    prompt where there is a single seed. Every value is held out once. No split leaves the rest without any
    block: with a single block there is none, and with fewer than :data:`FEWEST_BLOCKS` they say little.

    Args:
        prompt_N: (N,) labels.
        seed_N: (N,) labels.
        most: number of splits from which on several blocks are held out together.
    """
    blocks = Blocks.of(prompt_N, seed_N)
    block_N = blocks.seed_N if blocks.seeds > 1 else blocks.prompt_N
    count = blocks.seeds if blocks.seeds > 1 else blocks.prompts
    if count < 2:
        return np.zeros((0, len(block_N)), dtype=bool)
    splits: Bools = block_N[None] % min(count, most) == np.arange(min(count, most))[:, None]
    return splits

"""The prompts and seeds behind a sweep's values: which values share a prompt or a seed. Pure.

A *picture* is one prompt with one seed. Its values (several concepts, say) start from the same noise and are
not independent of each other. Neither are the values of one seed under several prompts: the noise is the
same.

Shapes: N values, P prompts, S seeds (in a nested design: the most seeds of one prompt), M settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Places = NDArray[np.intp]

CROSSED_FROM = 1.5
"""Mean number of prompts for each seed from which the seeds count as shared."""


@dataclass(frozen=True)
class Blocks:
    """A sweep's sampling design.

    Args:
        prompt_N: the place of each value's prompt, 0 to P - 1.
        seed_N: the place of its seed, 0 to S - 1; counted within the prompt in a nested design.
        prompts: P.
        seeds: S.
        crossed: whether the prompts share their seeds. If not, the seeds are nested in the prompts.
    """

    prompt_N: Places
    seed_N: Places
    prompts: int
    seeds: int
    crossed: bool

    @classmethod
    def of(cls, prompt_N: NDArray[Any], seed_N: NDArray[Any]) -> Blocks:
        """The design of values with these labels, which may be of any sortable type.

        Seeds count as shared when a seed has :data:`CROSSED_FROM` prompts or more on average. With fewer, the
        variance of the seeds cannot be told from the rest, and hardly matters.
        """
        prompts, prompt_N = np.unique(np.asarray(prompt_N), return_inverse=True)
        seeds, seed_N = np.unique(np.asarray(seed_N), return_inverse=True)
        pictures, picture_N = np.unique(prompt_N * max(1, len(seeds)) + seed_N, return_inverse=True)
        if len(prompts) < 2 or len(pictures) >= CROSSED_FROM * len(seeds):
            return cls(prompt_N, seed_N, len(prompts), len(seeds), True)
        prompt_of_picture = pictures // len(seeds)
        sizes_P = np.bincount(prompt_of_picture)
        within = np.arange(len(pictures)) - (np.cumsum(sizes_P) - sizes_P)[prompt_of_picture]
        return cls(prompt_N, within[picture_N], len(prompts), int(sizes_P.max()), False)

    def pictures(self, values_MN: Floats) -> tuple[Floats, Floats]:
        """The mean value of each picture (0 without one) and the number of its values, both (M, P, S)."""
        shape = (len(values_MN), self.prompts, self.seeds)
        sums, counts = (
            np.zeros((shape[0], self.prompts * self.seeds)),
            np.zeros((shape[0], shape[1] * shape[2])),
        )
        cell_N = self.prompt_N * self.seeds + self.seed_N
        order = np.argsort(cell_N, kind="stable")
        cells, firsts = np.unique(cell_N[order], return_index=True)
        if len(cells):
            sorted_MN = values_MN if np.array_equal(order, np.arange(len(order))) else values_MN[:, order]
            is_known = ~np.isnan(sorted_MN)
            if len(cells) == len(cell_N):
                sums[:, cells], counts[:, cells] = np.where(is_known, sorted_MN, 0.0), is_known
            else:
                sums[:, cells] = np.add.reduceat(np.where(is_known, sorted_MN, 0.0), firsts, axis=1)
                counts[:, cells] = np.add.reduceat(is_known.astype(np.float64), firsts, axis=1)
        return (sums / np.maximum(counts, 1.0)).reshape(shape), counts.reshape(shape)

"""What trials scored, from the store's rows: by block, and as estimates that can be compared.

Shapes: B blocks, S scores.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sega_bench.cell import Cell
from sega_bench.study.objectives import Floats
from sega_bench.study.space import Params
from sega_bench.study.trials import BASELINE, Block, Study, block_of

Rows = Mapping[str, Mapping[str, Any]]
"""The store's present rows, by the keys of their cells."""

Together = tuple[str, ...]
"""The texts of a concept set."""


@dataclass(frozen=True)
class Scores:
    """The scores of a study's settings, as far as they are stored.

    Args:
        study: whose cells they are.
        rows: of the store.
    """

    study: Study
    rows: Rows

    def by_block(
        self, params: Params, names: Sequence[str], resource: int, concepts: Together | None = None
    ) -> Floats:
        """The mean of each score over a setting's cells on each of the first blocks, (B, S).

        NaN where no cell has it, on the blocks beyond ``resource`` for one; and where a cell has failed, for
        the mean of the others is another thing.

        Args:
            params: of the setting.
            names: of the scores.
            resource: how many blocks it was given.
            concepts: only the cells of this concept set.
        """
        cells: dict[Block, list[Cell]] = {block: [] for block in self.study.blocks}
        for cell in self.study.cells(params):
            if not cell.is_reference and concepts in (None, texts(cell)):
                cells[block_of(cell)].append(cell)
        means = [[self._mean(cells[block], name) for name in names] for block in self.study.blocks[:resource]]
        unknown = len(self.study.blocks) - len(means)
        return np.array(means + [[np.nan] * len(names)] * unknown, dtype=np.float64)

    def _mean(self, cells: Sequence[Cell], name: str) -> float:
        if not all(map(self._is_made, cells)):
            return np.nan
        found = [self.rows.get(cell.key, {}).get(name) for cell in cells]
        taken = [score for score in found if score is not None]
        return sum(taken) / len(taken) if taken else np.nan

    def _is_made(self, cell: Cell) -> bool:
        return self.rows.get(cell.key, {}).get("status") == "done"

    def failed(self, params: Params, resource: int) -> dict[Block, str]:
        """Blocks on which a cell of a setting, or a reference that it is scored against, failed; and why."""
        cells = self.study.cells_on(params, self.study.blocks[:resource])
        lacking = [cell for cell in cells if not self._is_made(cell)]
        return {block_of(cell): str(self.rows.get(cell.key, {}).get("error")) for cell in lacking}

    def counts(self, params: Params, resource: int) -> bool:
        """Whether a setting can be judged: half of its blocks, or more, are whole."""
        return 2 * len(self.failed(params, resource)) <= resource

    def estimates(
        self, params: Params, names: Sequence[str], resource: int, concepts: Together | None = None
    ) -> Floats:
        """What each score of a setting would be on all blocks, (S,).

        Its own mean if it was given all. Else the baseline's mean, and the mean difference to the baseline on
        the blocks that it was given: blocks differ far more than settings do, and a setting must not be
        praised for the blocks that happened to be the first, or that did not fail.
        """
        base_BS = self.by_block(BASELINE, names, len(self.study.blocks), concepts)
        own_BS = self.by_block(params, names, resource, concepts)
        if resource == len(self.study.blocks) and not self.failed(params, resource):
            return mean_of_known(own_BS)
        return mean_of_known(base_BS) + mean_of_known(own_BS - base_BS)


def texts(cell: Cell) -> Together:
    """A cell's concept set."""
    return tuple(edit.concept for edit in cell.edits)


def mean_of_known(values_BS: Floats) -> Floats:
    """Mean over the blocks that are not NaN, (..., S) of (..., B, S); NaN of none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN
        means: Floats = np.nanmean(values_BS, axis=-2)
    return means

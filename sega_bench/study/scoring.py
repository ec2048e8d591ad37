"""Scores of trials from the store's rows: by block, and as estimates comparable between trials.

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
"""The store's current rows by cell key."""

ConceptSet = tuple[str, ...]
"""The concept texts of one cell."""


@dataclass(frozen=True)
class Scores:
    """The stored scores of a study's trials.

    Args:
        study: the study.
        rows: the store's rows.
    """

    study: Study
    rows: Rows

    def by_block(
        self, params: Params, names: Sequence[str], resource: int, concepts: ConceptSet | None = None
    ) -> Floats:
        """Average each score over a trial's cells on each block, (B, S) over all of the study's blocks.

        NaN from block ``resource`` on, where no cell has the score, and where a cell failed: the mean of the
        remaining cells would measure other concepts.

        Args:
            params: the trial's.
            names: columns of the scores.
            resource: the trial's number of blocks.
            concepts: restricts the cells to this concept set.
        """
        cells: dict[Block, list[Cell]] = {block: [] for block in self.study.blocks}
        for cell in self.study.cells(params):
            if not cell.is_reference and concepts in (None, concept_set(cell)):
                cells[block_of(cell)].append(cell)
        means = [[self._mean(cells[block], name) for name in names] for block in self.study.blocks[:resource]]
        missing = len(self.study.blocks) - len(means)
        return np.array(means + [[np.nan] * len(names)] * missing, dtype=np.float64)

    def _mean(self, cells: Sequence[Cell], name: str) -> float:
        if not all(map(self._is_done, cells)):
            return np.nan
        scores = [self.rows.get(cell.key, {}).get(name) for cell in cells]
        known = [score for score in scores if score is not None]
        return sum(known) / len(known) if known else np.nan

    def _is_done(self, cell: Cell) -> bool:
        return self.rows.get(cell.key, {}).get("status") == "done"

    def failed(self, params: Params, resource: int) -> dict[Block, str]:
        """Errors by block where one of a trial's cells, or its reference, failed."""
        cells = self.study.cells_on(params, self.study.blocks[:resource])
        missing = [cell for cell in cells if not self._is_done(cell)]
        return {block_of(cell): str(self.rows.get(cell.key, {}).get("error")) for cell in missing}

    def is_usable(self, params: Params, resource: int) -> bool:
        """Whether a trial can be judged: no cell failed on at least half of its blocks."""
        return 2 * len(self.failed(params, resource)) <= resource

    def estimates(
        self, params: Params, names: Sequence[str], resource: int, concepts: ConceptSet | None = None
    ) -> Floats:
        """Estimate each score's mean over all blocks, (S,).

        For a trial with all blocks, its own mean. Otherwise the baseline's mean plus the mean paired
        difference to it on the trial's blocks: blocks differ far more than trials do, and a trial must not
        profit from easy blocks.
        """
        base_BS = self.by_block(BASELINE, names, len(self.study.blocks), concepts)
        own_BS = self.by_block(params, names, resource, concepts)
        if resource == len(self.study.blocks) and not self.failed(params, resource):
            return mean_over_blocks(own_BS)
        return mean_over_blocks(base_BS) + mean_over_blocks(own_BS - base_BS)


def concept_set(cell: Cell) -> ConceptSet:
    """The texts of a cell's concepts."""
    return tuple(edit.concept for edit in cell.edits)


def mean_over_blocks(values_BS: Floats) -> Floats:
    """Mean over the blocks without NaN, (..., S) from (..., B, S); NaN without any."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "Mean of empty slice"
        means: Floats = np.nanmean(values_BS, axis=-2)
    return means

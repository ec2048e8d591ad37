"""A study's trials as cells: the cells of a trial's parameters, and the plan that generates them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sega_bench.cell import Cell, abbreviated, collapse
from sega_bench.config import Config, StudyConfig
from sega_bench.errors import UserError
from sega_bench.planning.planner import AXES, Plan, plan
from sega_bench.store import settings as columns_of
from sega_bench.study import space
from sega_bench.study.settings import StudySettings, read_settings
from sega_bench.study.space import Params

Block = tuple[str, int]
"""A prompt and a seed."""

SETTINGS = ("replay", *reversed(AXES))
"""Columns of a cell's settings. The method precedes the settings that only some methods read, so that an
error about another method names the method."""

BASELINE: Params = {}
"""Stands for the configuration's own values, which no sampler suggested."""


@dataclass(frozen=True)
class Trial:
    """One trial of the study.

    Args:
        number: from 0, in the order of asking.
        params: its parameter values.
        resource: number of blocks it is evaluated on; 0 until decided.
        state: ``running`` from asking to telling, then ``complete``; ``failed`` if cells failed on more than
            half of its blocks, or an objective or constraint has no value.
    """

    number: int
    params: Params
    resource: int = 0
    state: Literal["running", "complete", "failed"] = "running"


@dataclass(frozen=True)
class Study:
    """A resolved study, before any trial.

    Args:
        config: the composed configuration.
        settings: its checked ``study`` section.
        baseline: the plan of the configuration's own values on all blocks.
        blocks: in the order in which every trial gets them: all prompts with their first seed, then all with
            their second, and so on.
        held_out: the same study on prompts and seeds that the search does not use, in a subfolder; None if
            there are none.
    """

    config: Config
    settings: StudySettings
    baseline: Plan
    blocks: tuple[Block, ...]
    held_out: Study | None = None
    _cells: dict[tuple[tuple[str, Any], ...], tuple[Cell, ...]] = field(default_factory=dict, repr=False)

    @property
    def min_resource(self) -> int:
        """Number of blocks of the first rung, which every trial gets."""
        return min(self.settings.min_resource or len(self.blocks), len(self.blocks))

    @property
    def batch(self) -> int:
        """Number of trials asked for together; by default as many as fill a wave."""
        if self.settings.batch is not None:
            return self.settings.batch
        rows = self.config.engine.wave_rows - self.min_resource  # each block's reference takes a row
        return max(1, rows // (self.min_resource * len(self.baseline.concepts)))

    @cached_property
    def baseline_params(self) -> Params | None:
        """The baseline's values as a trial's parameters.

        None if they lie outside the space, or if the concepts' own values differ.
        """
        params: dict[str, Any] = {}
        for setting in self.settings.space:
            (value, *others) = _axis_values(self.baseline.cells, setting.name)
            own = None if others else setting.params_for(value)
            if own is None:
                return None
            params |= own
        return params

    def without_retries(self) -> Study:
        """The same study with ``retry_failed`` off."""
        config = replace(self.config, retry_failed=False)
        baseline = replace(self.baseline, config=replace(self.baseline.config, retry_failed=False))
        return replace(self, config=config, baseline=baseline)

    def point(self, params: Params) -> dict[str, Any]:
        """A trial's values by setting, a list where each concept has its own; empty for the baseline."""
        return {setting.name: setting.value_in(params) for setting in self.settings.space} if params else {}

    def resolved_point(self, params: Params) -> dict[str, Any]:
        """:meth:`point` as the results table has it: null where the method ignores the setting."""
        cells = self.cells(params)
        return {setting.name: _axis_values(cells, setting.name)[0] for setting in self.settings.space}

    def cells(self, params: Params) -> tuple[Cell, ...]:
        """A trial's cells on all blocks, each reference before the cells scored against it."""
        cache_key = tuple(params.items())  # each rung needs the cells of all trials so far
        if cache_key not in self._cells:
            config = space.with_points(self.config, [self.point(params)])
            self._cells[cache_key] = plan(config, self.baseline.model).cells
        return self._cells[cache_key]

    def cells_on(self, params: Params, blocks: Iterable[Block]) -> tuple[Cell, ...]:
        """:meth:`cells` on some of the blocks."""
        included = set(blocks)
        return tuple(cell for cell in self.cells(params) if block_of(cell) in included)

    def plan(self, allocations: Iterable[tuple[Params, int]]) -> Plan:
        """Plan the baseline on all blocks, and each trial on its first blocks.

        Args:
            allocations: parameter values and resource of each trial.
        """
        trials = list(allocations)
        everything = [(BASELINE, len(self.blocks)), *trials]
        repeated = [
            cell for params, resource in everything for cell in self.cells_on(params, self.blocks[:resource])
        ]
        cells = tuple(dict.fromkeys(repeated))
        points = [self.point(params) for params, _ in trials]
        zipped = space.with_points(self.config, points).zip if points else {}
        return replace(
            self.baseline,
            cells=cells,
            merged=_count_edited(repeated) - _count_edited(cells),
            axes={setting.name: _axis_values(cells, setting.name) for setting in self.settings.space},
            config=replace(self.baseline.config, zip=zipped, study=self.config.study),
        )

    def cost(self) -> dict[str, str]:
        """The upper bound of trials, cells and UNet evaluations, as labelled texts."""
        settings = self.settings
        n_blocks, n_concept_sets = len(self.blocks), len(self.baseline.concepts)
        per_trial = self.baseline.counts()["unet_evals"]
        least, most = self.min_resource * n_concept_sets, n_blocks * n_concept_sets
        return {
            "trials": f"{settings.trials} in batches of {self.batch}, sampler {settings.sampler}",
            "cells of a trial": f"{least}, near the front up to {most}",
            "evaluations": f"at most about {per_trial * settings.trials:,}",
        }


def resolve(config: Config) -> Study:
    """Resolve a study from its configuration, without loading a model.

    Raises:
        UserError: any mistake in the configuration, named by its key.
    """
    baseline = plan(replace(config, axes={}, zip={}, study=StudyConfig()))
    settings = read_settings(config, baseline.concepts)
    blocks = _blocks(baseline.cells)
    if (settings.min_resource or 1) > len(blocks):
        raise UserError(
            f"study.min_resource is {settings.min_resource}, but there are {len(blocks)} prompts x seeds"
        )
    space.check(settings.space, baseline)
    return Study(config, settings, baseline, blocks, _held_out(config, settings, baseline, blocks))


def _held_out(
    config: Config, settings: StudySettings, baseline: Plan, searched: Sequence[Block]
) -> Study | None:
    prompts, seeds = config.study.held_out.prompts, config.study.held_out.seeds
    if prompts is None and seeds is None:
        return None
    held_out_config = replace(
        config,
        name="held_out",
        output_dir=str(Path(baseline.config.output_dir) / baseline.name),
        prompts=config.prompts if prompts is None else prompts,
        seeds=config.seeds if seeds is None else seeds,
        study=StudyConfig(),
        wandb=replace(config.wandb, mode="disabled"),
    )
    try:  # the baseline's model id, so that the checkpoint is not hashed twice
        held_out_baseline = plan(held_out_config, baseline.model)
    except UserError as error:
        raise UserError(f"study.held_out.{error}") from error
    blocks = _blocks(held_out_baseline.cells)
    if shared := [block for block in blocks if block in searched]:
        _refuse_shared(shared[0], seeds)
    return Study(held_out_config, settings, held_out_baseline, blocks)


def _refuse_shared(block: Block, seeds: object) -> None:
    prompt, seed = block
    key, remedy = "study.held_out", "hold other seeds out"
    if isinstance(seeds, list) and seed not in seeds:
        key, remedy = "study.held_out.prompts", "its file gives it this seed, so hold other prompts out"
    raise UserError(f"{key}: {abbreviated(prompt)} with seed {seed} is searched with too: {remedy}")


def block_of(cell: Cell) -> Block:
    """A cell's prompt and seed."""
    return cell.prompt, cell.seed


def _blocks(cells: Sequence[Cell]) -> tuple[Block, ...]:
    """Distinct blocks, round-robin over the prompts."""
    seeds: dict[str, list[int]] = {}
    for prompt, seed in dict.fromkeys(map(block_of, cells)):
        seeds.setdefault(prompt, []).append(seed)
    rounds = range(max(map(len, seeds.values())))
    return tuple((prompt, own[i]) for i in rounds for prompt, own in seeds.items() if i < len(own))


def _count_edited(cells: Iterable[Cell]) -> int:
    return sum(not cell.is_reference for cell in cells)


def _axis_values(cells: Iterable[Cell], name: str) -> list[Any]:
    """A setting's distinct values in order of appearance; a per-concept list collapses where all agree."""
    values: dict[str, Any] = {}
    for row in (columns_of(cell) for cell in cells if not cell.is_reference):
        value = collapse(row[name])
        values.setdefault(repr(value), value)  # lists are not hashable, and True equals 1
    return list(values.values())


def fixed_settings(study: Study) -> Mapping[str, Any]:
    """The blocks and concepts that trials are scored on, and the baseline's settings, as JSON values."""
    return {
        "blocks": [list(block) for block in study.blocks],
        "concepts": [list(concepts) for concepts in study.baseline.concepts],
        **{name: _axis_values(study.baseline.cells, name) for name in SETTINGS},
    }

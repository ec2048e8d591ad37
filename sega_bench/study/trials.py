"""Trials as cells: which cells a setting has on which blocks, and the plan that makes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sega_bench.cell import Cell, shown
from sega_bench.config import Config, StudyConfig
from sega_bench.errors import UserError
from sega_bench.planning.planner import AXES, Plan, plan
from sega_bench.store import settings as columns_of
from sega_bench.study import settings as reading
from sega_bench.study import space
from sega_bench.study.settings import StudySettings
from sega_bench.study.space import Params

Block = tuple[str, int]
"""A prompt and a seed."""

SETTINGS = ("replay", *reversed(AXES))
"""What may be set of a cell, by the names of its columns; the method first, which has others read or not."""

BASELINE: Params = {}
"""In the place of a trial's values: the configuration's own setting, that no sampler has touched."""


@dataclass(frozen=True)
class Trial:
    """A setting that was asked for.

    Args:
        number: in the order of asking, from 0.
        params: its values.
        resource: how many blocks it was given, once that is decided.
        state: ``told`` once its scores are; ``failed`` if cells failed on most of its blocks, or it has no
            score at all.
    """

    number: int
    params: Params
    resource: int = 0
    state: Literal["asked", "told", "failed"] = "asked"


@dataclass(frozen=True)
class Study:
    """A study, resolved: nothing asked, nothing run.

    Args:
        config: as it was composed.
        settings: what it says of the study, checked.
        baseline: the plan of the configuration's own setting, on all blocks.
        blocks: in the order in which every trial is given them: all prompts with their first seed, with their
            second, and so on.
        held_out: the same on prompts and seeds that are not searched with, in a folder within the study's;
            None if there are none.
    """

    config: Config
    settings: StudySettings
    baseline: Plan
    blocks: tuple[Block, ...]
    held_out: Study | None = None
    _cells: dict[tuple[tuple[str, Any], ...], tuple[Cell, ...]] = field(default_factory=dict, repr=False)

    @property
    def first_resource(self) -> int:
        """How many blocks every trial is given."""
        return min(self.settings.min_resource or len(self.blocks), len(self.blocks))

    @property
    def batch(self) -> int:
        """How many trials are asked for together: as many as fill a wave, if nothing else is said."""
        if self.settings.batch is not None:
            return self.settings.batch
        rows = self.config.engine.wave_rows - self.first_resource
        return max(1, rows // (self.first_resource * len(self.baseline.concepts)))

    @cached_property
    def start(self) -> Params | None:
        """The baseline as a trial; None if it lies outside the space, or concepts' mappings differ in it."""
        start: dict[str, Any] = {}
        for setting in self.settings.space:
            (value, *others) = _values(self.baseline.cells, setting.name)
            params = None if others else setting.params_of(value)
            if params is None:
                return None
            start |= params
        return start

    def trying_once(self) -> Study:
        """The same, which does not try again what has failed."""
        config = replace(self.config, retry_failed=False)
        made = replace(self.baseline, config=replace(self.baseline.config, retry_failed=False))
        return replace(self, config=config, baseline=made)

    def point(self, params: Params) -> dict[str, Any]:
        """A trial's values by its settings; none of the baseline."""
        return {setting.name: setting.of(params) for setting in self.settings.space} if params else {}

    def resolved(self, params: Params) -> dict[str, Any]:
        """:meth:`point` as the table has it: null for one, where the method does not read it."""
        cells = self.cells(params)
        return {setting.name: _values(cells, setting.name)[0] for setting in self.settings.space}

    def cells(self, params: Params) -> tuple[Cell, ...]:
        """A setting's cells on all blocks, each reference before what is scored against it."""
        name = tuple(params.items())
        if name not in self._cells:
            self._cells[name] = plan(
                space.with_points(self.config, [self.point(params)]), self.baseline.model
            ).cells
        return self._cells[name]

    def cells_on(self, params: Params, blocks: Iterable[Block]) -> tuple[Cell, ...]:
        """Those on some blocks only."""
        wanted = set(blocks)
        return tuple(cell for cell in self.cells(params) if block_of(cell) in wanted)

    def plan(self, granted: Iterable[tuple[Params, int]]) -> Plan:
        """The plan that makes the baseline on all blocks, and settings on as many as each was given.

        Args:
            granted: the values of each, and how many of the first blocks.
        """
        given = [(BASELINE, len(self.blocks)), *granted]
        wanted = [cell for params, count in given for cell in self.cells_on(params, self.blocks[:count])]
        cells = tuple(dict.fromkeys(wanted))
        points = [self.point(params) for params, _ in given[1:]]
        zipped = space.with_points(self.config, points).zip if points else {}
        edits = sum(not cell.is_reference for cell in wanted)
        return replace(
            self.baseline,
            cells=cells,
            merged=edits - sum(not cell.is_reference for cell in cells),
            axes={setting.name: _values(cells, setting.name) for setting in self.settings.space},
            config=replace(self.baseline.config, zip=zipped, study=self.config.study),
        )

    def cost(self) -> dict[str, str]:
        """How much there is to make at most, in words."""
        made = self.settings
        blocks, sets = len(self.blocks), len(self.baseline.concepts)
        each = self.baseline.counts()["unet_evals"]
        return {
            "trials": f"{made.trials}, {self.batch} together, by sampler {made.sampler}",
            "cells of a trial": f"{self.first_resource * sets}, near the front up to {blocks * sets}",
            "evaluations": f"at most about {each * made.trials:,}",
        }


def resolve(config: Config) -> Study:
    """A study from its configuration.

    Raises:
        UserError: anything wrong with what was asked, named by its key; no model has been loaded.
    """
    baseline = plan(replace(config, axes={}, zip={}, study=StudyConfig()))
    made = reading.read(config, baseline.concepts)
    blocks = _blocks(baseline.cells)
    if (made.min_resource or 1) > len(blocks):
        raise UserError(
            f"study.min_resource is {made.min_resource}, but there are {len(blocks)} prompts x seeds"
        )
    space.check(made.space, baseline)
    return Study(config, made, baseline, blocks, _held_out(config, made, baseline, blocks))


def _held_out(config: Config, made: StudySettings, baseline: Plan, blocks: Sequence[Block]) -> Study | None:
    prompts, seeds = config.study.held_out.prompts, config.study.held_out.seeds
    if prompts is None and seeds is None:
        return None
    elsewhere = replace(
        config,
        name="held_out",
        output_dir=str(Path(baseline.config.output_dir) / baseline.name),
        prompts=config.prompts if prompts is None else prompts,
        seeds=config.seeds if seeds is None else seeds,
        study=StudyConfig(),
        wandb=replace(config.wandb, mode="disabled"),
    )
    try:
        found = plan(elsewhere, baseline.model)
    except UserError as error:
        raise UserError(f"study.held_out.{error}") from error
    apart = _blocks(found.cells)
    if both := [block for block in apart if block in blocks]:
        prompt, seed = both[0]
        where, remedy = "study.held_out", "hold other seeds out"
        if isinstance(seeds, list) and seed not in seeds:
            where, remedy = "study.held_out.prompts", "its file gives it this seed, so hold other prompts out"
        raise UserError(f"{where}: {shown(prompt)} with seed {seed} is searched with too: {remedy}")
    return Study(elsewhere, made, found, apart)


def block_of(cell: Cell) -> Block:
    """Which prompt and seed a cell shows."""
    return cell.prompt, cell.seed


def _blocks(cells: Sequence[Cell]) -> tuple[Block, ...]:
    seeds: dict[str, list[int]] = {}
    for prompt, seed in dict.fromkeys(map(block_of, cells)):
        seeds.setdefault(prompt, []).append(seed)
    turns = range(max(map(len, seeds.values())))
    return tuple((prompt, own[i]) for i in turns for prompt, own in seeds.items() if i < len(own))


def _values(cells: Iterable[Cell], name: str) -> list[Any]:
    """An axis' values as cells have them, in order of appearance: one value where all concepts agree."""
    found: dict[str, Any] = {}
    for row in (columns_of(cell) for cell in cells if not cell.is_reference):
        value = row[name]
        if isinstance(value, list) and value.count(value[0]) == len(value):
            value = value[0]
        found.setdefault(repr(value), value)
    return list(found.values())


def asked(study: Study) -> Mapping[str, Any]:
    """What its trials are scored on, and each setting where it is not searched, as JSON has it."""
    return {
        "blocks": [list(block) for block in study.blocks],
        "concepts": [list(together) for together in study.baseline.concepts],
        **{name: _values(study.baseline.cells, name) for name in SETTINGS},
    }

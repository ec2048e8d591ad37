"""From a configuration to a plan: every cell of the sweep, resolved and checked, nothing run.

Precedence of an edit setting: ``edit`` < the concept's own mapping < ``zip`` and ``axes``. Of a sampling
setting: ``sampling`` < the prompt's own column < ``zip`` and ``axes``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from sega_bench.cell import EDIT_SETTINGS, Cell, Edit, per_concept, shown
from sega_bench.config import Config, SamplingConfig, nearest
from sega_bench.errors import UserError
from sega_bench.prompts import Prompt, as_text, read_prompts, read_replays
from sega_bench.sega.checkpoints.finding import Model, describe
from sega_bench.sega.checkpoints.settings import ModelSettings
from sega_bench.sega.models import default_dtype, resolve_device
from sega_bench.sega.schedule import Wave, departs, form_waves
from sega_bench.sega.wave import count_timesteps

MOMENTUM_SETTINGS = ("edit_momentum_scale", "edit_mom_beta")
SAMPLING_SETTINGS = tuple(f.name for f in fields(SamplingConfig))
NO_AXES = ("model", "prompt", "concept", "seed", "replay")
AXES = (*EDIT_SETTINGS, *MOMENTUM_SETTINGS, *SAMPLING_SETTINGS, "negative_prompt")

Point = Mapping[str, Any]
"""One combination of axis values."""


@dataclass(frozen=True)
class Concept:
    """A text to steer by, and the settings that only it has."""

    text: str
    own: Mapping[str, Any]


ConceptSet = tuple[Concept, ...]
"""Concepts applied together."""


@dataclass(frozen=True)
class Plan:
    """A sweep, resolved: what to make, and how it was asked for.

    Args:
        name: of the sweep and its folder.
        cells: distinct, each reference before the cells that are scored against it.
        merged: cells asked for more than once.
        axes: values of every axis, zipped ones included, in order of declaration; ``replay`` if it varies.
        prompts, concepts, seeds: what the axes were crossed with; texts only.
        model: described, not loaded.
        config: the configuration the plan was made from.
    """

    name: str
    cells: tuple[Cell, ...]
    merged: int
    axes: Mapping[str, Sequence[Any]]
    prompts: tuple[str, ...]
    concepts: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...]
    model: Model
    config: Config

    @cached_property
    def edited(self) -> tuple[Cell, ...]:
        """The cells with concepts."""
        return tuple(cell for cell in self.cells if not cell.is_reference)

    @cached_property
    def waves(self) -> tuple[Wave, ...]:
        """The whole plan as the engine would run it."""
        return form_waves(self.cells, self.config.engine.wave_rows, count_timesteps)

    def counts(self) -> dict[str, int]:
        """How much there is to make; ``unet_evals_diffusers`` is what its pipeline takes for the same."""
        same = sum(departs(cell, count_timesteps(cell)) == count_timesteps(cell) for cell in self.edited)
        return {
            "cells": len(self.cells),
            "edited": len(self.edited),
            "references": len(self.cells) - len(self.edited),
            "merged": self.merged,
            "same_as_reference": same,
            "unet_evals": sum(sum(wave.count_evaluations().values()) for wave in self.waves),
            "unet_evals_diffusers": _diffusers_evaluations(self.cells),
        }


def _diffusers_evaluations(cells: Iterable[Cell]) -> int:
    """Cell by cell, all concepts at every step; a replay takes its source's guidance as it was stored."""

    def evaluations(cell: Cell) -> int:
        concepts = len(cell.edits) if cell.replay is None else 0
        return count_timesteps(cell) * (2 + concepts if cell.guidance_scale > 1 else 1)

    return sum(evaluations(one) for one in {one for cell in cells for one in (cell, cell.source())})


def plan(config: Config) -> Plan:
    """Resolve a configuration into all its cells.

    Raises:
        UserError: anything wrong with what was asked, named by its key; no model has been loaded.
    """
    name = _checked_name(config)
    prompts = read_prompts(config.prompts, config.prompt_file)
    seeds = _seeds(config.seeds)
    concepts = tuple(_concept_set(entry, f"concepts[{i}]") for i, entry in enumerate(_concepts(config)))
    axes = _axes(config.axes, "axes")
    zipped = _axes(config.zip, "zip")
    replays = read_replays(config.replay)
    points = list(_points(axes, zipped))
    model = describe(ModelSettings.of(asdict(config.model)), dry_run=config.dry_run)
    wanted = _Resolver(config, model).cells(prompts, seeds, concepts, replays, points)
    cells, merged = _distinct(wanted)
    return Plan(
        name=name,
        cells=cells,
        merged=merged,
        axes=zipped | axes | ({"replay": list(replays)} if len(replays) > 1 else {}),
        prompts=tuple(prompt.text for prompt in prompts),
        concepts=tuple(tuple(concept.text for concept in together) for together in concepts),
        seeds=seeds,
        model=model,
        config=config,
    )


def _distinct(wanted: Iterable[Cell]) -> tuple[tuple[Cell, ...], int]:
    """Distinct cells with each reference before its first cell, and how many were asked for again."""
    cells: dict[Cell, None] = {}
    merged = 0
    for cell in wanted:
        cells.setdefault(cell.reference())
        merged += not cell.is_reference and cell in cells
        cells.setdefault(cell)
    return tuple(cells), merged


def _checked_name(config: Config) -> str:
    suffix = "" if config.model.name == "faces" else f"-{config.model.name}"
    for key, value in (("name", config.name), ("model.name", config.model.name)):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.=,+-]{0,99}", value):
            raise UserError(
                f"{key} is {shown(value)}, but it names a folder: letters, digits and _ . - = , + only, "
                "at most 100, beginning with a letter, digit or _"
            )
    return config.name + suffix


def _seeds(value: Any) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1_000_000:
        return tuple(range(value))
    if isinstance(value, list) and value and all(type(seed) is int and 0 <= seed < 2**63 for seed in value):
        return tuple(dict.fromkeys(value))
    raise UserError(
        f"seeds is {shown(value)}, but it must be a list of whole numbers from 0, seeds=[0,1,2], "
        "or how many, seeds=3"
    )


def _concepts(config: Config) -> list[Any]:
    if not isinstance(config.concepts, list):
        raise UserError(f"concepts is {shown(config.concepts)}, but it must be a list: concepts=['smile']")
    return config.concepts


def _concept_set(entry: Any, key: str) -> ConceptSet:
    """One entry of ``concepts``: a text, a mapping with ``text``, or a list of those."""
    if isinstance(entry, list):
        if not entry:
            raise UserError(f"{key} is an empty list: name at least one concept, or remove it")
        return tuple(_concept(one, f"{key}[{i}]") for i, one in enumerate(entry))
    return (_concept(entry, key),)


def _concept(entry: Any, key: str) -> Concept:
    if not isinstance(entry, dict):
        return Concept(as_text(entry, key), {})
    own = {str(name): value for name, value in entry.items() if name != "text"}
    for name in own:
        if name in MOMENTUM_SETTINGS:
            raise UserError(
                f"{key}.{name}: momentum belongs to the whole cell; set edit.{name} or axes.{name}"
            )
        if name not in EDIT_SETTINGS:
            raise UserError(
                f"{key}.{name}: {nearest(name, ('text', *EDIT_SETTINGS))}a concept has text, "
                f"{', '.join(EDIT_SETTINGS)}"
            )
    if "text" not in entry:
        raise UserError(f"{key} has no text: write {{text: 'a smile', edit_threshold: 0.9}}")
    return Concept(as_text(entry["text"], f"{key}.text"), own)


def _axes(value: Mapping[str, Any], key: str) -> dict[str, list[Any]]:
    for name, values in value.items():
        if name not in AXES:
            extra = "; it has a key of its own" if name in NO_AXES else ""
            raise UserError(
                f"{key}.{name} is no axis{extra}: {nearest(name, AXES)}axes are {', '.join(AXES)}"
            )
        if not isinstance(values, list) or not values:
            raise UserError(f"{key}.{name} is {shown(values)}, but it must be a list: '{key}.{name}=[a,b]'")
    return dict(value)


def _points(axes: Mapping[str, list[Any]], zipped: Mapping[str, list[Any]]) -> Iterator[Point]:
    """Every combination: lists of ``zip`` advance together, ``axes`` are crossed."""
    lengths = {name: len(values) for name, values in zipped.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(
            "zip: its lists advance together, so they must be equally long, but "
            + ", ".join(f"{name} has {count}" for name, count in lengths.items())
        )
    if both := set(axes) & set(zipped):
        name = sorted(both)[0]
        raise UserError(f"{name} is in axes and in zip: remove one of them, as in ~axes.{name}")
    together = [dict(zip(zipped, row, strict=True)) for row in zip(*zipped.values(), strict=True)] or [{}]
    for row in together:
        for values in itertools.product(*axes.values()):
            yield row | dict(zip(axes, values, strict=True))


@dataclass(frozen=True)
class _Resolver:
    """Fills in every setting of a cell, and knows which key to name when one is wrong."""

    config: Config
    model: Model

    def cells(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        concepts: Sequence[ConceptSet],
        replays: Sequence[str | None],
        points: Sequence[Point],
    ) -> Iterator[Cell]:
        """All cells in the order prompts, seeds, concepts, replays, settings; without concepts unedited."""
        for prompt in prompts:
            own_seeds = [prompt.own["seed"]] if "seed" in prompt.own else seeds
            for seed, together, replay in itertools.product(own_seeds, concepts or [()], replays):
                for point in points:
                    yield self.cell(prompt, seed, together, replay, point)

    def cell(self, prompt: Prompt, seed: int, together: ConceptSet, replay: str | None, point: Point) -> Cell:
        """One cell, checked."""
        sampling = {name: getattr(self.config.sampling, name) for name in SAMPLING_SETTINGS}
        sampling["negative_prompt"] = self.config.negative_prompt
        sampling |= {name: value for name, value in prompt.own.items() if name != "seed"}
        sampling |= {name: value for name, value in point.items() if name in sampling}
        sampling["negative_prompt"] = as_text(
            sampling["negative_prompt"], self._origin("negative_prompt", point)
        )
        scheduler = sampling.pop("scheduler")
        if scheduler is not None:
            scheduler = as_text(scheduler, self._origin("scheduler", point))
        name, scheduler_config = self.model.scheduler_for(scheduler)
        for side in ("height", "width"):
            sampling[side] = self.model.size if sampling[side] is None else sampling[side]
        momentum = {key: self._shared(key, point) for key in MOMENTUM_SETTINGS}
        edits = self._edits(together, point)
        try:
            cell = Cell(
                prompt=prompt.text,
                seed=seed,
                edits=edits,
                scheduler=name,
                scheduler_config=scheduler_config,
                model=self.model.id,
                dtype=self._dtype,
                replay=replay,
                **sampling,
                **momentum,
            )
        except ValueError as error:
            raise UserError(self._located(str(error), point)) from error
        self._check_steps(cell, point)
        return cell

    @cached_property
    def _dtype(self) -> str:
        engine = self.config.engine
        allowed = ("float32", "float16", "bfloat16", "float64")
        if engine.dtype is not None and engine.dtype not in allowed:
            raise UserError(f"engine.dtype is {engine.dtype!r}, but it must be one of {', '.join(allowed)}")
        return engine.dtype or default_dtype(resolve_device(engine.device))

    def _shared(self, name: str, point: Point) -> Any:
        value = point.get(name, getattr(self.config.edit, name))
        if isinstance(value, list):
            raise UserError(
                f"{self._origin(name, point)} holds a list, but momentum belongs to the whole cell: "
                "give one number"
            )
        return value

    def _edits(self, together: ConceptSet, point: Point) -> tuple[Edit, ...]:
        columns = {name: self._per_concept(name, together, point) for name in EDIT_SETTINGS}
        edits = []
        for k, concept in enumerate(together):
            values = {name: column[k] for name, column in columns.items()}
            try:
                edits.append(Edit(concept.text, **values))
            except ValueError as error:
                raise UserError(self._located(str(error), point, concept)) from error
        return tuple(edits)

    def _per_concept(self, name: str, together: ConceptSet, point: Point) -> list[Any]:
        if name in point:
            return self._spread(point[name], together, self._origin(name, point))
        shared = self._spread(getattr(self.config.edit, name), together, f"edit.{name}")
        return [concept.own.get(name, value) for concept, value in zip(together, shared, strict=True)]

    def _spread(self, value: Any, together: ConceptSet, key: str) -> list[Any]:
        try:
            return per_concept(value, [concept.text for concept in together], key)
        except ValueError as error:
            raise UserError(str(error)) from error

    def _check_steps(self, cell: Cell, point: Point) -> None:
        if cell.height % 8 or cell.width % 8 or min(cell.height, cell.width) < 16:
            raise UserError(
                f"sampling: {cell.height} x {cell.width} pixels, but both must be multiples of 8, from 16 on"
            )
        n = count_timesteps(cell)
        for edit in cell.edits:
            if edit.edit_warmup_steps > n:
                raise UserError(
                    f"{self._origin('edit_warmup_steps', point)} is {edit.edit_warmup_steps}, but "
                    f"{cell.scheduler} takes {n} steps: use at most {n}, which leaves the image unedited"
                )

    def _origin(self, name: str, point: Point, concept: Concept | None = None) -> str:
        """The configuration key that a setting's value came from."""
        if name in point:
            return f"{'axes' if name in self.config.axes else 'zip'}.{name}"
        if concept is not None and name in concept.own:
            return f"concepts: {concept.text!r}: {name}"
        if name in ("negative_prompt", "seed", "prompt", "concept", "replay"):
            return name
        return f"sampling.{name}" if name in SAMPLING_SETTINGS else f"edit.{name}"

    def _located(self, message: str, point: Point, concept: Concept | None = None) -> str:
        name, _, rest = message.partition(" ")
        return f"{self._origin(name, point, concept)} {rest}"

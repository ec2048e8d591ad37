"""Expansion of a configuration into a plan: all cells of a sweep, resolved and checked before any runs."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

from sega_bench import scores
from sega_bench.cell import EDIT_SETTINGS, Cell, Edit, abbreviated
from sega_bench.config import WANDB_MODES, Config, StudyConfig, VerdictConfig
from sega_bench.errors import UserError, check_count, expand_user, nearest
from sega_bench.planning import launch_options
from sega_bench.planning.prompts import as_text, read_prompts, read_replays
from sega_bench.planning.resolver import (
    MOMENTUM_SETTINGS,
    SAMPLING_SETTINGS,
    Concept,
    ConceptSet,
    Point,
    Resolver,
)
from sega_bench.scores import ScoreSettings
from sega_bench.sega.checkpoints.locate import Model, describe
from sega_bench.sega.checkpoints.settings import ModelSettings
from sega_bench.sega.schedule import Wave, form_waves
from sega_bench.sega.steps import computes_guidance, fork_step
from sega_bench.sega.wave import count_timesteps
from sega_bench.system import gc_control

NO_AXES = ("model", "prompt", "concept", "seed", "replay")
AXES = (*EDIT_SETTINGS, *MOMENTUM_SETTINGS, *SAMPLING_SETTINGS, "method")

_MAX_CELLS = 1_000_000

_ENGINE_LIMITS = {
    "micro_batch_size": 4096,
    "decode_batch_size": 4096,
    "wave_rows": _MAX_CELLS,
    "threads": 1024,
}


@dataclass(frozen=True)
class Plan:
    """A resolved sweep: the cells to generate, and the configuration they come from.

    Args:
        name: of the sweep and its folder.
        cells: distinct cells, each reference before the cells scored against it.
        merged: number of edited cells that repeat another.
        axes: the values of each axis as its cells have them: first ``zip``, then ``axes``, each in order of
            declaration, then ``replay`` if it varies.
        prompts, concepts, seeds: crossed with the axes; prompts and concepts as texts only.
        model: the checkpoint's description; its weights are not loaded.
        config: the configuration, with ``~`` in ``output_dir`` expanded.
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
        """The cells that have concepts."""
        return tuple(cell for cell in self.cells if not cell.is_reference)

    @cached_property
    def waves(self) -> tuple[Wave, ...]:
        """The waves in which the engine would run the whole plan."""
        return form_waves(self.cells, self.config.engine.wave_rows, count_timesteps)

    def counts(self) -> dict[str, int]:
        """Numbers of cells and of UNet evaluations, here and by diffusers' pipeline."""
        return dict(self._counts)

    @cached_property
    @gc_control.disabled()
    def _counts(self) -> dict[str, int]:  # cached: plan.json is written and compared several times
        same = sum(fork_step(cell, count_timesteps(cell)) == count_timesteps(cell) for cell in self.edited)
        return {
            "cells": len(self.cells),
            "edited": len(self.edited),
            "references": len(self.cells) - len(self.edited),
            "merged": self.merged,
            "same_as_reference": same,
            "unet_evals": sum(wave.unet_evals for wave in self.waves),
            "unet_evals_diffusers": _diffusers_evaluations(self.cells),
        }


def _diffusers_evaluations(cells: Iterable[Cell]) -> int:
    """UNet evaluations of diffusers' pipelines, which generate each cell alone.

    The SEGA pipeline evaluates all concepts at every step. A replay reuses its source's stored guidance. The
    methods that edit prompts cost as much as the plain pipeline.
    """

    def evaluations(cell: Cell) -> int:
        concepts = len(cell.edits) if computes_guidance(cell) else 0
        return count_timesteps(cell) * (2 + concepts if cell.guidance_scale > 1 else 1)

    distinct = {generated for cell in cells for generated in (cell, cell.source())}
    return sum(map(evaluations, distinct))


def plan(config: Config, model: Model | None = None) -> Plan:
    """Resolve a configuration into all its cells, without loading a model.

    Args:
        config: the configuration of a sweep.
        model: the description of the configuration's model, to save its hashing; None: describe it.

    Raises:
        UserError: the configuration is invalid; the message names the key.
    """
    _check_settings(config)
    name = _sweep_name(config)
    output_dir = expand_user(config.output_dir, "output_dir")
    prompts = read_prompts(config.prompts, config.prompt_file)
    seeds = _parse_seeds(config.seeds)
    concepts = _parse_concepts(config.concepts)
    if config.method != "sega" and not concepts:
        raise UserError(
            f"method is {abbreviated(config.method)}, but there are no concepts: concepts=['a smile']"
        )
    axes = _parse_axes(config.axes, "axes", has_edits=bool(concepts))
    zipped = _parse_axes(config.zip, "zip", has_edits=bool(concepts))
    replays = read_replays(config.replay)
    _check_cell_count(len(prompts), len(seeds), len(concepts), len(replays), *map(len, axes.values()))
    points = list(_combinations(axes, zipped))
    scores.check(ScoreSettings(**asdict(config.scores)))
    model = model or describe(ModelSettings.of(asdict(config.model)), dry_run=config.dry_run)
    resolver = Resolver(config, model)
    with gc_control.disabled():  # the cells are many and none is garbage
        cells, merged = _distinct(resolver.cells(prompts, seeds, concepts, replays, points))
    return Plan(
        name=name,
        cells=cells,
        merged=merged,
        axes={name: resolver.axis(name, values) for name, values in (zipped | axes).items()}
        | ({"replay": list(replays)} if len(replays) > 1 else {}),
        prompts=tuple(prompt.text for prompt in prompts),
        concepts=tuple(tuple(concept.text for concept in concept_set) for concept_set in concepts),
        seeds=seeds,
        model=model,
        config=replace(config, output_dir=str(output_dir)),
    )


def _check_settings(config: Config) -> None:
    """Check the settings that no cell depends on, which otherwise fail only when they are used."""
    for key, text in _text_settings(config):
        as_text(text, key)
    if config.study.space:
        raise UserError("study.space: a search has no plan before it is run: python -m sega_bench runs it")
    if config.study != StudyConfig():
        raise UserError("study: there is no study.space to search: +study=pareto, or give one")
    for name, limit in _ENGINE_LIMITS.items():
        if (value := getattr(config.engine, name)) is not None:
            check_count(f"engine.{name}", value, limit)
    launch_options.check(config.launch)
    _check_verdict(config.verdict)
    if config.wandb.mode not in WANDB_MODES:
        raise UserError(
            f"wandb.mode is {abbreviated(config.wandb.mode)}: {nearest(config.wandb.mode, WANDB_MODES)}"
            f"there are {', '.join(WANDB_MODES)}"
        )


_VERDICT_SCORES = {
    "success": ("attribute_success", "success"),
    "gain": ("clip_concept_delta", "clip_directional"),
    "cost": ("lpips", "dino", "mse", "changed_fraction", "attribute_leakage"),
}
"""Scores that can judge settings: successes and gains are better if larger, costs if smaller."""


def _check_verdict(verdict: VerdictConfig) -> None:
    for name, known in _VERDICT_SCORES.items():
        value = getattr(verdict, name)
        if value not in known and not (name == "success" and value is None):
            raise UserError(
                f"verdict.{name} is {abbreviated(value)}: {nearest(str(value), known)}"
                f"there are {', '.join(known)}"
            )
    if not 0 <= verdict.margin <= 1:
        raise UserError(f"verdict.margin is {verdict.margin:g}, but it must lie between 0 and 1")


def _text_settings(section: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            yield from _text_settings(value, f"{prefix}{field.name}.")
        elif isinstance(value, str):
            yield f"{prefix}{field.name}", value


def _check_cell_count(*counts: int) -> None:
    if math.prod(max(1, count) for count in counts) > _MAX_CELLS:
        product = " x ".join(f"{count:,}" for count in counts)
        raise UserError(
            f"prompts x seeds x concepts x replays x axes are {product} cells, more than {_MAX_CELLS:,}: "
            "make several sweeps of it"
        )


def _distinct(requested: Iterable[Cell]) -> tuple[tuple[Cell, ...], int]:
    """Distinct cells, each reference before its first cell, and the number of repeated edited cells."""
    cells: dict[Cell, None] = {}
    merged = 0
    for cell in requested:
        cells.setdefault(cell.reference())
        merged += not cell.is_reference and cell in cells
        cells.setdefault(cell)
    return tuple(cells), merged


def _sweep_name(config: Config) -> str:
    suffix = "" if config.model.name == "faces" else f"-{config.model.name}"
    for key, value in (("name", config.name), ("model.name", config.model.name)):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.=,+-]{0,99}", value):
            raise UserError(
                f"{key} is {abbreviated(value)}, but it names a folder: letters, digits and _ . - = , + "
                "only, at most 100, beginning with a letter, digit or _"
            )
    return config.name + suffix


def _parse_seeds(value: Any) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1_000_000:
        return tuple(range(value))
    if isinstance(value, list) and value and all(type(seed) is int and 0 <= seed < 2**63 for seed in value):
        return tuple(dict.fromkeys(value))
    raise UserError(
        f"seeds is {abbreviated(value)}, but it must be a list of whole numbers from 0, seeds=[0,1,2], "
        "or how many, seeds=3"
    )


def _parse_concepts(value: Any) -> tuple[ConceptSet, ...]:
    if not isinstance(value, list):
        raise UserError(f"concepts is {abbreviated(value)}, but it must be a list: concepts=['smile']")
    return tuple(_parse_concept_set(entry, f"concepts[{i}]") for i, entry in enumerate(value))


def _parse_concept_set(entry: Any, key: str) -> ConceptSet:
    """Parse an entry of ``concepts``: a text, a mapping with ``text``, or a list of these."""
    if isinstance(entry, list):
        if not entry:
            raise UserError(f"{key} is an empty list: name at least one concept, or remove it")
        return tuple(_parse_concept(item, f"{key}[{i}]") for i, item in enumerate(entry))
    return (_parse_concept(entry, key),)


def _parse_concept(entry: Any, key: str) -> Concept:
    if not isinstance(entry, dict):
        return Concept(as_text(entry, key), {}, key)
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
    text = as_text(entry["text"], f"{key}.text")
    try:
        Edit(text, **own)  # checks the ranges of values that an axis may override
    except ValueError as error:
        raise UserError(f"{key}.{error}") from error
    return Concept(text, own, key)


def _parse_axes(value: Mapping[str, Any], key: str, *, has_edits: bool) -> dict[str, list[Any]]:
    for name, values in value.items():
        if name not in AXES:
            extra = "; it has a key of its own" if name in NO_AXES else ""
            raise UserError(
                f"{key}.{name} is no axis{extra}: {nearest(name, AXES)}axes are {', '.join(AXES)}"
            )
        if not isinstance(values, list) or not values:
            raise UserError(
                f"{key}.{name} is {abbreviated(values)}, but it must be a list: '{key}.{name}=[a,b]'"
            )
        if name not in SAMPLING_SETTINGS and not has_edits:
            raise UserError(f"{key}.{name} has no concept to act on: give some, concepts=['a smile']")
    return dict(value)


def _combinations(axes: Mapping[str, list[Any]], zipped: Mapping[str, list[Any]]) -> Iterator[Point]:
    """Yield all combinations of values: the lists of ``zip`` advance together, ``axes`` are crossed."""
    lengths = {name: len(values) for name, values in zipped.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(
            "zip: its lists advance together, so they must be equally long, but "
            + ", ".join(f"{name} has {count}" for name, count in lengths.items())
        )
    if both := set(axes) & set(zipped):
        name = sorted(both)[0]
        raise UserError(f"{name} is in axes and in zip: remove one of them, as in ~axes.{name}")
    rows = [dict(zip(zipped, row, strict=True)) for row in zip(*zipped.values(), strict=True)] or [{}]
    for row in rows:
        for values in itertools.product(*axes.values()):
            yield row | dict(zip(axes, values, strict=True))

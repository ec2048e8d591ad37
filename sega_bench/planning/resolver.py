"""Resolution of a configuration's settings into cells, with error messages that name a setting's own key.

Precedence of an edit setting: ``edit`` < the concept's own mapping < ``zip`` and ``axes``. Precedence of a
sampling setting: ``sampling`` < the prompt's own column < ``zip`` and ``axes``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from sega_bench.cell import EDIT_SETTINGS, Cell, Edit, broadcast, check_method, per_concept
from sega_bench.config import Config, SamplingConfig
from sega_bench.errors import UserError
from sega_bench.planning.launch_options import device_of
from sega_bench.planning.prompts import Prompt, as_text
from sega_bench.sega.checkpoints.locate import Model
from sega_bench.sega.models import default_dtype
from sega_bench.sega.wave import count_timesteps

MOMENTUM_SETTINGS = ("edit_momentum_scale", "edit_mom_beta")
SAMPLING_SETTINGS = (*(f.name for f in fields(SamplingConfig)), "negative_prompt")

_DTYPES = ("float32", "float16", "bfloat16", "float64")

Point = Mapping[str, Any]
"""One combination of axis values, by setting."""


@dataclass(frozen=True)
class Concept:
    """A concept's text, its own settings, and its key in the configuration."""

    text: str
    own: Mapping[str, Any]
    key: str


ConceptSet = tuple[Concept, ...]
"""Concepts applied together."""


@dataclass(frozen=True)
class _Source:
    """The places in the configuration that set the values of a cell or of one of its concepts."""

    config: Config
    prompt: Prompt
    point: Point
    concept: Concept | None = None

    def value(self, name: str) -> Any:
        """The value of highest precedence, a concept's own settings aside; may be a per-concept list."""
        for values in (self.point, self.prompt.own):
            if name in values:
                return values[name]
        if name in ("negative_prompt", "method"):
            return getattr(self.config, name)
        return getattr(self.config.sampling if name in SAMPLING_SETTINGS else self.config.edit, name)

    def key(self, name: str) -> str:
        """The configuration key, or the file, line and column, that set the value in effect."""
        if name in self.point:
            return f"{'axes' if name in self.config.axes else 'zip'}.{name}"
        if self.concept is not None and name in self.concept.own:
            return f"{self.concept.key}.{name}"
        if name in self.prompt.origin:
            return self.prompt.origin[name]
        if name in (*EDIT_SETTINGS, *MOMENTUM_SETTINGS):
            return f"edit.{name}"
        return f"sampling.{name}" if hasattr(self.config.sampling, name) else name

    def error(self, message: object) -> UserError:
        """A user error from a message that begins with a setting's name, which its key replaces."""
        name, _, rest = str(message).partition(" ")
        return UserError(f"{self.key(name)} {rest}")


@dataclass(frozen=True)
class Resolver:
    """Resolves and checks all settings of a sweep's cells."""

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
        """Yield all cells in the order prompts, seeds, concepts, replays, points; unedited without concepts.

        ``seeds`` apply to the prompts that have no seed of their own.

        Raises:
            UserError: a setting is out of range; the message begins with the key that set it.
        """
        self._check_shared()
        concept_sets = concepts or [()]
        for prompt in prompts:
            # Settings and edits do not depend on seed and replay, so they are resolved once per prompt.
            sources = [_Source(self.config, prompt, point) for point in points]
            settings = [self._sampling(source) | self._momentum(source) for source in sources]
            edits = [[self._edits(concept_set, source) for source in sources] for concept_set in concept_sets]
            prompt_seeds = [prompt.own["seed"]] if "seed" in prompt.own else seeds
            for seed, k, replay in itertools.product(prompt_seeds, range(len(concept_sets)), replays):
                for source, cell_settings, cell_edits in zip(sources, settings, edits[k], strict=True):
                    yield self._cell(source, seed, concept_sets[k], cell_edits, replay, cell_settings)

    def axis(self, name: str, values: Sequence[Any]) -> list[Any]:
        """An axis' values as its cells have them: class names of schedulers, pixels instead of null."""
        if name == "scheduler":
            return [self.model.scheduler_for(value)[0] for value in values]
        if name in ("height", "width"):
            return [self.model.size if value is None else value for value in values]
        return list(values)

    def _check_shared(self) -> None:
        """Check the values of ``sampling`` and ``edit`` even if every cell overrides them."""
        source = _Source(self.config, Prompt(""), {})
        try:
            Cell("", 0, **self._sampling(source), **self._momentum(source))
            check_method(self.config.method)
            for name in EDIT_SETTINGS:
                for value in broadcast(source.value(name), 1):
                    Edit("", **{name: value})
        except ValueError as error:
            raise source.error(error) from error

    def _cell(
        self,
        source: _Source,
        seed: int,
        concept_set: ConceptSet,
        edits: tuple[Edit, ...],
        replay: str | None,
        settings: Mapping[str, Any],
    ) -> Cell:
        try:
            cell = Cell(
                source.prompt.text,
                seed,
                edits,
                model=self.model.id,
                dtype=self._dtype,
                replay=replay,
                method=source.value("method"),
                **settings,
            )
            n = count_timesteps(cell)  # some schedulers take more steps than num_inference_steps
        except ValueError as error:
            raise source.error(error) from error
        for concept, edit in zip(concept_set, edits, strict=True):
            if edit.edit_warmup_steps > n:
                raise replace(source, concept=concept).error(
                    f"edit_warmup_steps is {edit.edit_warmup_steps}, but {cell.scheduler} takes {n} steps: "
                    f"use at most {n}, which leaves the image unedited"
                )
        return cell

    def _sampling(self, source: _Source) -> dict[str, Any]:
        """The sampling settings in the form of :class:`Cell`'s arguments."""
        settings = {name: source.value(name) for name in SAMPLING_SETTINGS}
        as_text(settings["negative_prompt"], source.key("negative_prompt"))
        if settings["scheduler"] is not None:
            as_text(settings["scheduler"], source.key("scheduler"))
        try:
            settings["scheduler"], settings["scheduler_config"] = self.model.scheduler_for(
                settings["scheduler"]
            )
        except UserError as error:
            raise source.error(error) from error
        for side in ("height", "width"):
            if settings[side] is None:
                settings[side] = self.model.size
            elif isinstance(settings[side], int | float) and (settings[side] % 8 or settings[side] < 16):
                raise source.error(f"{side} is {settings[side]}, but it must be a multiple of 8, from 16 on")
        return settings

    def _momentum(self, source: _Source) -> dict[str, Any]:
        for name in MOMENTUM_SETTINGS:
            if isinstance(source.value(name), list):
                raise source.error(
                    f"{name} holds a list, but momentum belongs to the whole cell: give one number"
                )
        return {name: source.value(name) for name in MOMENTUM_SETTINGS}

    @cached_property
    def _dtype(self) -> str:
        engine = self.config.engine
        device = device_of(self.config)
        if engine.dtype is not None and engine.dtype not in _DTYPES:
            raise UserError(f"engine.dtype is {engine.dtype!r}, but it must be one of {', '.join(_DTYPES)}")
        return engine.dtype or default_dtype(device)

    def _edits(self, concept_set: ConceptSet, source: _Source) -> tuple[Edit, ...]:
        columns = {name: self._per_concept(name, concept_set, source) for name in EDIT_SETTINGS}
        edits = []
        for k, concept in enumerate(concept_set):
            try:
                edits.append(Edit(concept.text, **{name: column[k] for name, column in columns.items()}))
            except ValueError as error:
                raise replace(source, concept=concept).error(error) from error
        return tuple(edits)

    def _per_concept(self, name: str, concept_set: ConceptSet, source: _Source) -> list[Any]:
        """A setting's value for each concept of a set."""
        try:
            values = per_concept(source.value(name), [concept.text for concept in concept_set], name)
        except ValueError as error:
            raise source.error(error) from error
        if name in source.point:
            return values
        return [concept.own.get(name, value) for concept, value in zip(concept_set, values, strict=True)]

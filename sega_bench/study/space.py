"""The search space: each searched setting with its range or choices, independent of any sampler."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from sega_bench.cell import EDIT_SETTINGS, abbreviated, broadcast
from sega_bench.config import Config, StudyConfig
from sega_bench.errors import UserError, nearest
from sega_bench.planning.planner import AXES, Plan, plan
from sega_bench.sega.schedulers import class_name

Params = Mapping[str, Any]
"""A trial's values by parameter name, as Optuna's ``trial.params``."""

_INTEGERS = {
    "edit_warmup_steps": 1,
    "edit_cooldown_steps": 1,
    "num_inference_steps": 1,
    "height": 8,
    "width": 8,
}
"""Integer settings, each with the number that its values are multiples of."""

_LARGEST = 1e9
_MOST_CHOICES = 1000
_NO_RANGE = ("scheduler", "negative_prompt", "method", "reverse_editing_direction")
_KEYS = ("low", "high", "step", "log", "choices", "per_concept")


@dataclass(frozen=True)
class Setting:
    """One searched setting and its distribution.

    The fields are stored in study.json.

    Args:
        name: diffusers' keyword.
        low, high: bounds of its range, both included; unused with choices.
        step: distance between values; None for a continuous range, or a logarithmic one of integers.
        log: whether the range is sampled uniformly in its logarithm.
        choices: unordered values instead of a range.
        concepts: number of a cell's concepts that each have an own value; None for one shared value.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()
    concepts: int | None = None

    @property
    def is_integer(self) -> bool:
        """Whether its values are integers."""
        return self.name in _INTEGERS

    @property
    def multiple_of(self) -> int | None:
        """The number that its values are multiples of; None for real numbers."""
        return _INTEGERS.get(self.name)

    @property
    def bounds(self) -> tuple[Any, ...]:
        """Values that decide whether the setting is legal on its own: the range's ends, or all choices."""
        return self.choices or (self.low, self.high)

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that decide whether it is legal beside others: for numbers, the smallest and largest."""
        return self.bounds if self.name in _NO_RANGE else (min(self.bounds), max(self.bounds))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of its Optuna parameters: the setting's own, or ``<name>_1`` to ``<name>_K`` per concept."""
        if self.concepts is None:
            return (self.name,)
        return tuple(f"{self.name}_{k}" for k in range(1, self.concepts + 1))

    @property
    def size(self) -> int | None:
        """Number of values; None if it is not finite, or the range is logarithmic."""
        if self.choices or self.step is None:
            return len(self.choices) or None
        return int((self.high - self.low) / self.step + 1e-9) + 1  # 0.3 / 0.1 is 2.9999999999999996

    def values(self) -> tuple[Any, ...]:
        """All values of a setting with a :attr:`size`."""
        assert self.size is not None
        return tuple(map(self.value_at, range(self.size)))

    def value_at(self, i: int) -> Any:
        """The ``i``-th of :attr:`size` values."""
        if self.choices:
            return self.choices[i]
        assert self.step is not None
        value = round(self.low + i * self.step, 12)  # 0.1 + 2 * 0.1 is 0.3, as the user writes it
        return int(value) if self.is_integer else value

    def params_for(self, value: Any) -> dict[str, Any] | None:
        """Parameters that give the setting this value; None if they lie outside the distribution.

        Args:
            value: one value, which a per-concept setting broadcasts, or a list with one per concept.
        """
        values = broadcast(value, len(self.parameters))
        if len(values) != len(self.parameters) or not all(map(self._contains, values)):
            return None
        return dict(zip(self.parameters, values, strict=True))

    def _contains(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return bool(abs(steps - round(steps)) < 1e-9)

    def value_in(self, params: Params) -> Any:
        """Its value in a trial, a list if each concept has its own."""
        if self.concepts is None:
            return params[self.name]
        return [params[parameter] for parameter in self.parameters]


Space = tuple[Setting, ...]


def read(study: StudyConfig, concept_sets: Sequence[Sequence[str]]) -> Space:
    """Read ``study.space``; :func:`check` tells whether its values are legal.

    Args:
        study: each entry is a range ``{low: .., high: .., step: .., log: ..}``, a list of choices, or
            ``{choices: [..]}``; a mapping may say ``per_concept: true``.
        concept_sets: the study's.

    Raises:
        UserError: the mistake, named by its key.
    """
    return tuple(_read_setting(name, entry, concept_sets) for name, entry in study.space.items())


def _read_setting(name: str, entry: Any, concept_sets: Sequence[Sequence[str]]) -> Setting:
    key = f"study.space.{name}"
    if name not in AXES:
        raise UserError(f"{key} is no setting to search: {nearest(name, AXES)}there are {', '.join(AXES)}")
    described = {"choices": entry} if isinstance(entry, list) else entry
    if not isinstance(described, dict):
        raise UserError(f"{key} is {abbreviated(entry)}: write {{low: 0, high: 1}}, or a list of choices")
    for word in described:
        if word not in _KEYS:
            raise UserError(f"{key}.{word}: {nearest(str(word), _KEYS)}there are {', '.join(_KEYS)}")
    setting = _read_choices(name, described) if "choices" in described else _read_range(name, described)
    return _per_concept(setting, described.get("per_concept", False), concept_sets)


def _read_choices(name: str, entry: Mapping[str, Any]) -> Setting:
    key, choices = f"study.space.{name}", entry["choices"]
    if others := sorted(set(entry) & {"low", "high", "step", "log"}):
        raise UserError(f"{key}.{others[0]}: choices have no range: give one or the other")
    scalars = (bool, int, float, str, type(None))
    is_scalar = isinstance(choices, list) and all(isinstance(choice, scalars) for choice in choices)
    distinct = tuple(dict.fromkeys(_canonical(name, choice) for choice in choices)) if is_scalar else ()
    if len(distinct) < 2:
        raise UserError(f"{key} is {abbreviated(choices)}, but choices are two or more single values: [3, 6]")
    if len(distinct) > _MOST_CHOICES:
        raise UserError(f"{key} has {len(distinct):,} choices: give at most {_MOST_CHOICES}, or a range")
    return Setting(name, choices=distinct)


def _canonical(name: str, choice: Any) -> Any:
    """A scheduler's class name, which its cells have; :func:`check` refuses an unknown scheduler."""
    if name == "scheduler" and isinstance(choice, str):
        with suppress(UserError):
            return class_name(choice)
    return choice


def _read_range(name: str, entry: Mapping[str, Any]) -> Setting:
    key = f"study.space.{name}"
    if name in _NO_RANGE:
        raise UserError(f"{key}: {name} has no range: give choices, '{key}=[..]'")
    for end in ("low", "high"):
        if end not in entry:
            raise UserError(f"{key} has no {end}: write {{low: .., high: ..}}, or a list of choices")
    low, high, step, log = entry["low"], entry["high"], entry.get("step"), entry.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{key}.log is {abbreviated(log)}, but it must be true or false")
    unit = _INTEGERS.get(name)
    step = unit if step is None and not log else step
    for word, value in (("low", low), ("high", high), ("step", step)):
        if value is not None:
            _check_number(f"{key}.{word}", value, unit)
    if not low < high:
        raise UserError(f"{key}.high is {abbreviated(high)}, but it must be above low, {abbreviated(low)}")
    if step is not None and not 0 < step <= high - low:
        raise UserError(f"{key}.step is {abbreviated(step)}, but it must be above 0 and at most high - low")
    if log:
        _check_log(key, name, low, step)
    return Setting(name, low, high, step, log)


def _check_log(key: str, name: str, low: float, step: float | None) -> None:
    unit = _INTEGERS.get(name)
    if unit not in (None, 1):
        raise UserError(f"{key}.log: {name} takes multiples of {unit}: give a step, or choices")
    if low <= 0:
        raise UserError(f"{key}.low is {abbreviated(low)}: it must be above 0 where log is true")
    if step is not None:
        raise UserError(f"{key}.step is {abbreviated(step)}, but a range with log: true has none")


def _per_concept(setting: Setting, per_concept: Any, concept_sets: Sequence[Sequence[str]]) -> Setting:
    if per_concept is False:
        return setting
    key = f"study.space.{setting.name}.per_concept"
    if per_concept is not True:
        raise UserError(f"{key} is {abbreviated(per_concept)}, but it must be true or false")
    if setting.name not in EDIT_SETTINGS:
        raise UserError(f"{key}: {setting.name} belongs to the whole cell, not to a concept")
    sizes = {len(concepts) for concepts in concept_sets}
    if len(sizes) != 1 or min(sizes) < 2:
        raise UserError(
            f"{key}: it is for concepts that are applied together, concepts=[[a, b]]; for concepts that are "
            "applied one at a time, the study reports the best setting of each anyway"
        )
    return replace(setting, concepts=sizes.pop())


def _check_number(key: str, value: Any, unit: int | None) -> None:
    """Refuse a value that is not a number, is out of any setting's reach, or is no multiple of ``unit``."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"{key} is {abbreviated(value)}, but it must be a number")
    if not abs(value) <= _LARGEST:  # NaN fails every comparison
        raise UserError(f"{key} is {abbreviated(value)}, but no setting is as large")
    if unit is not None and value % unit:
        kind = "whole numbers" if unit == 1 else f"multiples of {unit}"
        raise UserError(f"{key} is {abbreviated(value)}, but this setting takes {kind}")


def check(space: Space, baseline: Plan) -> None:
    """Plan the corners of the space, so that no trial can ask for an illegal cell.

    Args:
        space: the search space.
        baseline: the plan of the same configuration without it.

    Raises:
        UserError: a bound or choice outside the legal range, named by its key.
    """
    one_seed = replace(baseline.config, seeds=[0])  # no setting's legal range depends on the seed
    for points in _corners(space):
        try:
            plan(with_points(one_seed, points), baseline.model)
        except UserError as error:
            raise UserError(str(error).replace("zip.", "study.space.", 1)) from error


def _corners(space: Space) -> Iterator[list[dict[str, Any]]]:
    """The bounds of each setting alone, for the most specific error; then the interdependent ones crossed."""
    for setting in space:
        yield [{setting.name: bound} for bound in setting.bounds]
    extremes = {setting.name: setting.extremes for setting in space if setting.name in _INTERDEPENDENT}
    crossed = itertools.product(*extremes.values())
    yield [dict(zip(extremes, values, strict=True)) for values in crossed]


_INTERDEPENDENT = (
    "scheduler",
    "num_inference_steps",
    "edit_warmup_steps",
    "method",
    "reverse_editing_direction",
    "guidance_scale",
)
"""Settings whose legal range depends on another one's value."""


def with_points(config: Config, points: Sequence[Mapping[str, Any]]) -> Config:
    """The configuration of a sweep over these points of the space."""
    names = points[0] if points else ()
    zipped = {name: [point[name] for point in points] for name in names}
    return replace(config, zip=zipped, study=StudyConfig())

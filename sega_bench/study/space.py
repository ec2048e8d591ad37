"""What a study searches: settings, each with its range or its choices; nothing of a sampler."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from sega_bench.cell import EDIT_SETTINGS, shown
from sega_bench.config import Config, StudyConfig
from sega_bench.errors import UserError, nearest
from sega_bench.planning.planner import AXES, Plan, plan
from sega_bench.sega.schedulers import class_name

Params = Mapping[str, Any]
"""A trial's values by the names of its parameters."""

_WHOLE = {
    "edit_warmup_steps": 1,
    "edit_cooldown_steps": 1,
    "num_inference_steps": 1,
    "height": 8,
    "width": 8,
}
"""Settings of whole numbers, each with what these are multiples of."""
_LARGEST = 1e9
_MOST_CHOICES = 1000
_NO_RANGE = ("scheduler", "negative_prompt", "method", "reverse_editing_direction")
_KEYS = ("low", "high", "step", "log", "choices", "per_concept")


@dataclass(frozen=True)
class Setting:
    """One setting to be searched.

    Args:
        name: diffusers' keyword.
        low, high: ends of its range, both included; unused where there are choices.
        step: between its values; None is any number of the range.
        log: whether equal ratios are as far apart as equal differences otherwise.
        choices: its values, in no order, if it has no range.
        concepts: how many concepts of a cell have a value each; None is one for all of them.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()
    concepts: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers."""
        return self.name in _WHOLE

    @property
    def unit(self) -> int | None:
        """What its values are multiples of; None where they are any numbers."""
        return _WHOLE.get(self.name)

    @property
    def ends(self) -> tuple[Any, ...]:
        """What bounds it: if these are legal, all of it is."""
        return self.choices or (self.low, self.high)

    @property
    def extremes(self) -> tuple[Any, ...]:
        """What bounds it beside other settings: of numbers the least and the greatest."""
        return self.ends if self.name in _NO_RANGE else (min(self.ends), max(self.ends))

    @property
    def parameters(self) -> tuple[str, ...]:
        """What a trial has a value for: the setting, or the setting of each concept."""
        if self.concepts is None:
            return (self.name,)
        return tuple(f"{self.name}_{k}" for k in range(1, self.concepts + 1))

    @property
    def count(self) -> int | None:
        """How many values it has; None if there is no end of them."""
        if self.choices or self.step is None:
            return len(self.choices) or None
        return int((self.high - self.low) / self.step + 1e-9) + 1

    def values(self) -> tuple[Any, ...]:
        """All its values, of which there is an end."""
        assert self.count is not None
        return tuple(map(self.value, range(self.count)))

    def value(self, i: int) -> Any:
        """Its ``i``-th value, of :attr:`count`."""
        if self.choices:
            return self.choices[i]
        assert self.step is not None
        value = round(self.low + i * self.step, 12)
        return int(value) if self.is_whole else value

    def params_of(self, value: Any) -> dict[str, Any] | None:
        """A trial's values where this is the setting's, a list if concepts have their own; None outside."""
        values = value if isinstance(value, list) else [value] * len(self.parameters)
        if len(values) != len(self.parameters) or not all(map(self._holds, values)):
            return None
        return dict(zip(self.parameters, values, strict=True))

    def _holds(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return bool(abs(steps - round(steps)) < 1e-9)

    def of(self, params: Params) -> Any:
        """Its value in a trial: a list where each concept has its own."""
        if self.concepts is None:
            return params[self.name]
        return [params[parameter] for parameter in self.parameters]


Space = tuple[Setting, ...]


def read(study: StudyConfig, concepts: Sequence[Sequence[str]]) -> Space:
    """The space that ``study.space`` describes.

    Args:
        study: a range is ``{low: .., high: .., step: .., log: ..}``, choices are a list or
            ``{choices: [..]}``; either mapping may say ``per_concept: true``.
        concepts: the study's concept sets.

    Raises:
        UserError: what is wrong, named by its key; whether its values are legal is told by :func:`check`.
    """
    space = []
    for name, entry in study.space.items():
        key = f"study.space.{name}"
        if name not in AXES:
            raise UserError(
                f"{key} is no setting to search: {nearest(name, AXES)}there are {', '.join(AXES)}"
            )
        described = {"choices": entry} if isinstance(entry, list) else entry
        if not isinstance(described, dict):
            raise UserError(f"{key} is {shown(entry)}: write {{low: 0, high: 1}}, or a list of choices")
        for word in described:
            if word not in _KEYS:
                raise UserError(f"{key}.{word}: {nearest(str(word), _KEYS)}there are {', '.join(_KEYS)}")
        setting = _choices(name, described) if "choices" in described else _range(name, described)
        space.append(_each_concepts(setting, described.get("per_concept", False), concepts))
    return tuple(space)


def _choices(name: str, entry: Mapping[str, Any]) -> Setting:
    key, choices = f"study.space.{name}", entry["choices"]
    if others := sorted(set(entry) & {"low", "high", "step", "log"}):
        raise UserError(f"{key}.{others[0]}: choices have no range: give one or the other")
    plain = (bool, int, float, str, type(None))
    is_plain = isinstance(choices, list) and all(isinstance(choice, plain) for choice in choices)
    distinct = tuple(dict.fromkeys(_as_cells_have_it(name, choice) for choice in choices)) if is_plain else ()
    if len(distinct) < 2:
        raise UserError(f"{key} is {shown(choices)}, but choices are two or more single values: [3, 6]")
    if len(distinct) > _MOST_CHOICES:
        raise UserError(f"{key} has {len(distinct):,} choices: give at most {_MOST_CHOICES}, or a range")
    return Setting(name, choices=distinct)


def _as_cells_have_it(name: str, choice: Any) -> Any:
    """A choice by the one name that it has in a cell; what is no scheduler, :func:`check` refuses."""
    if name == "scheduler" and isinstance(choice, str):
        with suppress(UserError):
            return class_name(choice)
    return choice


def _range(name: str, entry: Mapping[str, Any]) -> Setting:
    key = f"study.space.{name}"
    if name in _NO_RANGE:
        raise UserError(f"{key}: {name} has no range: give choices, '{key}=[..]'")
    for end in ("low", "high"):
        if end not in entry:
            raise UserError(f"{key} has no {end}: write {{low: .., high: ..}}, or a list of choices")
    low, high, step, log = entry["low"], entry["high"], entry.get("step"), entry.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{key}.log is {shown(log)}, but it must be true or false")
    unit = _WHOLE.get(name)
    step = unit if step is None and not log else step
    for word, value in (("low", low), ("high", high), ("step", step)):
        if value is not None:
            _check_number(f"{key}.{word}", value, unit)
    if not low < high:
        raise UserError(f"{key}.high is {shown(high)}, but it must be above low, {shown(low)}")
    if step is not None and not 0 < step <= high - low:
        raise UserError(f"{key}.step is {shown(step)}, but it must be above 0 and at most high - low")
    if log and unit not in (None, 1):
        raise UserError(f"{key}.log: {name} takes multiples of {unit}: give a step, or choices")
    if log and (low <= 0 or step is not None):
        what = f"low is {shown(low)}: it must be above 0" if low <= 0 else "with a step there is no log"
        raise UserError(f"{key}.{what} where log is true")
    return Setting(name, low, high, step, log)


def _each_concepts(setting: Setting, per_concept: Any, concepts: Sequence[Sequence[str]]) -> Setting:
    if per_concept is False:
        return setting
    key = f"study.space.{setting.name}.per_concept"
    if per_concept is not True:
        raise UserError(f"{key} is {shown(per_concept)}, but it must be true or false")
    if setting.name not in EDIT_SETTINGS:
        raise UserError(f"{key}: {setting.name} belongs to the whole cell, not to a concept")
    counts = {len(together) for together in concepts}
    if len(counts) != 1 or min(counts) < 2:
        raise UserError(
            f"{key}: it is for concepts that are applied together, concepts=[[a, b]]; of concepts that stand "
            "alone the best settings of each are told anyway"
        )
    return replace(setting, concepts=counts.pop())


def _check_number(key: str, value: Any, unit: int | None) -> None:
    """Refuse what is no number, none that a setting could have, or no multiple of ``unit``."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"{key} is {shown(value)}, but it must be a number")
    if not abs(value) <= _LARGEST:  # NaN fails every comparison
        raise UserError(f"{key} is {shown(value)}, but no setting is as large")
    if unit is not None and value % unit:
        kind = "whole numbers" if unit == 1 else f"multiples of {unit}"
        raise UserError(f"{key} is {shown(value)}, but this setting takes {kind}")


def check(space: Space, baseline: Plan) -> None:
    """Resolve the corners of the space, so that no trial can ask for what no cell may have.

    Args:
        space: to be searched.
        baseline: the plan of the same configuration without it.

    Raises:
        UserError: an end or a choice outside the legal range, named by its key; no model has been loaded.
    """
    one_seed = replace(baseline.config, seeds=[0])  # which no setting's range depends on
    for points in _corners(space):
        try:
            plan(with_points(one_seed, points), baseline.model)
        except UserError as error:
            raise UserError(str(error).replace("zip.", "study.space.", 1)) from error


def _corners(space: Space) -> Iterator[list[dict[str, Any]]]:
    """The ends of each setting, so that the nearest mistake is told; then what may be one together."""
    for setting in space:
        yield [{setting.name: end} for end in setting.ends]
    together = {setting.name: setting.extremes for setting in space if setting.name in _TOGETHER}
    crossed = itertools.product(*together.values())
    yield [dict(zip(together, values, strict=True)) for values in crossed]


_TOGETHER = (
    "scheduler",
    "num_inference_steps",
    "edit_warmup_steps",
    "method",
    "reverse_editing_direction",
    "guidance_scale",
)
"""Settings of which one's range depends on another's value."""


def with_points(config: Config, points: Sequence[Mapping[str, Any]]) -> Config:
    """The configuration of a sweep that makes these settings of a study."""
    names = points[0] if points else ()
    zipped = {name: [point[name] for point in points] for name in names}
    return replace(config, zip=zipped, study=StudyConfig())

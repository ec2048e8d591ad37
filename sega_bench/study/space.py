"""What a study searches: settings, each with its range or its choices; nothing of a sampler."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sega_bench.cell import EDIT_SETTINGS, shown
from sega_bench.config import Config, StudyConfig
from sega_bench.errors import UserError, nearest
from sega_bench.planner import AXES, Plan, plan

Params = Mapping[str, Any]
"""A trial's values by the names of its parameters."""

_WHOLE = ("edit_warmup_steps", "edit_cooldown_steps", "num_inference_steps", "height", "width")
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
    def ends(self) -> tuple[Any, ...]:
        """What bounds it: if these are legal, all of it is."""
        return self.choices or (self.low, self.high)

    @property
    def parameters(self) -> tuple[str, ...]:
        """What a trial has a value for: the setting, or the setting of each concept."""
        if self.concepts is None:
            return (self.name,)
        return tuple(f"{self.name}_{k}" for k in range(1, self.concepts + 1))

    def values(self) -> tuple[Any, ...] | None:
        """All its values; None if there is no end of them."""
        if self.choices or self.step is None:
            return self.choices or None
        count = int((self.high - self.low) / self.step + 1e-9) + 1
        values = (round(self.low + i * self.step, 12) for i in range(count))
        return tuple(int(value) if self.is_whole else value for value in values)

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
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, plain) for c in choices):
        raise UserError(f"{key} is {shown(choices)}, but choices are two or more single values: [3, 6]")
    return Setting(name, choices=tuple(dict.fromkeys(choices)))


def _range(name: str, entry: Mapping[str, Any]) -> Setting:
    key = f"study.space.{name}"
    if name in _NO_RANGE:
        raise UserError(f"{key}: {name} has no range: give choices, '{key}=[..]'")
    for end in ("low", "high"):
        if end not in entry:
            raise UserError(f"{key} has no {end}: write {{low: .., high: ..}}, or a list of choices")
        if not _is_number(entry[end]):
            raise UserError(f"{key}.{end} is {shown(entry[end])}, but it must be a number")
    low, high, step, log = entry["low"], entry["high"], entry.get("step"), entry.get("log", False)
    if name in _WHOLE:
        step = 1 if step is None and not log else step
        for word, value in (("low", low), ("high", high), ("step", step)):
            if value is not None and value != int(value):
                raise UserError(f"{key}.{word} is {shown(value)}, but {name} takes whole numbers")
    if not low < high:
        raise UserError(f"{key}.high is {shown(high)}, but it must be above low, {shown(low)}")
    if step is not None and not (_is_number(step) and 0 < step <= high - low):
        raise UserError(f"{key}.step is {shown(step)}, but it must be above 0 and at most high - low")
    if not isinstance(log, bool):
        raise UserError(f"{key}.log is {shown(log)}, but it must be true or false")
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def check(space: Space, baseline: Plan) -> None:
    """Resolve the corners of the space, so that no trial can ask for what no cell may have.

    Args:
        space: to be searched.
        baseline: the plan of the same configuration without it.

    Raises:
        UserError: an end or a choice outside the legal range, named by its key; no model has been loaded.
    """
    for corner in _corners(space):
        try:
            plan(with_points(baseline.config, [corner]), baseline.model)
        except UserError as error:
            raise UserError(str(error).replace("zip.", "study.space.", 1)) from error


def _corners(space: Space) -> Iterator[dict[str, Any]]:
    """Each end with the first of all others, so that the nearest mistake is told; then all combinations."""
    for setting in space:
        yield from ({setting.name: end} for end in setting.ends)
    for ends in itertools.product(*(setting.ends for setting in space[:_MOST_CROSSED])):
        yield {setting.name: end for setting, end in zip(space, ends, strict=False)}


_MOST_CROSSED = 6


def with_points(config: Config, points: Sequence[Mapping[str, Any]]) -> Config:
    """The configuration of a sweep that makes these settings of a study."""
    names = points[0] if points else ()
    zipped = {name: [point[name] for point in points] for name in names}
    return replace(config, zip=zipped, study=StudyConfig())

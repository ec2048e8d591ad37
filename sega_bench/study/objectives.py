"""Objectives and constraints of a study: scores to maximise or minimise, and bounds on scores.

Inside a study every objective is a loss: a maximised score enters as its negative.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sega_bench.analysis.scores import COST, GAIN
from sega_bench.cell import abbreviated
from sega_bench.errors import UserError, nearest

Floats = NDArray[np.float64]

Direction = Literal["maximize", "minimize"]
DIRECTIONS: tuple[Direction, Direction] = ("maximize", "minimize")
_DEFAULT = {GAIN: "maximize", COST: "minimize"}


@dataclass(frozen=True)
class Objective:
    """A score and its direction.

    Args:
        name: the score's column.
        sign: factor from score to loss: -1 to maximise, 1 to minimise.
    """

    name: str
    sign: int

    @property
    def direction(self) -> Direction:
        """As Optuna spells it."""
        return DIRECTIONS[self.sign > 0]

    @property
    def worst(self) -> float:
        """The loss at the hypervolume's reference point: 0 if maximised, 1 if minimised."""
        return 0.0 if self.sign < 0 else 1.0


@dataclass(frozen=True)
class Constraint:
    """A bound on a score's mean: ``sign * (score - bound) <= 0``."""

    name: str
    sign: int
    bound: float

    def __str__(self) -> str:
        return f"{self.name} {'<=' if self.sign > 0 else '>='} {self.bound:g}"


def read_objectives(entries: Mapping[str, Any], scores: Sequence[str]) -> tuple[Objective, ...]:
    """Read ``study.objectives``; without any, gain against preservation.

    Args:
        entries: direction by score.
        scores: the available columns.

    Raises:
        UserError: an unavailable score, or an unknown direction.
    """
    objectives = []
    for name, direction in (entries or _DEFAULT).items():
        _check_score(f"study.objectives.{name}", name, scores)
        if direction not in DIRECTIONS:
            raise UserError(
                f"study.objectives.{name} is {abbreviated(direction)}: it is {' or '.join(DIRECTIONS)}"
            )
        objectives.append(Objective(name, -1 if direction == "maximize" else 1))
    return tuple(objectives)


_CONSTRAINT = re.compile(r"\s*(\w+)\s*(<=|>=)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*", re.ASCII)


def read_constraints(entries: Any, scores: Sequence[str]) -> tuple[Constraint, ...]:
    """Read ``study.constraints``.

    Raises:
        UserError: an entry that is not ``score <= number`` or ``score >= number``, or an unavailable score.
    """
    if not isinstance(entries, list):
        raise UserError(f"study.constraints is {abbreviated(entries)}, but it is a list: ['lpips <= 0.15']")
    return tuple(
        _read_constraint(f"study.constraints[{i}]", entry, scores) for i, entry in enumerate(entries)
    )


def _read_constraint(key: str, entry: Any, scores: Sequence[str]) -> Constraint:
    match = _CONSTRAINT.fullmatch(str(entry))
    bound = _finite(match[3]) if match else None
    if match is None or bound is None:
        raise UserError(f"{key} is {abbreviated(entry)}: write it as in 'lpips <= 0.15'")
    _check_score(key, match[1], scores)
    return Constraint(match[1], 1 if match[2] == "<=" else -1, bound)


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:  # such as "1.2.3", which the pattern lets through
        return None
    return number if math.isfinite(number) else None


def _check_score(key: str, name: str, scores: Sequence[str]) -> None:
    if name not in scores:
        raise UserError(
            f"{key}: {abbreviated(name)} is no score of this configuration: {nearest(name, scores)}"
            f"there are {', '.join(scores)}"
        )

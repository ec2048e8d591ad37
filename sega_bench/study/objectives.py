"""What a study is after: scores to maximise or minimise, and bounds that others must keep.

Inside a study everything is a loss: the negative of what is maximised.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sega_bench.analysis.summary import COST, GAIN
from sega_bench.cell import shown
from sega_bench.errors import UserError, nearest

Floats = NDArray[np.float64]

Direction = Literal["maximize", "minimize"]
DIRECTIONS: tuple[Direction, Direction] = ("maximize", "minimize")
_DEFAULT = {GAIN: "maximize", COST: "minimize"}


@dataclass(frozen=True)
class Objective:
    """A score, and which way is better.

    Args:
        name: its column.
        sign: of the loss: -1 for what is maximised.
    """

    name: str
    sign: int

    @property
    def direction(self) -> Direction:
        """As it is written."""
        return DIRECTIONS[self.sign > 0]

    @property
    def worst(self) -> float:
        """The loss that hypervolumes are measured from: none of what is maximised, 1 of what is minimised."""
        return 0.0 if self.sign < 0 else 1.0


@dataclass(frozen=True)
class Constraint:
    """A bound that the mean of a score must keep: ``sign * (score - bound) <= 0``."""

    name: str
    sign: int
    bound: float

    def __str__(self) -> str:
        return f"{self.name} {'<=' if self.sign > 0 else '>='} {self.bound:g}"


def read_objectives(written: Mapping[str, Any], known: Sequence[str]) -> tuple[Objective, ...]:
    """The objectives; gain against preservation where none are given.

    Raises:
        UserError: a score that is no column, or a direction that is none.
    """
    objectives = []
    for name, direction in (written or _DEFAULT).items():
        _check_column(f"study.objectives.{name}", name, known)
        if direction not in DIRECTIONS:
            raise UserError(f"study.objectives.{name} is {shown(direction)}: it is {' or '.join(DIRECTIONS)}")
        objectives.append(Objective(name, -1 if direction == "maximize" else 1))
    return tuple(objectives)


def read_constraints(written: Any, known: Sequence[str]) -> tuple[Constraint, ...]:
    """The constraints.

    Raises:
        UserError: one that is not ``score <= number`` or ``score >= number``, or a score that is no column.
    """
    if not isinstance(written, list):
        raise UserError(f"study.constraints is {shown(written)}, but it is a list: ['lpips <= 0.15']")
    constraints = []
    for i, text in enumerate(written):
        found = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*", str(text), re.ASCII)
        try:
            bound = float(found[3]) if found else math.nan
        except ValueError:
            bound = math.nan
        if found is None or not math.isfinite(bound):
            raise UserError(f"study.constraints[{i}] is {shown(text)}: write it as in 'lpips <= 0.15'")
        _check_column(f"study.constraints[{i}]", found[1], known)
        constraints.append(Constraint(found[1], 1 if found[2] == "<=" else -1, bound))
    return tuple(constraints)


def _check_column(key: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise UserError(
            f"{key}: {shown(name)} is no score that is taken here: {nearest(name, known)}"
            f"there are {', '.join(known)}"
        )

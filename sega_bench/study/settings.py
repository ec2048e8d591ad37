"""What was asked of a study, checked before a model loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from sega_bench.cell import shown
from sega_bench.config import Config
from sega_bench.errors import UserError, check_count, nearest
from sega_bench.planning.prompts import as_text
from sega_bench.scores import ScoreSettings, score_names
from sega_bench.study import space
from sega_bench.study.objectives import Constraint, Floats, Objective, read_constraints, read_objectives
from sega_bench.study.space import Space

SAMPLERS = ("random", "tpe", "nsga2", "gp", "grid")

_MOST_TRIALS = 10_000
_MOST_OF_GRID = 1_000_000


@dataclass(frozen=True)
class StudySettings:
    """A study, as asked for.

    Args:
        space: the settings to search.
        objectives: what makes one better than another; with several there is a front.
        constraints: what the best must keep.
        sampler: one of :data:`SAMPLERS`.
        sampler_seed: of its random numbers.
        trials: how many in all, those of earlier commands included.
        batch: how many are asked for together; None is as many as fill a wave.
        min_resource: how many blocks every trial is given; None is all of them.
        storage: where Optuna keeps its trials; None is a file in the study's folder.
    """

    space: Space
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    sampler: str
    sampler_seed: int
    trials: int
    batch: int | None
    min_resource: int | None
    storage: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """The scores that are read of every cell: the objectives', then the constraints'."""
        return (*(one.name for one in self.objectives), *(one.name for one in self.constraints))

    def losses(self, values: Floats) -> Floats:
        """The objectives as losses, (..., K), of scores (..., S) in the order of :attr:`names`."""
        signs = np.array([one.sign for one in self.objectives], dtype=np.float64)
        return values[..., : len(self.objectives)] * signs

    def excess(self, values: Floats) -> Floats:
        """By how much each constraint is missed, (..., C), of the same; not above 0 where it is kept."""
        signs, bounds = (
            np.array([getattr(one, name) for one in self.constraints], dtype=np.float64)
            for name in ("sign", "bound")
        )
        return (values[..., len(self.objectives) :] - bounds) * signs


def read(config: Config, concepts: Sequence[Sequence[str]]) -> StudySettings:
    """The settings of a study.

    Args:
        config: of which ``study.space`` is not empty.
        concepts: the study's concept sets.

    Raises:
        UserError: what is wrong, named by its key, or what is not installed.
    """
    study = config.study
    for name, value in (("axes", config.axes), ("zip", config.zip)):
        if value:
            raise UserError(f"{name}: a study has none, its settings are in study.space: ~{name}")
    if not concepts:
        raise UserError("concepts: a study without any has nothing to improve: concepts=['a smile']")
    if isinstance(config.replay, list):
        raise UserError("replay: a study replays one prompt's edit at most, or none: replay=null")
    if study.sampler not in SAMPLERS:
        raise UserError(
            f"study.sampler is {shown(study.sampler)}: {nearest(study.sampler, SAMPLERS)}"
            f"there are {', '.join(SAMPLERS)}"
        )
    check_count("study.trials", study.trials, _MOST_TRIALS)
    for name in ("batch", "min_resource"):
        if (value := getattr(study, name)) is not None:
            check_count(f"study.{name}", value, _MOST_TRIALS)
    if study.storage is not None:
        as_text(study.storage, "study.storage")
    if not 0 <= study.sampler_seed < 2**31:
        raise UserError(f"study.sampler_seed is {study.sampler_seed}, but it is from 0 to 2,147,483,647")
    known = score_names(ScoreSettings(**asdict(config.scores)), safety_checker=config.model.safety_checker)
    made = StudySettings(
        space=space.read(study, concepts),
        objectives=read_objectives(study.objectives, known),
        constraints=read_constraints(study.constraints, known),
        sampler=study.sampler,
        sampler_seed=study.sampler_seed,
        trials=study.trials,
        batch=study.batch,
        min_resource=study.min_resource,
        storage=study.storage,
    )
    if made.sampler == "grid":
        _check_grid(made.space)
    _check_installed()
    return made


def _check_grid(searched: Space) -> None:
    size = 1
    for setting in searched:
        if setting.count is None:
            raise UserError(
                f"study.space.{setting.name}: sampler=grid takes all values, and there is no end of them: "
                "give it a step, or choices"
            )
        size *= setting.count ** len(setting.parameters)
    if size > _MOST_OF_GRID:
        raise UserError(
            f"study.sampler is grid, but the space has {size:,} settings, more than {_MOST_OF_GRID:,}: give "
            "larger steps, or another sampler"
        )


def _check_installed() -> None:
    for package, module in (("optuna", "optuna"), ("scikit-learn", "sklearn")):
        if find_spec(module) is None:
            raise UserError(f"study needs {package}: pip install 'sega-bench[study]'")


def identity(made: StudySettings, asked: dict[str, Any]) -> dict[str, Any]:
    """What must stay as it was for a folder's trials to be comparable with new ones, as JSON has it.

    Args:
        made: the study.
        asked: what its trials are scored on: prompts, seeds, concepts.
    """
    return {
        "space": {setting.name: _plain(asdict(setting)) for setting in made.space},
        "objectives": {one.name: one.direction for one in made.objectives},
        "constraints": [str(one) for one in made.constraints],
        "sampler": made.sampler,
        "sampler_seed": made.sampler_seed,
        "min_resource": made.min_resource,
        **asked,
    }


def _plain(setting: dict[str, Any]) -> dict[str, Any]:
    return {**setting, "choices": list(setting["choices"])}

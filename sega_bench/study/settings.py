"""The checked ``study`` section of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from sega_bench.cell import abbreviated
from sega_bench.config import Config
from sega_bench.errors import UserError, check_count, nearest
from sega_bench.planning.prompts import as_text
from sega_bench.scores import ScoreSettings, score_names
from sega_bench.study import space
from sega_bench.study.objectives import Constraint, Floats, Objective, read_constraints, read_objectives
from sega_bench.study.space import Space

SAMPLERS = ("random", "tpe", "nsga2", "gp", "grid")

_MOST_TRIALS = 10_000
_MOST_GRID_POINTS = 1_000_000


@dataclass(frozen=True)
class StudySettings:
    """What a study searches, how, and for how long.

    Args:
        space: the searched settings.
        objectives: the scores to optimise; several make a Pareto front.
        constraints: bounds that the best setting must keep.
        sampler: one of :data:`SAMPLERS`.
        sampler_seed: seeds the sampler.
        trials: total number of trials, including those of earlier commands.
        batch: number of trials asked for together; None for as many as fill a wave.
        min_resource: number of blocks of the first rung; None for all blocks, without pruning.
        storage: URL of Optuna's storage; None for a journal file in the study's folder.
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
        """Columns of the objectives, then of the constraints: the scores (S) that the study reads."""
        return (*(one.name for one in self.objectives), *(one.name for one in self.constraints))

    def losses(self, values: Floats) -> Floats:
        """Objectives as losses, (..., K), from scores (..., S) in the order of :attr:`names`."""
        signs = np.array([one.sign for one in self.objectives], dtype=np.float64)
        return values[..., : len(self.objectives)] * signs

    def violations(self, values: Floats) -> Floats:
        """Constraint values as Optuna defines them, (..., C), from the same: above 0 where violated."""
        signs, bounds = (
            np.array([getattr(one, name) for one in self.constraints], dtype=np.float64)
            for name in ("sign", "bound")
        )
        return (values[..., len(self.objectives) :] - bounds) * signs


def read_settings(config: Config, concept_sets: Sequence[Sequence[str]]) -> StudySettings:
    """Read and check a study's settings, without loading a model.

    Args:
        config: its ``study.space`` is not empty.
        concept_sets: the study's.

    Raises:
        UserError: the mistake, named by its key, or the missing package.
    """
    study = config.study
    _check_no_axes(config, concept_sets)
    _check_options(config)
    scores = score_names(ScoreSettings(**asdict(config.scores)), safety_checker=config.model.safety_checker)
    settings = StudySettings(
        space=space.read(study, concept_sets),
        objectives=read_objectives(study.objectives, scores),
        constraints=read_constraints(study.constraints, scores),
        sampler=study.sampler,
        sampler_seed=study.sampler_seed,
        trials=study.trials,
        batch=study.batch,
        min_resource=study.min_resource,
        storage=study.storage,
    )
    if settings.sampler == "grid":
        _check_grid(settings.space)
    _check_installed()
    return settings


def _check_no_axes(config: Config, concept_sets: Sequence[Sequence[str]]) -> None:
    for name, value in (("axes", config.axes), ("zip", config.zip)):
        if value:
            raise UserError(f"{name}: a study has none, its settings are in study.space: ~{name}")
    if not concept_sets:
        raise UserError("concepts: a study without any has nothing to improve: concepts=['a smile']")
    if isinstance(config.replay, list):
        raise UserError("replay: a study replays one prompt's edit at most, or none: replay=null")


def _check_options(config: Config) -> None:
    study = config.study
    if study.sampler not in SAMPLERS:
        raise UserError(
            f"study.sampler is {abbreviated(study.sampler)}: {nearest(study.sampler, SAMPLERS)}"
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


def _check_grid(searched: Space) -> None:
    n_points = 1
    for setting in searched:
        if setting.size is None:
            raise UserError(
                f"study.space.{setting.name}: sampler=grid needs finitely many values: give it a step, or "
                "choices"
            )
        n_points *= setting.size ** len(setting.parameters)
    if n_points > _MOST_GRID_POINTS:
        raise UserError(
            f"study.sampler is grid, but the space has {n_points:,} settings, more than "
            f"{_MOST_GRID_POINTS:,}: give larger steps, or another sampler"
        )


def _check_installed() -> None:
    for package, module in (("optuna", "optuna"), ("scikit-learn", "sklearn")):
        if find_spec(module) is None:
            raise UserError(f"study needs {package}: pip install 'sega-bench[study]'")


def identity(settings: StudySettings, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """What all trials of a folder must share to be comparable: the contents of study.json.

    Args:
        settings: the study's.
        fixed: blocks, concepts and baseline (:func:`sega_bench.study.trials.fixed_settings`).
    """
    return {
        "space": {
            setting.name: asdict(setting) | {"choices": list(setting.choices)} for setting in settings.space
        },
        "objectives": {one.name: one.direction for one in settings.objectives},
        "constraints": [str(one) for one in settings.constraints],
        "sampler": settings.sampler,
        "sampler_seed": settings.sampler_seed,
        "min_resource": settings.min_resource,
        **fixed,
    }

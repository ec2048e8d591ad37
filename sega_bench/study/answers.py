"""What a study comes to: its front, the best setting of all concepts and of each, and what it cost.

Shapes: T trials, K objectives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sega_bench.stats.intervals import Estimate, estimate
from sega_bench.stats.pareto import front, hypervolume, knee
from sega_bench.study.importance import Curve, curves
from sega_bench.study.objectives import Floats, Objective
from sega_bench.study.scoring import Scores, Together
from sega_bench.study.trials import BASELINE, Study, Trial


@dataclass(frozen=True)
class Best:
    """The best setting, of all concept sets together or of one.

    Args:
        concepts: the set's texts; None of all.
        trial: its number and values.
        scores: of each objective, with its interval over blocks.
        over_baseline: of each objective, the mean difference to the configuration's own setting.
    """

    concepts: Together | None
    trial: Trial
    scores: tuple[Estimate, ...]
    over_baseline: tuple[Estimate, ...]


def better_and_worse(best: Best, objectives: Sequence[Objective]) -> tuple[list[str], list[str]]:
    """The objectives in which a setting is better than the baseline, and those in which it loses.

    Better is what the pairs tell: the 95 % interval of the mean difference lies on the better side of zero. A
    loss is more than a hundredth of the baseline's score, whether the pairs can tell it or not. A setting
    beats the baseline if it is better in one and loses in none: more gain at no more change, or as much gain
    at less.
    """
    better, worse = [], []
    for one, own, over in zip(objectives, best.scores, best.over_baseline, strict=True):
        high = max(one.sign * over.low, one.sign * over.high)
        better += [one.name] * (high < 0)
        worse += [one.name] * (one.sign * over.mean > ALL_BUT * abs(own.mean - over.mean))
    return better, worse


ALL_BUT = 0.01
"""Of the baseline's score: a setting that loses no more is as good."""


@dataclass(frozen=True)
class Failure:
    """Blocks on which a cell of a setting failed.

    Args:
        trial: whose; None of the baseline's.
        blocks: how many.
        given: of how many.
        error: the reason of the first.
        counts: whether the others are enough to judge it by.
    """

    trial: Trial | None
    blocks: int
    given: int
    error: str
    counts: bool


@dataclass(frozen=True)
class Answers:
    """What a study found.

    Args:
        study: the study.
        trials: all that were told.
        estimates_TK: of each trial's objectives, what they would be on all blocks.
        whole: numbers of the trials that were given all blocks and keep the constraints.
        front: numbers of those that no other beats.
        best: of all concept sets, then of each where there are several; without those of which no trial keeps
            the constraints.
        evaluations: UNet evaluations that the search took up to the end of each trial, (T,).
        volumes: hypervolume of what was whole by then, (T,).
        curves: what each parameter does to each objective.
        held_out: each of :attr:`best` on the prompts and seeds that were held out; empty if there are none.
        failures: the settings that have cells that failed.
    """

    study: Study
    trials: tuple[Trial, ...]
    estimates_TK: Floats
    whole: tuple[int, ...]
    front: tuple[int, ...]
    best: tuple[Best, ...]
    evaluations: tuple[int, ...]
    volumes: tuple[float, ...]
    held_out: tuple[Best, ...] = ()
    curves: tuple[Curve, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def of_all(self) -> Best | None:
        """The best setting of all concept sets together; None if no trial keeps the constraints over all."""
        return next((one for one in self.best if one.concepts is None), None)

    @property
    def recommended(self) -> int | None:
        """The number of its trial."""
        return None if self.of_all is None else self.of_all.trial.number


def answer(scores: Scores, trials: Sequence[Trial]) -> Answers:
    """What the trials of a study come to.

    Args:
        scores: of its cells.
        trials: in the order of asking.
    """
    study, told = scores.study, [trial for trial in trials if trial.state == "told"]
    everything, count = len(study.blocks), len(study.settings.objectives)
    estimates_TS = np.array(
        [scores.estimates(t.params, study.settings.names, t.resource) for t in told]
    ).reshape(len(told), len(study.settings.names))
    whole = [i for i, trial in enumerate(told) if trial.resource == everything]
    losses_TK = study.settings.losses(estimates_TS)
    known = [i for i in whole if np.isfinite(losses_TK[i]).all()]
    feasible = [i for i in known if (study.settings.excess(estimates_TS[i]) <= 0).all()]
    on = front(losses_TK[np.array(feasible, dtype=int)])
    evaluations = _evaluations(scores, trials)
    best = [_best(scores, told, None), *(_best(scores, told, c) for c in _sets(study))]
    return Answers(
        study=study,
        trials=tuple(told),
        estimates_TK=estimates_TS[:, :count],
        whole=tuple(told[i].number for i in feasible),
        front=tuple(told[i].number for i, is_on in zip(feasible, on, strict=True) if is_on),
        best=tuple(one for one in best if one is not None),
        evaluations=tuple(evaluations),
        volumes=tuple(_volumes(study, losses_TK, feasible)),
        curves=tuple(
            curves(
                study.settings.space,
                [trial.params for trial in told],
                estimates_TS[:, :count],
                [one.name for one in study.settings.objectives],
            )
        ),
        failures=tuple(_failures(scores, trials)),
    )


def _failures(scores: Scores, trials: Sequence[Trial]) -> Iterator[Failure]:
    everything = len(scores.study.blocks)
    for trial in (None, *(trial for trial in trials if trial.state != "asked")):
        params, given = (BASELINE, everything) if trial is None else (trial.params, trial.resource)
        if failed := scores.failed(params, given):
            reason = next(iter(failed.values()))
            yield Failure(trial, len(failed), given, reason, scores.counts(params, given))


def _sets(study: Study) -> list[Together]:
    """The concept sets, if there are several."""
    sets = list(study.baseline.concepts)
    return sets if len(sets) > 1 else []


def _best(scores: Scores, told: Sequence[Trial], concepts: Together | None) -> Best | None:
    """The setting to use, of one concept set or of all, among the trials that were given all blocks.

    It is the knee of the front of those that beat the baseline; where there are none, of those that lose in
    no objective, for nobody who has a setting wants to lose by another; else of the whole front.
    """
    study = scores.study
    everything, names = len(study.blocks), study.settings.names
    whole = [trial for trial in told if trial.resource == everything]
    estimates = [scores.estimates(trial.params, names, everything, concepts) for trial in whole]
    kept = [i for i, estimates_S in enumerate(estimates) if (study.settings.excess(estimates_S) <= 0).all()]
    if not kept:
        return None
    found = [measured(scores, whole[i], concepts) for i in kept]
    losses_TK = study.settings.losses(np.array([estimates[i] for i in kept]))
    told_apart = [better_and_worse(one, study.settings.objectives) for one in found]
    beats_T = np.array([bool(better) and not worse for better, worse in told_apart])
    no_worse_T = np.array([not worse for _, worse in told_apart])
    among = np.flatnonzero(beats_T if beats_T.any() else no_worse_T if no_worse_T.any() else ~no_worse_T)
    place = knee(losses_TK[among])
    return None if place is None else found[among[place]]


def measured(scores: Scores, trial: Trial, concepts: Together | None) -> Best:
    """A setting with its scores on all blocks, and its differences to the baseline, block by block."""
    study = scores.study
    names = [one.name for one in study.settings.objectives]
    own_BK = scores.by_block(trial.params, names, len(study.blocks), concepts)
    base_BK = scores.by_block(BASELINE, names, len(study.blocks), concepts)
    blocks = np.arange(len(study.blocks))
    prompts = np.unique([prompt for prompt, _ in study.blocks], return_inverse=True)[1]

    def estimates(values_BK: Floats) -> tuple[Estimate, ...]:
        return tuple(estimate(values_B, blocks, prompts) for values_B in values_BK.T)

    return Best(concepts, trial, estimates(own_BK), estimates(own_BK - base_BK))


def _evaluations(scores: Scores, trials: Sequence[Trial]) -> Iterator[int]:
    """What all cells up to each told trial took: of the baseline first, and of trials that failed."""
    study, counted = scores.study, set()
    total = 0
    for trial in (None, *trials):
        params, given = (BASELINE, len(study.blocks)) if trial is None else (trial.params, trial.resource)
        for cell in study.cells_on(params, study.blocks[:given]):
            if cell.key not in counted:
                counted.add(cell.key)
                total += int(scores.rows.get(cell.key, {}).get("unet_evals") or 0)
        if trial is not None and trial.state == "told":
            yield total


def _volumes(study: Study, losses_TK: Floats, feasible: Sequence[int]) -> Iterator[float]:
    worst_K = np.array([one.worst for one in study.settings.objectives])
    for end in range(len(losses_TK)):
        yield hypervolume(losses_TK[np.array([i for i in feasible if i <= end], dtype=int)], worst_K)

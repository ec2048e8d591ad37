"""A study's answers: its Pareto front, the best setting overall and per concept set, and the cost.

Shapes: T trials, K objectives, S scores (objectives, then constraints), B blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sega_bench.stats.intervals import Estimate, estimate
from sega_bench.stats.pareto import front, hypervolume, knee
from sega_bench.study.importance import Curve, importance_curves
from sega_bench.study.objectives import Floats, Objective
from sega_bench.study.scoring import ConceptSet, Scores
from sega_bench.study.trials import BASELINE, Study, Trial

LOSS_TOLERANCE = 0.01
"""Share of the baseline's score up to which a setting that loses counts as equally good."""


@dataclass(frozen=True)
class ScoredTrial:
    """A trial with its scores over all concept sets or one.

    Args:
        concepts: the concept set; None for all.
        trial: the trial.
        scores: each objective's mean and interval over blocks.
        over_baseline: each objective's mean paired difference to the baseline, with its interval.
    """

    concepts: ConceptSet | None
    trial: Trial
    scores: tuple[Estimate, ...]
    over_baseline: tuple[Estimate, ...]


def better_and_worse(scored: ScoredTrial, objectives: Sequence[Objective]) -> tuple[list[str], list[str]]:
    """Names of the objectives in which a trial is better than the baseline, and in which it is worse.

    Better: the 95 % interval of the mean paired difference lies on the better side of zero. Worse: the mean
    loses more than :data:`LOSS_TOLERANCE` of the baseline's score, whether the pairs confirm it or not. A
    trial beats the baseline if it is better in some objective and worse in none.
    """
    better, worse = [], []
    for objective, own, over in zip(objectives, scored.scores, scored.over_baseline, strict=True):
        high = max(objective.sign * over.low, objective.sign * over.high)
        better += [objective.name] * (high < 0)
        worse += [objective.name] * (objective.sign * over.mean > LOSS_TOLERANCE * abs(own.mean - over.mean))
    return better, worse


@dataclass(frozen=True)
class Failure:
    """A trial, or the baseline, with failed cells.

    Args:
        trial: the trial; None for the baseline.
        blocks: number of blocks with a failed cell.
        resource: number of blocks in all.
        error: the first error.
        is_usable: whether enough blocks remain to judge it.
    """

    trial: Trial | None
    blocks: int
    resource: int
    error: str
    is_usable: bool


@dataclass(frozen=True)
class Answers:
    """A study's results.

    Args:
        study: the study.
        trials: the complete trials.
        estimates_TK: their objectives, estimated for all blocks.
        feasible: numbers of the trials that ran on all blocks and keep the constraints.
        front: numbers of the feasible trials that no other dominates.
        best: the best setting over all concept sets, then that of each if there are several; without sets
            for which no trial keeps the constraints.
        evaluations: UNet evaluations of the search up to and including each trial, (T,).
        hypervolumes: hypervolume of the feasible trials up to and including each trial, (T,).
        held_out: each of :attr:`best` on the held-out prompts and seeds; empty without these.
        curves: each parameter's importance for, and effect on, each objective.
        failures: the trials with failed cells.
    """

    study: Study
    trials: tuple[Trial, ...]
    estimates_TK: Floats
    feasible: tuple[int, ...]
    front: tuple[int, ...]
    best: tuple[ScoredTrial, ...]
    evaluations: tuple[int, ...]
    hypervolumes: tuple[float, ...]
    held_out: tuple[ScoredTrial, ...] = ()
    curves: tuple[Curve, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def best_overall(self) -> ScoredTrial | None:
        """The best setting over all concept sets; None if no trial keeps the constraints there."""
        return next((scored for scored in self.best if scored.concepts is None), None)

    @property
    def best_number(self) -> int | None:
        """Its trial's number."""
        return None if self.best_overall is None else self.best_overall.trial.number


def compute_answers(scores: Scores, trials: Sequence[Trial]) -> Answers:
    """Compute a study's answers.

    Args:
        scores: of the study's cells.
        trials: all trials in the order of asking.
    """
    study, complete = scores.study, [trial for trial in trials if trial.state == "complete"]
    settings = study.settings
    estimates_TS = np.array(
        [scores.estimates(trial.params, settings.names, trial.resource) for trial in complete]
    ).reshape(len(complete), len(settings.names))  # (0, S) without trials
    estimates_TK, losses_TK = estimates_TS[:, : len(settings.objectives)], settings.losses(estimates_TS)
    rows = _feasible_rows(study, complete, estimates_TS)
    is_on_front = front(losses_TK[np.array(rows, dtype=int)])  # an empty list alone would be float
    best = [_select_best(scores, complete, concepts) for concepts in (None, *_concept_sets(study))]
    return Answers(
        study=study,
        trials=tuple(complete),
        estimates_TK=estimates_TK,
        feasible=tuple(complete[i].number for i in rows),
        front=tuple(complete[i].number for i, is_on in zip(rows, is_on_front, strict=True) if is_on),
        best=tuple(scored for scored in best if scored is not None),
        evaluations=tuple(_evaluations(scores, trials)),
        hypervolumes=tuple(_hypervolumes(study, losses_TK, rows)),
        curves=tuple(
            importance_curves(
                settings.space,
                [trial.params for trial in complete],
                estimates_TK,
                [objective.name for objective in settings.objectives],
            )
        ),
        failures=tuple(_failures(scores, trials)),
    )


def _feasible_rows(study: Study, complete: Sequence[Trial], estimates_TS: Floats) -> list[int]:
    """Rows of the trials that ran on all blocks, have every objective and keep the constraints."""
    losses_TK = study.settings.losses(estimates_TS)
    return [
        i
        for i, trial in enumerate(complete)
        if trial.resource == len(study.blocks)
        and np.isfinite(losses_TK[i]).all()
        and (study.settings.violations(estimates_TS[i]) <= 0).all()
    ]


def _failures(scores: Scores, trials: Sequence[Trial]) -> Iterator[Failure]:
    n_blocks = len(scores.study.blocks)
    for trial in (None, *(trial for trial in trials if trial.state != "running")):
        params, resource = (BASELINE, n_blocks) if trial is None else (trial.params, trial.resource)
        if failed := scores.failed(params, resource):
            error = next(iter(failed.values()))
            yield Failure(trial, len(failed), resource, error, scores.is_usable(params, resource))


def _concept_sets(study: Study) -> list[ConceptSet]:
    """The concept sets, if there are several."""
    sets = list(study.baseline.concepts)
    return sets if len(sets) > 1 else []


def _select_best(
    scores: Scores, complete: Sequence[Trial], concepts: ConceptSet | None
) -> ScoredTrial | None:
    """Select the best trial over one concept set or all, among the feasible ones on all blocks.

    It is the knee of the front of the trials that beat the baseline. Without any, it is that of the trials
    worse in no objective, because a user with a working setting does not want to lose; otherwise of all.
    """
    study = scores.study
    n_blocks, names = len(study.blocks), study.settings.names
    full = [trial for trial in complete if trial.resource == n_blocks]
    estimates = [scores.estimates(trial.params, names, n_blocks, concepts) for trial in full]
    rows = [
        i for i, estimates_S in enumerate(estimates) if (study.settings.violations(estimates_S) <= 0).all()
    ]
    if not rows:
        return None
    candidates = [score_trial(scores, full[i], concepts) for i in rows]
    losses_TK = study.settings.losses(np.array([estimates[i] for i in rows]))
    comparisons = [better_and_worse(scored, study.settings.objectives) for scored in candidates]
    beats_T = np.array([bool(better) and not worse for better, worse in comparisons])
    no_worse_T = np.array([not worse for _, worse in comparisons])
    group_T = beats_T if beats_T.any() else no_worse_T if no_worse_T.any() else ~no_worse_T
    # Reversed, because knee() breaks exact ties for the last point, and the earliest trial should win.
    group = np.flatnonzero(group_T)[::-1]
    position = knee(losses_TK[group])
    return None if position is None else candidates[group[position]]


def score_trial(scores: Scores, trial: Trial, concepts: ConceptSet | None) -> ScoredTrial:
    """Score a trial on all blocks, and its paired differences to the baseline."""
    study = scores.study
    names = [objective.name for objective in study.settings.objectives]
    own_BK = scores.by_block(trial.params, names, len(study.blocks), concepts)
    base_BK = scores.by_block(BASELINE, names, len(study.blocks), concepts)
    blocks = np.arange(len(study.blocks))
    # A prompt's seeds are correlated; the interval resamples prompts too.
    prompts = np.unique([prompt for prompt, _ in study.blocks], return_inverse=True)[1]

    def estimates(values_BK: Floats) -> tuple[Estimate, ...]:
        return tuple(estimate(values_B, blocks, prompts) for values_B in values_BK.T)

    return ScoredTrial(concepts, trial, estimates(own_BK), estimates(own_BK - base_BK))


def _evaluations(scores: Scores, trials: Sequence[Trial]) -> Iterator[int]:
    """Cumulative UNet evaluations at each complete trial, including the baseline's and failed trials'."""
    study, counted = scores.study, set()
    total = 0
    for trial in (None, *trials):
        params, resource = (BASELINE, len(study.blocks)) if trial is None else (trial.params, trial.resource)
        for cell in study.cells_on(params, study.blocks[:resource]):
            if cell.key not in counted:  # trials share references, and equal cells
                counted.add(cell.key)
                total += int(scores.rows.get(cell.key, {}).get("unet_evals") or 0)
        if trial is not None and trial.state == "complete":
            yield total


def _hypervolumes(study: Study, losses_TK: Floats, rows: Sequence[int]) -> Iterator[float]:
    """Hypervolume of the given rows up to and including each trial."""
    worst_K = np.array([objective.worst for objective in study.settings.objectives])
    for end in range(len(losses_TK)):
        yield hypervolume(losses_TK[np.array([i for i in rows if i <= end], dtype=int)], worst_K)

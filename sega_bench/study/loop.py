"""A study from its first trial to its last: asked in batches, run as plans, told what they scored.

The loop knows no model: who calls it makes the plans that it yields, and the store has what they scored.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sega_bench.planning.planner import Plan
from sega_bench.study import halving
from sega_bench.study.optuna_study import Asking, grid
from sega_bench.study.scoring import Rows, Scores, mean_of_known
from sega_bench.study.trials import BASELINE, Study, Trial, block_of


@dataclass(frozen=True)
class Step:
    """What is to be made before the study can go on.

    Args:
        plan: the cells of all trials so far, on as many blocks as each was given.
        trials: how many were asked for, those of the batch at work included.
        at_work: how many of them get more blocks by this plan.
        resource: so many blocks in all.
    """

    plan: Plan
    trials: int
    at_work: int
    resource: int

    def __str__(self) -> str:
        return f"{self.trials} trials: {self.at_work} of them on {self.resource} prompts x seeds"


def search(
    study: Study, asking: Asking, rows: Callable[[], Rows], scorers: Callable[[], Mapping[str, Any]]
) -> Iterator[Step]:
    """Ask, have run, and tell, until there are as many trials as the study wants.

    Whatever ended an earlier command, this goes on where it stopped: which trials go on is decided from the
    stored scores alone, so that what was decided before is decided again.

    Args:
        study: resolved.
        asking: its trials.
        rows: reads the store's present rows; called after each step was made.
        scorers: reads what made the scores of these rows.

    Yields:
        Steps, each to be made before the next is asked for.

    Raises:
        UserError: the rows were scored anew, and the sampler knows the old scores.
    """
    if study.config.retry_failed:
        yield from _retry(study, asking, rows)
        study = study.trying_once()
    else:
        yield from _lost(study, asking, rows)
    wanted = study.settings.trials
    if study.settings.sampler == "grid":
        wanted = min(wanted, len(grid(study.settings)))
    while True:
        trials = asking.trials()
        begun = [trial.number for trial in trials if trial.state == "asked"]
        if not begun and len(trials) >= wanted:
            return
        if any(trial.state == "told" for trial in trials):
            asking.check_scorers(scorers())
        first = begun[0] if begun else len(trials)
        end = (first // study.batch + 1) * study.batch
        while len(asking.trials()) < min(end, max(wanted, len(trials))):
            asking.ask()
        asked = [trial.number for trial in asking.trials() if trial.state == "asked"]
        yield from _run_batch(study, asking, rows, asked)
        asking.check_scorers(scorers())


def _retry(study: Study, asking: Asking, rows: Callable[[], Rows]) -> Generator[Step, None, None]:
    """Have all cells that failed tried again, once; trials that failed and now have theirs are told."""
    trials, stored = asking.trials(), rows()
    failed = [trial.number for trial in trials if trial.state == "failed"]
    given = [(trial.params, trial.resource or _begun(study, trial, stored)) for trial in trials]
    most = max((resource for _, resource in given), default=0)
    yield Step(study.plan(given), len(trials), len(failed), most)
    if failed:
        yield from _run_batch(study.trying_once(), asking, rows, failed)


def _begun(study: Study, trial: Trial, stored: Rows) -> int:
    """On how many blocks a trial has been begun of which that is not decided yet."""
    begun = {block_of(cell) for cell in study.cells(trial.params) if cell.key in stored and cell.edits}
    return max((number for number, block in enumerate(study.blocks, 1) if block in begun), default=0)


def _lost(study: Study, asking: Asking, rows: Callable[[], Rows]) -> Iterator[Step]:
    """Have the cells made again whose records were lost after their trial was told."""
    trials = asking.trials()
    told = [trial for trial in trials if trial.state == "told"]
    stored = rows() if told else {}
    lacking = [
        trial
        for trial in told
        if any(
            cell.key not in stored for cell in study.cells_on(trial.params, study.blocks[: trial.resource])
        )
    ]
    if lacking:
        plan = study.plan([(trial.params, trial.resource) for trial in told])
        yield Step(plan, len(trials), len(lacking), max(trial.resource for trial in lacking))


def _run_batch(
    study: Study, asking: Asking, rows: Callable[[], Rows], asked: Sequence[int]
) -> Generator[Step, None, None]:
    """Have those run that were asked for, the best of them on more and more blocks, and tell all."""
    trials = asking.trials()
    batch = [trials[number] for number in asked]
    waiting = [trial for trial in batch if trial.state == "asked"]  # the others failed, and are tried again
    if len(waiting) == len(batch) and all(trial.resource for trial in batch):
        # How many blocks each is given was decided; a kill kept them from being told.
        given = {trial.number: trial.resource for trial in trials}
        plan = study.plan([(trial.params, trial.resource) for trial in trials])
        yield Step(plan, len(trials), len(batch), max(trial.resource for trial in batch))
        scores = Scores(study, rows())
    else:
        given, scores = yield from _rounds(study, rows, trials, asked)
        asking.grant(waiting, [given[trial.number] for trial in waiting])
    for trial in batch:
        _tell(asking, scores, trial, given[trial.number])


def _rounds(
    study: Study, rows: Callable[[], Rows], trials: Sequence[Trial], asked: Sequence[int]
) -> Generator[Step, None, tuple[dict[int, int], Scores]]:
    """How many blocks every trial has been given in the end, and all scores."""
    given = {trial.number: trial.resource for trial in trials}
    at_work = list(asked)
    for resource in halving.resources(study.first_resource, len(study.blocks)):
        given |= dict.fromkeys(at_work, resource)
        granted = [(trial.params, given[trial.number]) for trial in trials]
        yield Step(study.plan(granted), len(trials), len(at_work), resource)
        scores = Scores(study, rows())
        at_work = _promoted(scores, trials, given, at_work, resource)
        if not at_work:
            break
    return given, scores


def _promoted(
    scores: Scores, trials: Sequence[Trial], given: dict[int, int], at_work: Sequence[int], resource: int
) -> list[int]:
    """Which of the trials at work get more blocks."""
    study, settings = scores.study, scores.study.settings
    alive = [number for number in at_work if scores.counts(trials[number].params, resource)]
    base_BS = scores.by_block(BASELINE, settings.names, len(study.blocks))
    seen_B = np.isfinite(base_BS[:resource]).all(axis=1)  # elsewhere a score is not defined
    if resource == len(study.blocks) or not seen_B.any():
        return alive
    ahead = [trial.number for trial in trials if trial.state == "told" and given[trial.number] > resource]
    compared = [*ahead, *alive]
    if not compared:
        return []
    over_TBS = np.stack([scores.by_block(trials[n].params, settings.names, resource) for n in compared])
    over_TBS = (over_TBS - base_BS)[:, :resource][:, seen_B]
    excess_TBC = settings.excess(over_TBS + mean_of_known(base_BS)) if settings.constraints else None
    goes_on_T = halving.promoted(settings.losses(over_TBS), np.isin(compared, alive), excess_TBC)
    goes_on = {number for number, goes_on in zip(compared, goes_on_T, strict=True) if goes_on}
    return [n for n in alive if n in goes_on or trials[n].params == study.start]  # whose cells are there


def _tell(asking: Asking, scores: Scores, trial: Trial, resource: int) -> None:
    settings = scores.study.settings
    estimates_S = scores.estimates(trial.params, settings.names, resource)
    if not scores.counts(trial.params, resource) or not np.isfinite(estimates_S).all():
        asking.tell(trial, None, {}, resource)
        return
    excess_C = settings.excess(estimates_S).tolist()
    excess = {str(one): value for one, value in zip(settings.constraints, excess_C, strict=True)}
    values_K = estimates_S[: len(settings.objectives)]
    asking.tell(trial, [float(value) for value in values_K], excess, resource)

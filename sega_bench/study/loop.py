"""The ask-and-tell loop: ask for a batch of trials, run its cells, prune, tell.

The loop runs no model. It yields plans, its caller executes them, and the scores come back through the store.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sega_bench.planning.planner import Plan
from sega_bench.study import halving
from sega_bench.study.optuna_study import OptunaStudy, grid
from sega_bench.study.scoring import Rows, Scores, mean_over_blocks
from sega_bench.study.trials import BASELINE, Study, Trial, block_of


@dataclass(frozen=True)
class Step:
    """A plan to execute before the study continues.

    Args:
        plan: the cells of all trials so far, each on its own number of blocks.
        trials: number of trials so far, including the current batch.
        running: number of trials that this plan extends.
        resource: their number of blocks.
    """

    plan: Plan
    trials: int
    running: int
    resource: int

    def __str__(self) -> str:
        return f"{self.trials} trials: {self.running} of them on {self.resource} prompts x seeds"


def search(
    study: Study,
    optuna_study: OptunaStudy,
    rows: Callable[[], Rows],
    scorers: Callable[[], Mapping[str, Any]],
) -> Iterator[Step]:
    """Ask for, run and tell trials until the study has as many as its settings say.

    A resumed search continues where the last command stopped. Promotions depend on stored scores alone, so
    that it decides as the uninterrupted search would.

    Args:
        study: resolved.
        optuna_study: its trials.
        rows: reads the store's current rows; called after each step.
        scorers: reads the provenance of these rows' scores.

    Yields:
        Steps, each to be executed before the next one is requested.

    Raises:
        UserError: the rows were rescored, but the sampler knows the old scores.
    """
    if study.config.retry_failed:
        yield from _retry_failed(study, optuna_study, rows)
        study = study.without_retries()
    else:
        yield from _restore_lost(study, optuna_study, rows)
    n_trials = study.settings.trials
    if study.settings.sampler == "grid":
        n_trials = min(n_trials, len(grid(study.settings)))
    while True:
        trials = optuna_study.trials()
        running = _numbers(trials, "running")
        if not running and len(trials) >= n_trials:
            return
        if any(trial.state == "complete" for trial in trials):
            optuna_study.check_scorers(scorers())  # before the sampler mixes two kinds of scores
        _ask_batch(optuna_study, study.batch, n_trials)
        yield from _run_batch(study, optuna_study, rows, _numbers(optuna_study.trials(), "running"))
        optuna_study.check_scorers(scorers())  # the first batch stores them


def _ask_batch(optuna_study: OptunaStudy, batch: int, n_trials: int) -> None:
    """Fill the current batch up to its end, or to the study's last trial."""
    trials = optuna_study.trials()
    running = _numbers(trials, "running")
    # Batches end at multiples of their size, so that a kill while asking does not shift them.
    first = running[0] if running else len(trials)
    batch_end = (first // batch + 1) * batch
    for _ in range(len(trials), min(batch_end, n_trials)):
        optuna_study.ask()


def _numbers(trials: Sequence[Trial], state: str) -> list[int]:
    return [trial.number for trial in trials if trial.state == state]


def _retry_failed(
    study: Study, optuna_study: OptunaStudy, rows: Callable[[], Rows]
) -> Generator[Step, None, None]:
    """Retry all failed cells once, and tell the failed trials that now have their scores."""
    trials, stored = optuna_study.trials(), rows()
    failed = _numbers(trials, "failed")
    allocations = [(t.params, t.resource or _started_blocks(study, t, stored)) for t in trials]
    most = max((resource for _, resource in allocations), default=0)  # no trial yet: the baseline alone
    yield Step(study.plan(allocations), len(trials), len(failed), most)
    if failed:
        yield from _run_batch(study.without_retries(), optuna_study, rows, failed)


def _started_blocks(study: Study, trial: Trial, stored: Rows) -> int:
    """Number of first blocks that hold all stored cells of a trial without a decided resource."""
    # References are the baseline's, so they do not show that the trial was started.
    started = {block_of(cell) for cell in study.cells(trial.params) if cell.key in stored and cell.edits}
    return max((number for number, block in enumerate(study.blocks, 1) if block in started), default=0)


def _restore_lost(study: Study, optuna_study: OptunaStudy, rows: Callable[[], Rows]) -> Iterator[Step]:
    """Generate the cells of complete trials again whose records were lost.

    The final plan omits pruned trials, so only this step restores theirs.
    """
    trials = optuna_study.trials()
    complete = [trial for trial in trials if trial.state == "complete"]
    stored = rows() if complete else {}
    lost = [
        trial
        for trial in complete
        if any(
            cell.key not in stored for cell in study.cells_on(trial.params, study.blocks[: trial.resource])
        )
    ]
    if lost:
        plan = study.plan([(trial.params, trial.resource) for trial in complete])
        yield Step(plan, len(trials), len(lost), max(trial.resource for trial in lost))


def _run_batch(
    study: Study, optuna_study: OptunaStudy, rows: Callable[[], Rows], numbers: Sequence[int]
) -> Generator[Step, None, None]:
    """Run a batch of running or failed trials rung by rung, and tell them all."""
    trials = optuna_study.trials()
    batch = [trials[number] for number in numbers]
    running = [trial for trial in batch if trial.state == "running"]
    if len(running) == len(batch) and all(trial.resource for trial in batch):
        # The last command had decided the resources, and was killed before it told all of the batch.
        resources = {trial.number: trial.resource for trial in trials}
        plan = study.plan([(trial.params, trial.resource) for trial in trials])
        yield Step(plan, len(trials), len(batch), max(trial.resource for trial in batch))
        scores = Scores(study, rows())
    else:
        resources, scores = yield from _run_rungs(study, rows, trials, numbers)
        optuna_study.set_resources(running, [resources[trial.number] for trial in running])
    for trial in batch:
        _tell(optuna_study, scores, trial, resources[trial.number])


def _run_rungs(
    study: Study, rows: Callable[[], Rows], trials: Sequence[Trial], numbers: Sequence[int]
) -> Generator[Step, None, tuple[dict[int, int], Scores]]:
    """Run trials on more and more blocks while they are promoted.

    Returns:
        Every trial's resource by number, and all scores.
    """
    resources = {trial.number: trial.resource for trial in trials}
    alive = list(numbers)
    for resource in halving.rungs(study.min_resource, len(study.blocks)):
        resources |= dict.fromkeys(alive, resource)
        allocations = [(trial.params, resources[trial.number]) for trial in trials]
        yield Step(study.plan(allocations), len(trials), len(alive), resource)
        scores = Scores(study, rows())
        alive = _promoted(scores, trials, resources, alive, resource)
        if not alive:
            break
    return resources, scores


def _promoted(
    scores: Scores, trials: Sequence[Trial], resources: dict[int, int], alive: Sequence[int], resource: int
) -> list[int]:
    """Select the trials of a rung that run on to the next."""
    study, settings = scores.study, scores.study.settings
    candidates = [number for number in alive if scores.is_usable(trials[number].params, resource)]
    base_BS = scores.by_block(BASELINE, settings.names, len(study.blocks))
    has_baseline_B = np.isfinite(base_BS[:resource]).all(axis=1)  # differences exist on these blocks only
    if resource == len(study.blocks) or not has_baseline_B.any():
        return candidates
    ahead = [t.number for t in trials if t.state == "complete" and resources[t.number] > resource]
    compared = [*ahead, *candidates]
    if not compared:
        return []
    over_TBS = np.stack([scores.by_block(trials[n].params, settings.names, resource) for n in compared])
    over_TBS = (over_TBS - base_BS)[:, :resource][:, has_baseline_B]
    violations_TBC = (
        settings.violations(over_TBS + mean_over_blocks(base_BS)) if settings.constraints else None
    )
    is_promoted_T = halving.promoted(settings.losses(over_TBS), np.isin(compared, candidates), violations_TBC)
    promoted = {number for number, is_promoted in zip(compared, is_promoted_T, strict=True) if is_promoted}
    # The baseline's own trial is never pruned: its cells exist on all blocks anyway.
    return [n for n in candidates if n in promoted or trials[n].params == study.baseline_params]


def _tell(optuna_study: OptunaStudy, scores: Scores, trial: Trial, resource: int) -> None:
    settings = scores.study.settings
    estimates_S = scores.estimates(trial.params, settings.names, resource)
    # Optuna accepts no NaN: a trial without one of its values fails.
    if not scores.is_usable(trial.params, resource) or not np.isfinite(estimates_S).all():
        optuna_study.tell(trial, None, {}, resource)
        return
    violations_C = settings.violations(estimates_S).tolist()
    violations = {str(one): value for one, value in zip(settings.constraints, violations_C, strict=True)}
    values_K = estimates_S[: len(settings.objectives)]
    optuna_study.tell(trial, [float(value) for value in values_K], violations, resource)

"""Run sweeps and studies, from their configurations to their views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from sega_bench.cli.console import console, errors, logging_to, quieten_libraries
from sega_bench.cli.show import reporter_of, show
from sega_bench.errors import UserError
from sega_bench.system import gc_control, signals
from sega_bench.system.progress import progress

if TYPE_CHECKING:
    from sega_bench.config import Config
    from sega_bench.execution.jobs import Job, Processes
    from sega_bench.execution.runner import Networks
    from sega_bench.planning.planner import Plan
    from sega_bench.study.trials import Study
    from sega_bench.tracking.reporter import Reporter


def run_sweeps(configs: Sequence[Config]) -> int:
    """Run sweeps and studies and write their views; returns how many cells failed or lack scores.

    All are planned before the first one runs, so that any mistake is reported at once.
    """
    if not configs:
        return 0
    with gc_control.disabled():
        resolved = [resolve(config) for config in configs]
        from sega_bench import launch
        from sega_bench.execution import jobs
        from sega_bench.store import lock
        from sega_bench.views.console.summary import print_plan

    quieten_libraries()
    _refuse_one_folder_for_two([made for made, _, _ in resolved])
    signals.before_immediate_exit(lock.release_all)
    with gc_control.frozen(), ExitStack() as folders:
        work: list[Callable[[], int]] = []
        for made, study, on in resolved:
            if made.config.dry_run:
                print_plan(console, made, study.cost() if study else launch.describe_sharding(made))
                continue
            job = folders.enter_context(jobs.locked(made, on))
            work.append(partial(_run_study, study, job, on) if study else partial(run_job, job))
        return sum(do() for do in work)


def resolve(config: Config) -> tuple[Plan, Study | None, Processes]:
    """Resolve a configuration: the plan (for a study its baseline), the study, and its processes.

    Nothing is run.

    Raises:
        UserError: the configuration is wrong; names the key, before a model is loaded.
    """
    study = None
    if config.study.space:  # imported here: each import takes seconds that a mistake need not wait for
        from sega_bench.study import trials

        study = trials.resolve(config)
        made = study.plan(())
    else:
        from sega_bench.planning import planner

        made = planner.plan(config)
    from sega_bench import launch

    return made, study, launch.requested_processes(made.config)


def _refuse_one_folder_for_two(plans: Sequence[Plan]) -> None:
    folders = Counter((made.config.output_dir, made.name) for made in plans)
    for (_, name), count in folders.items():
        if count > 1:
            raise UserError(
                f"--multirun: {count} sweeps would share the folder {name}: make what varies an axis of one "
                "sweep, '+axes.guidance_scale=[3,5]', or part of the name, 'name=g${sampling.guidance_scale}'"
            )


def run_job(job: Job) -> int:
    """Make the missing cells and show the results; returns how many cells failed or lack scores."""
    with logging_to(job.store.log_path):
        if job.missing and job.done:
            cells = f"{job.done} of {len(job.plan.cells)} cells"
            console.print(f"{cells} are done, {job.missing} to go", highlight=False)
        reporter = _make(job)
        if job.store.launch_path.exists():
            console.print("the cluster goes on alone: the same command attaches, shows and finishes")
            return 0
        failed, unscored = show(job, reporter)
    return _complain(job, failed, unscored)


def _run_study(study: Study, job: Job, on: Processes) -> int:
    """Run a study: its trials in batches, then its answers on held-out prompts and seeds."""
    from sega_bench.execution import jobs, runner
    from sega_bench.study import answer_files, study_run
    from sega_bench.study.console import print_answers

    networks, reporter = runner.Networks(), None
    with logging_to(job.store.log_path):
        search = study_run.StudyRun(study, job.store)
        fails_fast, is_retried = study.config.fail_fast, study.config.retry_failed
        known = search.failed() if fails_fast and not is_retried else set()
        for step in search.search():
            console.print(str(step), highlight=False)
            reporter = _make(_following(job, step.plan, on), networks, reporter)
            if (
                fails_fast and search.failed() - known
            ):  # Optuna has not been told of this batch, so the next command repeats it
                job = _following(job, step.plan, on)
                return _complain(job, *show(job, reporter))
        job = _following(job, search.plan(), on)
        reporter = _make(job, networks, reporter)
        answers = search.answers()
        if (plan := search.held_out_plan(answers)) is not None:
            console.print("the answers, on held-out prompts and seeds", highlight=False)
            with jobs.locked(plan, on) as apart:
                _make(apart, networks)
                show(apart, None, lambda places: None)
                answers = search.with_held_out(answers, apart.store)
        written = answer_files.write(job.store, answers)
        failed, unscored = show(
            job, reporter, lambda places: print_answers(console, answers, written | places)
        )
    return _complain(job, failed, unscored)


def _following(job: Job, plan: Plan, on: Processes) -> Job:
    """A job for another plan in the same, already locked, folder."""
    from sega_bench.execution import jobs

    return replace(jobs.prepare(plan, on), confirm=job.confirm)


def _complain(job: Job, failed: int, unscored: int) -> int:
    """Report cells that failed or lack scores; returns their number."""
    for count, what in ((failed, "failed"), (unscored, "could not be scored")):
        if count:
            errors.print(
                f"{count} of {len(job.plan.cells)} cells {what}; the reasons are in the column 'error' of "
                f"{job.store.results_csv}, and retry_failed=true tries them again",
                style="red",
                soft_wrap=True,
            )
    return failed + unscored


def _make(job: Job, networks: Networks | None = None, reporter: Reporter | None = None) -> Reporter | None:
    """Make the missing cells, here or on the requested workers; returns the W&B run to finish."""
    is_here = job.plan.config.launch.name == "inline"
    if is_here or not (job.missing or job.store.launch_path.exists()):
        return _execute(job, networks, reporter)
    _launch(job)
    return reporter


def _execute(job: Job, networks: Networks | None = None, reporter: Reporter | None = None) -> Reporter | None:
    """Make the missing cells in this process with a progress bar; returns the W&B run to finish.

    Args:
        job: what to make.
        networks: loaded by an earlier job of the same study.
        reporter: the W&B run that an earlier job of the same study started.
    """
    from sega_bench.execution import runner

    report = reporter_of(job)
    with progress(console, job.unet_evals, job.missing) as meter:

        def evaluated(count: int) -> None:
            meter.evaluations(count)
            signals.check()

        for record in runner.execute(job, evaluated, networks=networks):
            reporter = reporter or report()  # after plan.json exists: it becomes the run's configuration
            if reporter is not None:
                reporter.log([record])
            meter.cell(failed=record.status == "failed")
    return reporter


def _launch(job: Job) -> None:
    """Make the missing cells on workers, which log to W&B themselves; the sweep's run follows at the end."""
    from sega_bench.launch import Launch

    reporter_of(job)  # raises for an unknown wandb.mode
    to_make = {cell.key for wave in job.waves for cell in wave.cells}
    missing = to_make | {record.cell.key for record in job.unscored}
    with Launch(job) as launch:
        console.print(str(launch), highlight=False)
        with progress(console, launch.unet_evals, job.missing) as meter:
            for row, at_work in launch.rows():
                signals.check()
                if row["key"] in missing:  # a cell whose scores had to wait has a second row
                    missing.remove(row["key"])
                    meter.workers(at_work)
                    meter.evaluations(row["unet_evals"] if row["key"] in to_make else 0)
                    meter.cell(failed=row["status"] == "failed")

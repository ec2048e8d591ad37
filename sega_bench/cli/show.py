"""Bring a sweep's views up to date, print its summary and finish its W&B run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sega_bench.cli.console import console
from sega_bench.tracking.login import resolve_mode

if TYPE_CHECKING:
    from sega_bench.analysis.results import Results
    from sega_bench.execution.jobs import Job
    from sega_bench.tracking.reporter import Reporter

    Print = Callable[[dict[str, object]], None]


def reporter_of(job: Job) -> Callable[[], Reporter | None]:
    """A function that starts the sweep's W&B run, or returns None where W&B is disabled.

    Raises:
        UserError: ``wandb.mode`` is unknown; at once, before the function is called.
    """
    settings = job.plan.config.wandb
    if (mode := resolve_mode(settings.mode)) == "disabled":
        return lambda: None
    from sega_bench.tracking.reporter import Reporter

    return lambda: Reporter(
        job.store,
        job.store.read_plan() or {},
        mode,
        project=settings.project,
        entity=settings.entity,
        already=job.done,
    )


def show(job: Job, reporter: Reporter | None, print_instead: Print | None = None) -> tuple[int, int]:
    """Bring the views up to date and print the summary.

    Args:
        job: what was run.
        reporter: the sweep's W&B run, if it was started. If not, a run is made if W&B lacks these results.
        print_instead: prints a study's answers in the summary's place, given where everything is.

    Returns:
        The numbers of failed and of unscored cells.
    """
    from sega_bench.analysis.results import Results
    from sega_bench.views.console.summary import print_summary
    from sega_bench.views.write_all import are_current, locations, write_views

    results = Results.read(job.store)
    are_stale = not are_current(results)
    reporter = reporter or _late_reporter(job, results.digest)
    if not job.missing:
        _print_nothing_to_do(job, are_stale or reporter is not None)
    if are_stale:
        write_views(results)
    places: dict[str, object] = {**locations(job.store)}
    if reporter:
        places |= _finish(reporter, results)
    if print_instead is None:
        print_summary(console, results, places)
    else:
        print_instead(places)
    return _count_failures(results)


def _print_nothing_to_do(job: Job, are_views_stale: bool) -> None:
    done = f"{job.done} of {len(job.plan.cells)} cells are done"
    message = f"{done}; updating the views" if are_views_stale else f"nothing to do: {done}"
    console.print(message, highlight=False)


def _late_reporter(job: Job, digest: str) -> Reporter | None:
    """The W&B run of a sweep to which nothing was added, unless the run shows these results already."""
    if job.plan.config.wandb.mode == "disabled":
        return None
    from sega_bench.tracking import reporter

    return None if reporter.read_digest(job.store) == digest else reporter_of(job)()


def _finish(reporter: Reporter, results: Results) -> dict[str, str]:
    from sega_bench.tracking import run_ids

    return run_ids.places(results.store, reporter.finish(results))


def _count_failures(results: Results) -> tuple[int, int]:
    from sega_bench.execution.resume import NOT_SCORED

    frame = results.frame
    lacking = frame["error"].str.startswith(NOT_SCORED, na=False)
    return int((frame["status"] == "failed").sum()), int(lacking.sum())

"""The views of what was made, brought up to date and said; W&B among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sega_bench.cli.console import console
from sega_bench.tracking.login import resolve_mode

if TYPE_CHECKING:
    from sega_bench.execution.jobs import Job
    from sega_bench.tracking.reporter import Reporter

    Say = Callable[[dict[str, object]], None]


def reporter_of(job: Job) -> Callable[[], Reporter | None]:
    """Starts the W&B run of a sweep, or does nothing; a mode that does not exist is told at once."""
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


def show(job: Job, reporter: Reporter | None, say: Say | None = None) -> tuple[int, int]:
    """Bring the views up to date, print the summary; returns the numbers of failed and of unscored cells.

    A study says something else in the summary's place.

    What a view shows is read from the view itself: whoever made the records may have died before their views.
    """
    from sega_bench.analysis import table_files
    from sega_bench.analysis.claims import claims
    from sega_bench.analysis.frames import load_with_digest
    from sega_bench.analysis.summary import summarise, trends
    from sega_bench.execution.resume import NOT_SCORED
    from sega_bench.store import is_whole_png
    from sega_bench.tracking import run_ids
    from sega_bench.views import write_all
    from sega_bench.views.console.summary import print_summary
    from sega_bench.views.report import building as report

    store, axes = job.store, list(job.plan.axes)
    frame, digest = load_with_digest(store)
    summary, claimed = (of(frame, axes, store.answers()) for of in (summarise, claims))
    sheets = list(store.grids_dir.glob("*.png"))
    has_sheets = all(map(is_whole_png, sheets)) and (bool(sheets) or bool(frame["is_reference"].all()))
    is_behind = table_files.shown(store) != digest or report.shown(store) != digest or not has_sheets
    reporter = reporter or _late_reporter(job, digest)
    if not job.missing:
        said = f"{job.done} of {len(job.plan.cells)} cells are done"
        is_late = is_behind or reporter is not None
        said = f"{said}; now the views that show them" if is_late else f"nothing to do: {said}"
        console.print(said, highlight=False)
    if is_behind:
        write_all.write_views(store, frame, summary, claimed, digest)
    shown: dict[str, object] = {**write_all.places(store)}
    sheets = sorted(store.grids_dir.glob("*.png"))
    if reporter:
        shown |= run_ids.places(store, reporter.finish(frame, summary, claimed, sheets))
    if say is None:
        print_summary(console, summary, trends(frame, axes), claimed, shown)
    else:
        say(shown)
    lacks = frame["error"].str.startswith(NOT_SCORED, na=False)
    return int((frame["status"] == "failed").sum()), int(lacks.sum())


def _late_reporter(job: Job, digest: str) -> Reporter | None:
    """The W&B run of a sweep to which nothing is added, if the run does not show it yet."""
    if job.plan.config.wandb.mode == "disabled":
        return None
    from sega_bench.tracking import reporter as reporters

    return None if reporters.shown(job.store) == digest else reporter_of(job)()

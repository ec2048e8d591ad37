"""The command line: ``python -m sega_bench +sweep=thresholds``. The composition root.

Exit codes: 0 all cells done, 1 some failed or lack scores, 2 the user's mistake, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from sega_bench import config as configuration
from sega_bench import signals
from sega_bench.errors import UserError
from sega_bench.progress import progress

if TYPE_CHECKING:
    from sega_bench.config import Config
    from sega_bench.planner import Plan
    from sega_bench.runner import Job, Networks
    from sega_bench.study.trials import Study
    from sega_bench.views.wandb import Reporter

    Say = Callable[[dict[str, object]], None]

console = Console(width=None if sys.stdout.isatty() else 100)
errors = Console(stderr=True, width=None if sys.stderr.isatty() else 10_000)


def main() -> None:
    """Run the command line; exits with the codes above."""
    signals.listen()
    # Read when torch is imported: threads that wait for each other sleep, and leave the core to others.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with _mistakes_in_one_line():
            flags = _flags()
            if len(sys.argv) == 1 or flags.help:
                _print_overview()
            elif _run_sweeps(_run_hydra(flags)):
                sys.exit(1)
    except KeyboardInterrupt:
        errors.print("interrupted: what was done is kept, and the same command goes on", style="yellow")
        sys.exit(signals.INTERRUPTED)


@contextmanager
def _mistakes_in_one_line() -> Iterator[None]:
    """What the user can mend is one line without a traceback, and exit code 2; anything else is a bug."""
    try:
        yield
    except UserError as error:
        errors.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(2)


def _flags() -> argparse.Namespace:
    """The command line as Hydra's own parser reads it, whose complaints fill several lines."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return get_args_parser().parse_args()
    except SystemExit as end:
        if not end.code:  # --version
            raise
        reason = said.getvalue().rpartition("error: ")[2]
        raise UserError(
            f"{reason.strip()}: settings are key=value and stand together, --hydra-help lists the flags"
        ) from None


def _run_hydra(flags: argparse.Namespace) -> list[Config]:
    """The configuration that Hydra makes of the command line: several of a multirun, none with ``--cfg``.

    It only composes, so that whatever it raises is about what was asked.
    """
    if flags.experimental_rerun:
        raise UserError(
            "--experimental-rerun reads a pickle, which could run anything: give the settings instead"
        )
    if not flags.shell_completion:
        configuration.check_overrides(flags.overrides)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra exits 1 with several lines of its own otherwise
    configuration.register()
    composed: list[DictConfig] = []

    def collect(one: DictConfig) -> None:
        composed.append(one)

    app = hydra.main(config_path=str(configuration.CONF_DIR), config_name="config", version_base="1.3")(
        collect
    )
    with TemporaryDirectory() as scratch, configuration.explained():
        # A multirun leaves a note in its folder; what is worth keeping is in each sweep's plan.json.
        OmegaConf.register_new_resolver("scratch", lambda: scratch, replace=True)
        try:
            app()
        except SystemExit as end:  # Hydra has said why
            sys.exit(2 if end.code else 0)
    return [configuration.typed(one) for one in composed]


def _print_overview() -> None:
    console.print("[bold]sega_bench[/]: sweep the settings of semantic guidance, score every image\n")
    groups = (("Sweeps", "sweep", "+sweep="), ("Studies", "study", "+study="), ("Models", "model", "model="))
    for title, group, usage in groups:
        table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, line in configuration.headlines(group).items():
            table.add_row(f"{usage}{name}", Text(line))
        console.print(table, "")
    console.print("Examples")
    for arguments in (
        "+sweep=thresholds",
        "+sweep=thresholds model=sd15 dry_run=true",
        "+sweep=thresholds 'axes.edit_threshold=[0.9,0.95]' 'seeds=[0,1,2]' name=mine",
        "+study=pareto study.trials=30",
        "+sweep=thresholds launch=local launch.workers=2",
        "+sweep=thresholds --cfg job",
        "--multirun +sweep=thresholds,warmup model=faces,sd15",
    ):
        console.print(Text(f"  python -m sega_bench {arguments}"), soft_wrap=True)


def _run_sweeps(configs: Sequence[Config]) -> int:
    """Sweeps and studies from their configurations to their views; returns how many cells failed or lack
    scores.

    All are planned before the first begins, so that a mistake in any is told at once.
    """
    if not configs:
        return 0
    from sega_bench import (  # torch and diffusers take seconds: wrong keys are told before
        launch,
        planner,
        runner,
    )
    from sega_bench.store import lock
    from sega_bench.study import trials
    from sega_bench.views.terminal import print_plan

    _quieten_libraries()
    studies = [trials.resolve(config) if config.study.space else None for config in configs]
    plans = [
        study.plan(()) if study else planner.plan(config)
        for study, config in zip(studies, configs, strict=True)
    ]
    processes = [launch.asked(made.config) for made in plans]
    _refuse_one_folder_for_two(plans)
    signals.before_leaving(lock.release_all)
    with ExitStack() as folders:
        work: list[Callable[[], int]] = []
        for made, study, on in zip(plans, studies, processes, strict=True):
            if made.config.dry_run:
                print_plan(console, made, study.cost() if study else launch.dealt(made))
                continue
            job = folders.enter_context(runner.locked(made, on))
            work.append(partial(_run_study, study, job) if study else partial(_run_job, job))
        return sum(do() for do in work)


def _refuse_one_folder_for_two(plans: Sequence[Plan]) -> None:
    folders = Counter((made.config.output_dir, made.name) for made in plans)
    for (_, name), count in folders.items():
        if count > 1:
            raise UserError(
                f"--multirun: {count} sweeps would share the folder {name}: make what varies an axis of one "
                "sweep, '+axes.guidance_scale=[3,5]', or part of the name, 'name=g${sampling.guidance_scale}'"
            )


def _run_job(job: Job) -> int:
    """Make what is missing and show it; returns the number of cells that failed or lack scores."""
    with _logging_to(job.store.log_path):
        if job.missing and job.done:
            cells = f"{job.done} of {len(job.plan.cells)} cells"
            console.print(f"{cells} are done, {job.missing} to go", highlight=False)
        reporter = _execute(job) if job.plan.config.launch.name == "inline" else _launch(job)
        if job.store.launch_path.exists():
            console.print("the cluster goes on alone: the same command attaches, shows and finishes")
            return 0
        failed, unscored = _show(job, reporter)
    return _complain(job, failed, unscored)


def _run_study(study: Study, job: Job) -> int:
    """:func:`_run_job` of a search: its trials in batches, then what it found."""
    from sega_bench import runner
    from sega_bench.study import conducting, terminal, writing

    networks, reporter = runner.Networks(), None
    with _logging_to(job.store.log_path):
        conduct = conducting.Conduct(study, job.store)
        for step in conduct.search():
            console.print(str(step), highlight=False)
            reporter = _execute(_following(job, step.plan), networks, reporter)
        job = _following(job, conduct.plan())
        reporter = _execute(job, networks, reporter)
        found = conduct.answers()
        if (plan := conduct.transfer(found)) is not None:
            console.print("what was found, on the prompts and seeds that were held out", highlight=False)
            with runner.locked(plan) as apart:
                _execute(apart, networks)
                _show(apart, None, lambda places: None)
                found = conduct.transferred(found, apart.store)
        written = writing.write(job.store, found)
        failed, unscored = _show(
            job, reporter, lambda places: terminal.print_answers(console, found, written | places)
        )
    return _complain(job, failed, unscored)


def _following(job: Job, plan: Plan) -> Job:
    """The next job in the same locked folder."""
    from sega_bench import runner

    return replace(runner.prepare(plan), confirm=job.confirm)


def _complain(job: Job, failed: int, unscored: int) -> int:
    """Tell of cells that failed or lack scores; returns their number."""
    for count, what in ((failed, "failed"), (unscored, "could not be scored")):
        if count:
            errors.print(
                f"{count} of {len(job.plan.cells)} cells {what}; the reasons are in the column 'error' of "
                f"{job.store.results_csv}, and retry_failed=true tries them again",
                style="red",
                soft_wrap=True,
            )
    return failed + unscored


def _quieten_libraries() -> None:
    """Keep the libraries' progress bars and deprecation notes out of ours."""
    import diffusers.utils.logging
    import transformers.utils.logging

    logging.getLogger().addHandler(logging.NullHandler())
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: a full disk is told once, by what was to be written there."""


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """The package's log in the sweep's folder, warnings on the terminal too."""
    handlers = (
        _LogFile(path, encoding="utf-8"),
        RichHandler(logging.WARNING, errors, show_path=False),
    )
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("sega_bench")
    package.setLevel(logging.INFO)
    package.propagate = False
    for handler in handlers:
        package.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            package.removeHandler(handler)
            with suppress(OSError):  # what did not fit on the disk
                handler.close()


def _execute(job: Job, networks: Networks | None = None, reporter: Reporter | None = None) -> Reporter | None:
    """Make what is missing, showing how far it is, here and to W&B; returns the run to be finished.

    Networks and run are those of the job before, of a study.
    """
    from sega_bench import runner

    report = _reporter(job)
    with progress(console, job.unet_evals, job.missing) as meter:

        def evaluated(count: int) -> None:
            meter.evaluations(count)
            signals.check()

        for record in runner.execute(job, evaluated, networks=networks):
            reporter = reporter or report()  # not before plan.json, which becomes the run's configuration
            if reporter is not None:
                reporter.log([record])
            meter.cell(failed=record.status == "failed")
    return reporter


def _launch(job: Job) -> Reporter | None:
    """:func:`_execute` on other processes, showing how far all of them are; W&B is told at the end."""
    from sega_bench.launch import Launch

    if not job.missing and not job.store.launch_path.exists():
        return _execute(job)
    to_make = {cell.key for wave in job.waves for cell in wave.cells}
    missing = to_make | {record.cell.key for record in job.unscored}
    with Launch(job) as launch:
        console.print(str(launch), highlight=False)
        with progress(console, launch.unet_evals, job.missing) as meter:
            for row, at_work in launch.rows():
                signals.check()
                if row["key"] in missing:  # scores that had to wait make another row of the cell
                    missing.remove(row["key"])
                    meter.workers(at_work)
                    meter.evaluations(row["unet_evals"] if row["key"] in to_make else 0)
                    meter.cell(failed=row["status"] == "failed")
    return None


def _reporter(job: Job) -> Callable[[], Reporter | None]:
    """Starts the W&B run of a sweep, or does nothing; a mode that does not exist is told at once."""
    settings = job.plan.config.wandb
    if settings.mode == "disabled":
        return lambda: None
    from sega_bench.views.account import resolve_mode
    from sega_bench.views.wandb import Reporter

    if (mode := resolve_mode(settings.mode)) == "disabled":
        return lambda: None
    return lambda: Reporter(
        job.store,
        job.store.read_plan() or {},
        mode,
        project=settings.project,
        entity=settings.entity,
        already=job.done,
    )


def _show(job: Job, reporter: Reporter | None, say: Say | None = None) -> tuple[int, int]:
    """Bring the views up to date, print the summary; returns the numbers of failed and of unscored cells.

    A study says something else in the summary's place.

    What a view shows is read from the view itself: whoever made the records may have died before their views.
    """
    from sega_bench.resume import NOT_SCORED
    from sega_bench.store import is_whole_png
    from sega_bench.views import everything, tables, terminal
    from sega_bench.views.claims import claims
    from sega_bench.views.report import building as report

    store, axes = job.store, list(job.plan.axes)
    frame = tables.load(store.root)
    summary, claimed = tables.summarise(frame, axes), claims(frame, axes)
    digest = tables.digest(store)
    sheets = list(store.grids_dir.glob("*.png"))
    has_sheets = all(map(is_whole_png, sheets)) and (bool(sheets) or bool(frame["is_reference"].all()))
    is_behind = tables.shown(store) != digest or report.shown(store) != digest or not has_sheets
    reporter = reporter or _late_reporter(job, digest)
    if not job.missing:
        said = f"{job.done} of {len(job.plan.cells)} cells are done"
        is_late = is_behind or reporter is not None
        said = f"{said}; now the views that show them" if is_late else f"nothing to do: {said}"
        console.print(said, highlight=False)
    if is_behind:
        everything.write_views(store, frame, summary, claimed, digest)
    shown: dict[str, object] = {**everything.places(store)}
    sheets = sorted(store.grids_dir.glob("*.png"))
    if reporter and (command := reporter.finish(frame, summary, claimed, sheets)):
        shown["W&B"] = command
    if say is None:
        terminal.print_summary(console, summary, tables.trends(frame, axes), claimed, shown)
    else:
        say(shown)
    lacks = frame["error"].str.startswith(NOT_SCORED, na=False)
    return int((frame["status"] == "failed").sum()), int(lacks.sum())


def _late_reporter(job: Job, digest: str) -> Reporter | None:
    """The W&B run of a sweep to which nothing is added, if the run does not show it yet."""
    if job.plan.config.wandb.mode == "disabled":
        return None
    from sega_bench.views import wandb

    return None if wandb.shown(job.store) == digest else _reporter(job)()


if __name__ == "__main__":
    main()

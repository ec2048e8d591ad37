"""Compare a study's trials with a sweep of the same settings: the cost of asking in batches and telling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory

from sega_bench.benchmark.clock import Timing, interleave, ratio
from sega_bench.config import compose
from sega_bench.execution import jobs, runner
from sega_bench.planning.planner import Plan
from sega_bench.sega.models import resolve_device
from sega_bench.store import Store
from sega_bench.study.study_run import StudyRun
from sega_bench.study.trials import resolve

STUDY = ("+study=pareto", "study.min_resource=null", "wandb.mode=disabled")
"""Every trial runs all prompts and seeds, as every setting of a sweep does."""


@dataclass(frozen=True)
class Cost:
    """A study and the sweep of its trials' settings; both include the baseline.

    Args:
        settings: the number of trials.
        cells: the number of cells, which is the same in both.
        timings: of ``study`` and ``sweep``, from the plan to the last file, with loaded networks.
        unet_evals: of ``study`` and ``sweep``. The study needs more, because each batch repeats the shared
            steps of earlier batches.
    """

    settings: int
    cells: int
    timings: dict[str, Timing]
    unet_evals: dict[str, int]

    @property
    def ratio(self) -> float:
        """A trial's time divided by that of a setting in the sweep."""
        return ratio(self.timings, "study", "sweep")


def measure(overrides: Sequence[str], repeats: int) -> Cost:
    """Time the study and, in turn, the sweep of its trials' settings.

    Args:
        overrides: words of the study's command line.
        repeats: how often to time both.
    """
    networks = runner.Networks()
    plans: list[Plan] = []
    counts: dict[str, int] = {}

    def search() -> None:
        plan, counts["study"] = _search(overrides, networks)
        plans[:] = [plan]

    def sweep() -> None:
        counts["sweep"] = _sweep(plans[0], networks)

    device = resolve_device(compose(*STUDY, *overrides).engine.device)
    timings = interleave({"study": search, "sweep": sweep}, repeats, device)
    settings = len(next(iter(plans[0].config.zip.values())))
    return Cost(settings, len(plans[0].cells), timings, counts)


def _search(overrides: Sequence[str], networks: runner.Networks) -> tuple[Plan, int]:
    """Run the study; the plan of all its trials, and its UNet evaluations."""
    with TemporaryDirectory() as folder:
        study = resolve(compose(*STUDY, *overrides, f"output_dir={folder}"))
        with jobs.locked(study.plan(())) as job:
            conducted = StudyRun(study, job.store)
            for step in conducted.search():
                _execute(jobs.prepare(step.plan), networks)
            return conducted.plan(), _evaluations(job.store)


def _sweep(plan: Plan, networks: runner.Networks) -> int:
    """Run the plan as one sweep; its UNet evaluations."""
    with TemporaryDirectory() as folder:
        moved = replace(plan, config=replace(plan.config, output_dir=folder))
        with jobs.locked(moved) as job:
            _execute(job, networks)
            return _evaluations(job.store)


def _execute(job: jobs.Job, networks: runner.Networks) -> None:
    for _ in runner.execute(job, networks=networks):
        pass


def _evaluations(store: Store) -> int:
    return sum(row["unet_evals"] or 0 for row in store.rows()[0])

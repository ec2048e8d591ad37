"""A study's trials against a sweep's settings: what it costs to ask in batches and to tell."""

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
from sega_bench.study.study_run import Conduct
from sega_bench.study.trials import resolve

STUDY = ("+study=pareto", "study.min_resource=null", "wandb.mode=disabled")
"""All trials are given all prompts and seeds, as the settings of a sweep are."""


@dataclass(frozen=True)
class Cost:
    """A study and the sweep of the settings that it asked for, the baseline with both.

    Args:
        settings: the trials.
        cells: of both.
        timings: of the ``study`` and the ``sweep``, from the plan to the last file, networks loaded.
        unet_evals: of both, likewise: a batch repeats the shared steps of those before it.
    """

    settings: int
    cells: int
    timings: dict[str, Timing]
    unet_evals: dict[str, int]

    @property
    def ratio(self) -> float:
        """How many times a setting of the sweep a trial took."""
        return ratio(self.timings, "study", "sweep")


def measure(overrides: Sequence[str], repeats: int) -> Cost:
    """Search, and by turns cross what was found.

    Args:
        overrides: of the study's configuration.
        repeats: of both.
    """
    networks = runner.Networks()
    found: list[Plan] = []
    counts: dict[str, int] = {}

    def search() -> None:
        made, counts["study"] = _search(overrides, networks)
        found[:] = [made]

    def sweep() -> None:
        counts["sweep"] = _sweep(found[0], networks)

    device = resolve_device(compose(*STUDY, *overrides).engine.device)
    timings = interleave({"study": search, "sweep": sweep}, repeats, device)
    settings = len(next(iter(found[0].config.zip.values())))
    return Cost(settings, len(found[0].cells), timings, counts)


def _search(overrides: Sequence[str], networks: runner.Networks) -> tuple[Plan, int]:
    """The plan of all trials, and the evaluations it took to find them."""
    with TemporaryDirectory() as folder:
        study = resolve(compose(*STUDY, *overrides, f"output_dir={folder}"))
        with jobs.locked(study.plan(())) as job:
            conducted = Conduct(study, job.store)
            for step in conducted.search():
                _execute(jobs.prepare(step.plan), networks)
            return conducted.plan(), _evaluations(job.store)


def _sweep(made: Plan, networks: runner.Networks) -> int:
    """The evaluations of a plan that is run at once."""
    with TemporaryDirectory() as folder:
        elsewhere = replace(made, config=replace(made.config, output_dir=folder))
        with jobs.locked(elsewhere) as job:
            _execute(job, networks)
            return _evaluations(job.store)


def _execute(job: jobs.Job, networks: runner.Networks) -> None:
    for _ in runner.execute(job, networks=networks):
        pass


def _evaluations(store: Store) -> int:
    return sum(row["unet_evals"] or 0 for row in store.rows()[0])

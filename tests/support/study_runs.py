"""Small studies on fake networks, run as the command runs them but without views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sega_bench.config import compose
from sega_bench.execution import jobs, runner
from sega_bench.store import Store
from sega_bench.study.answers import Answers
from sega_bench.study.study_run import StudyRun
from sega_bench.study.trials import Study, Trial, resolve
from support.small_sweep import overrides
from support.stub_sweep import fake_networks

SPACE = (
    "+study.space.edit_threshold={low: 0.1, high: 0.9}",
    "+study.space.edit_guidance_scale={low: 1, high: 9}",
)


def command_line(folder: Path, *words: str, space: Sequence[str] = SPACE) -> list[str]:
    """Overrides of a study of two concepts on two prompts with two seeds, in rungs of 2 and 4 blocks."""
    common = [word for word in overrides(folder) if not word.startswith("+axes")]
    common += [
        "sampling.height=16",
        "sampling.width=16",
        "prompts=[a face, a man]",
        "concepts=[glasses, smile]",
    ]
    return [*common, *space, "study.trials=8", "study.batch=4", "study.min_resource=2", *words]


def small_study(folder: Path, *words: str, space: Sequence[str] = SPACE) -> Study:
    return resolve(compose(*command_line(folder, *words, space=space)))


def store(folder: Path) -> Store:
    return Store(folder / "small-local")


def run_study(study: Study, on_step: Callable[[], None] = lambda: None) -> Answers:
    """Search, validate on held-out blocks, and answer, with networks loaded once."""
    networks = runner.Networks()
    with fake_networks(), jobs.locked(study.plan(())) as job:
        study_run = StudyRun(study, job.store)
        for step in study_run.search():
            list(runner.execute(jobs.prepare(step.plan), networks=networks))
            on_step()
        list(runner.execute(jobs.prepare(study_run.plan()), networks=networks))
        answers = study_run.answers()
        if (plan := study_run.held_out_plan(answers)) is not None:
            with jobs.locked(plan) as held_out:
                list(runner.execute(held_out, networks=networks))
                answers = study_run.with_held_out(answers, held_out.store)
    return answers


def trial_values(answers: Answers) -> list[tuple[Trial, list[float]]]:
    """Each complete trial with its objectives."""
    return list(zip(answers.trials, answers.estimates_TK.tolist(), strict=True))

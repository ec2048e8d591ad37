"""Small studies with stand-ins for the networks, as the command conducts them, views apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sega_bench.config import compose
from sega_bench.execution import jobs, runner
from sega_bench.store import Store
from sega_bench.study.answers import Answers
from sega_bench.study.study_run import Conduct
from sega_bench.study.trials import Study, Trial, resolve
from support.small_sweep import overrides
from support.stub_sweep import fake_networks

SPACE = (
    "+study.space.edit_threshold={low: 0.1, high: 0.9}",
    "+study.space.edit_guidance_scale={low: 1, high: 9}",
)


def written(folder: Path, *words: str, space: Sequence[str] = SPACE) -> list[str]:
    """Words of a command line: two concepts on two prompts with two seeds, on 2 blocks, then on 4."""
    common = [word for word in overrides(folder) if not word.startswith("+axes")]
    common += [
        "sampling.height=16",
        "sampling.width=16",
        "prompts=[a face, a man]",
        "concepts=[glasses, smile]",
    ]
    return [*common, *space, "study.trials=8", "study.batch=4", "study.min_resource=2", *words]


def study(folder: Path, *words: str, space: Sequence[str] = SPACE) -> Study:
    return resolve(compose(*written(folder, *words, space=space)))


def store(folder: Path) -> Store:
    return Store(folder / "small-local")


def conduct(made: Study, on_step: Callable[[], None] = lambda: None) -> Answers:
    """Search, and answer from what is stored; nothing is loaded twice, nor shown."""
    networks = runner.Networks()
    with fake_networks(), jobs.locked(made.plan(())) as job:
        conducted = Conduct(made, job.store)
        for step in conducted.search():
            list(runner.execute(jobs.prepare(step.plan), networks=networks))
            on_step()
        list(runner.execute(jobs.prepare(conducted.plan()), networks=networks))
        found = conducted.answers()
        if (plan := conducted.transfer(found)) is not None:
            with jobs.locked(plan) as apart:
                list(runner.execute(replace(apart), networks=networks))
                found = conducted.transferred(found, apart.store)
    return found


def told(found: Answers) -> list[tuple[Trial, list[float]]]:
    """What a study comes to: its trials and what they were told to have scored."""
    return list(zip(found.trials, found.estimates_TK.tolist(), strict=True))

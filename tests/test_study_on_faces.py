"""Studies on the embedded model, at reduced size: does what they recommend hold where they did not search?"""

from __future__ import annotations

from pathlib import Path

import pytest

from sega_bench import jobs, runner
from sega_bench.config import compose
from sega_bench.scores import ScoreSettings, score_names
from sega_bench.study.answers import Answers, Best
from sega_bench.study.conducting import Conduct
from sega_bench.study.trials import resolve
from sega_bench.views.tables import load


def searched(folder: Path, *words: str) -> Answers:
    """What a study finds, and what that scores on held-out prompts and seeds."""
    study = resolve(compose(*words, f"output_dir={folder}", "wandb.mode=disabled"))
    networks = runner.Networks()
    with jobs.locked(study.plan(())) as job:
        conducted = Conduct(study, job.store)
        for step in conducted.search():
            list(runner.execute(jobs.prepare(step.plan), networks=networks))
        found = conducted.answers()
        plan = conducted.transfer(found)
        assert plan is not None
        with jobs.locked(plan) as apart:
            list(runner.execute(apart, networks=networks))
            return conducted.transferred(found, apart.store)


def area(best: Best, *, of_the_baseline: bool = False) -> float:
    """What a setting, or the baseline beside it, dominates of gain against preservation."""
    gain, cost = (one.mean for one in best.scores)
    if of_the_baseline:
        gain, cost = gain - best.over_baseline[0].mean, cost - best.over_baseline[1].mean
    return gain * (1 - cost)


def test_the_recommended_setting_beats_the_documentations_on_held_out_seeds(tmp_path: Path) -> None:
    few = ("study.trials=10", "study.batch=10", "study.sampler=random", "seeds=[1, 4, 6, 8]")
    few += ("prompts=[a photo of the face of a woman]", 'concepts=["glasses, wearing glasses"]')
    few += ("sampling.num_inference_steps=10", "edit.edit_warmup_steps=2")
    few += ("study.space.edit_warmup_steps.high=5", "~study.objectives.lpips")
    few += ("study.constraints=['lpips <= 0.2']", "study.held_out={prompts: null, seeds: [2, 3, 5, 7]}")
    found = searched(tmp_path, "+study=pareto", *few)
    assert {trial.resource for trial in found.trials} == {2, 4}
    assert found.best[0].over_baseline[0].mean > 0.005
    assert found.held_out[0].over_baseline[0].mean > 0
    frame = load(tmp_path / "pareto" / "held_out")
    taken = frame[~frame["is_reference"]].notna().any()
    assert set(score_names(ScoreSettings(attributes="embedded"))) <= set(taken.index[taken])


@pytest.mark.slow
@pytest.mark.parametrize("study", ["pareto", "momentum", "per_concept"])
def test_what_a_shipped_study_recommends_beats_the_documentations(tmp_path: Path, study: str) -> None:
    found = searched(tmp_path, f"+study={study}")
    best, apart = found.best[0], found.held_out[0]
    assert area(best) > area(best, of_the_baseline=True)
    assert area(apart) > area(apart, of_the_baseline=True)

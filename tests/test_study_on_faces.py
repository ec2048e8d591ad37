"""Studies on the embedded model, at reduced size: does what they recommend hold where they did not search?"""

from __future__ import annotations

from pathlib import Path

import pytest

from sega_bench import runner
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
    with runner.locked(study.plan(())) as job:
        conducted = Conduct(study, job.store)
        for step in conducted.search():
            list(runner.execute(runner.prepare(step.plan), networks=networks))
        found = conducted.answers()
        plan = conducted.transfer(found)
        assert plan is not None
        with runner.locked(plan) as apart:
            list(runner.execute(apart, networks=networks))
            return conducted.transferred(found, apart.store)


def area(best: Best, *, of_the_baseline: bool = False) -> float:
    """What a setting, or the baseline beside it, dominates of gain against preservation."""
    gain, cost = (one.mean for one in best.scores)
    if of_the_baseline:
        gain, cost = gain - best.over_baseline[0].mean, cost - best.over_baseline[1].mean
    return gain * (1 - cost)


def test_the_recommended_setting_beats_the_documentations_on_held_out_seeds(tmp_path: Path) -> None:
    few = ("study.trials=12", "study.batch=4", "study.min_resource=null", "study.sampler_seed=1")
    few += ("prompts=[a photo of the face of a woman]", "seeds=[1, 4]", "sampling.num_inference_steps=15")
    few += ("edit.edit_warmup_steps=3", "study.space.edit_warmup_steps.high=7")
    few += ("study.held_out={prompts: null, seeds: [2, 3, 5]}",)
    apart = searched(tmp_path, "+study=pareto", *few).held_out[0]
    assert area(apart) > area(apart, of_the_baseline=True)
    assert apart.over_baseline[1].high < 0  # at less cost, beyond chance
    frame = load(tmp_path / "pareto" / "held_out")
    known = set(score_names(ScoreSettings(attributes="embedded")))
    taken = frame[~frame["is_reference"]].notna().any()
    scored = set(taken.index[taken])
    assert known <= scored


@pytest.mark.slow
@pytest.mark.parametrize("study", ["pareto", "momentum", "per_concept"])
def test_what_a_shipped_study_recommends_beats_the_documentations(tmp_path: Path, study: str) -> None:
    found = searched(tmp_path, f"+study={study}")
    best, apart = found.best[0], found.held_out[0]
    assert area(best) > area(best, of_the_baseline=True)
    assert area(apart) > area(apart, of_the_baseline=True)

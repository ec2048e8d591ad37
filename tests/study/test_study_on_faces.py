"""Studies on the embedded model, at reduced size: does what they recommend hold where they did not search?"""

from __future__ import annotations

from pathlib import Path

import pytest

from sega_bench.analysis.frames import load
from sega_bench.config import compose
from sega_bench.execution import jobs, runner
from sega_bench.scores import ScoreSettings, score_names
from sega_bench.study.answers import Answers, Best, better_and_worse
from sega_bench.study.study_run import Conduct
from sega_bench.study.trials import Study, resolve


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


def beats_the_baseline(best: Best, study: Study) -> bool:
    """Better in one objective, by the 95 % interval of the pairs, and losing in none."""
    better, worse = better_and_worse(best, study.settings.objectives)
    return bool(better) and not worse


def test_the_recommended_setting_beats_the_documentations_on_held_out_seeds(tmp_path: Path) -> None:
    """As much gain for less change than with diffusers' defaults, warmed up in their fifth of the steps."""
    few = ("study.trials=14", "study.batch=7", "seeds=6", "prompts=[a photo of the face of a woman]")
    few += ('concepts=["glasses, wearing glasses"]', "study.min_resource=3")
    few += (
        "study.held_out={prompts: null, seeds: [100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111]}",
    )
    found = searched(tmp_path, "+study=pareto", *few)
    assert (found.study.config.edit.edit_guidance_scale, found.study.config.edit.edit_threshold) == (5, 0.9)
    assert {trial.resource for trial in found.trials} == {3, 6}
    assert found.held_out[0].over_baseline[0].n == 12
    assert beats_the_baseline(found.held_out[0], found.study)
    frame = load(tmp_path / "pareto" / "held_out")
    taken = frame[~frame["is_reference"]].notna().any()
    assert set(score_names(ScoreSettings(attributes="embedded"))) <= set(taken.index[taken])


@pytest.mark.slow
@pytest.mark.parametrize("study", ["pareto", "momentum", "per_concept"])
def test_what_a_shipped_study_recommends_beats_the_documentations(tmp_path: Path, study: str) -> None:
    """But for its example of four concepts, each with values of its own: there it is recommended itself."""
    found = searched(tmp_path, f"+study={study}")
    is_baseline = found.best[0].trial.params == found.study.start
    assert is_baseline or beats_the_baseline(found.held_out[0], found.study)
    assert not is_baseline or study == "per_concept"

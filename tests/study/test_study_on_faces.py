"""Studies on the embedded model, at reduced size: their recommendations hold on held-out seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from sega_bench.analysis.frames import load
from sega_bench.config import compose
from sega_bench.execution import jobs, runner
from sega_bench.scores import ScoreSettings, score_names
from sega_bench.study.answers import Answers, ScoredTrial, better_and_worse
from sega_bench.study.study_run import StudyRun
from sega_bench.study.trials import Study, resolve


def search_and_validate(folder: Path, *words: str) -> Answers:
    """A study's answers, with their scores on held-out prompts and seeds."""
    study = resolve(compose(*words, f"output_dir={folder}", "wandb.mode=disabled"))
    networks = runner.Networks()
    with jobs.locked(study.plan(())) as job:
        study_run = StudyRun(study, job.store)
        for step in study_run.search():
            list(runner.execute(jobs.prepare(step.plan), networks=networks))
        answers = study_run.answers()
        plan = study_run.held_out_plan(answers)
        assert plan is not None
        with jobs.locked(plan) as held_out:
            list(runner.execute(held_out, networks=networks))
            return study_run.with_held_out(answers, held_out.store)


def beats_the_baseline(best: ScoredTrial, study: Study) -> bool:
    """Significantly better in one objective, and worse in none."""
    better, worse = better_and_worse(best, study.settings.objectives)
    return bool(better) and not worse


def test_the_recommended_setting_beats_diffusers_defaults_on_held_out_seeds(tmp_path: Path) -> None:
    """It has at least the gain for less change."""
    few = ("study.trials=14", "study.batch=7", "seeds=6", "prompts=[a photo of the face of a woman]")
    few += ('concepts=["glasses, wearing glasses"]', "study.min_resource=3")
    few += (
        "study.held_out={prompts: null, seeds: [100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111]}",
    )
    answers = search_and_validate(tmp_path, "+study=pareto", *few)
    edit = answers.study.config.edit
    assert (edit.edit_guidance_scale, edit.edit_threshold) == (5, 0.9)  # diffusers' defaults
    assert {trial.resource for trial in answers.trials} == {3, 6}
    assert answers.held_out[0].over_baseline[0].n == 12
    assert beats_the_baseline(answers.held_out[0], answers.study)
    frame = load(tmp_path / "pareto" / "held_out")
    has_values = frame[~frame["is_reference"]].notna().any()
    assert set(score_names(ScoreSettings(attributes="embedded"))) <= set(has_values.index[has_values])


@pytest.mark.slow
@pytest.mark.parametrize("study", ["pareto", "momentum", "per_concept"])
def test_a_shipped_studys_recommendation_beats_diffusers_defaults(tmp_path: Path, study: str) -> None:
    """Except in per_concept, where the baseline is diffusers' tuned example and is itself recommended."""
    answers = search_and_validate(tmp_path, f"+study={study}")
    is_baseline = answers.best[0].trial.params == answers.study.baseline_params
    assert is_baseline or beats_the_baseline(answers.held_out[0], answers.study)
    assert not is_baseline or study == "per_concept"

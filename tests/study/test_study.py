"""Studies from their first trial to their answers, on fake networks."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from support.command_line import call, subcommand
from support.self_kill import SelfKill
from support.small_sweep import overrides, poison, refuse_to_load
from support.stub_sweep import fake_networks
from support.study_runs import SPACE, command_line, run_study, small_study, store, trial_values

from sega_bench.analysis.frames import load
from sega_bench.analysis.summary import summarise
from sega_bench.cell import Cell
from sega_bench.config import CONF_DIR, compose, options
from sega_bench.errors import UserError
from sega_bench.execution import generator, jobs, runner
from sega_bench.planning import planner
from sega_bench.sega.batching import Batching
from sega_bench.sega.denoiser import Denoiser
from sega_bench.sega.schedule import Wave
from sega_bench.sega.wave import Outcome, run_waves
from sega_bench.stats.intervals import Estimate
from sega_bench.study import answer_files, halving
from sega_bench.study.advice import advice
from sega_bench.study.answers import Answers, ScoredTrial
from sega_bench.study.optuna_study import OptunaStudy
from sega_bench.study.scoring import Scores
from sega_bench.study.settings import SAMPLERS
from sega_bench.study.trials import BASELINE, Trial, resolve
from sega_bench.tracking import headline


def test_every_trial_runs_on_the_same_blocks_in_the_same_order(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    answers = run_study(study)
    assert study.blocks == (("a face", 0), ("a man", 0), ("a face", 1), ("a man", 1))
    stored = {row["key"]: (row["prompt"], row["seed"]) for row in store(tmp_path).rows()[0]}
    assert [trial.number for trial in answers.trials] == list(range(8))
    assert {trial.resource for trial in answers.trials} <= {2, 4}
    for trial in answers.trials:
        seen = {stored[cell.key] for cell in study.cells(trial.params) if cell.key in stored}
        assert seen == set(study.blocks[: trial.resource])


def test_the_baseline_is_the_first_trial_if_it_lies_in_the_space(tmp_path: Path) -> None:
    """It is never pruned, because its cells exist on all blocks, and the best setting is never worse."""
    study = small_study(tmp_path, "edit.edit_threshold=0.4")
    answers = run_study(study)
    first = answers.trials[0]
    assert first.params == study.baseline_params == {"edit_threshold": 0.4, "edit_guidance_scale": 5.0}
    assert study.cells(first.params) == study.cells(BASELINE)
    assert first.resource == len(study.blocks)
    baseline, best = answers.estimates_TK[0], [one.mean for one in answers.best[0].scores]
    assert best[0] >= baseline[0] - 0.01 * abs(baseline[0])
    assert best[1] <= baseline[1] + 0.01 * abs(baseline[1])
    assert small_study(tmp_path, "edit.edit_threshold=0.95").baseline_params is None
    assert (
        small_study(tmp_path, "edit.edit_threshold=[0.2,0.4]", "concepts=[[glasses, smile]]").baseline_params
        is None
    )
    own = ("concepts=[[glasses, smile]]", "+study.space.edit_threshold.per_concept=true")
    start = small_study(tmp_path, *own, "edit.edit_threshold=[0.2,0.4]").baseline_params
    assert start == {"edit_threshold_1": 0.2, "edit_threshold_2": 0.4, "edit_guidance_scale": 5.0}
    stepped = "+study.space.edit_threshold.step=0.3"
    assert small_study(tmp_path, stepped, "edit.edit_threshold=0.7").baseline_params is not None
    assert small_study(tmp_path, stepped, "edit.edit_threshold=0.6").baseline_params is None


def test_every_cell_is_generated_once_references_included(tmp_path: Path) -> None:
    run_study(small_study(tmp_path))
    rows = (store(tmp_path).records_dir / "0.jsonl").read_bytes().splitlines()
    keys = [json.loads(row)["key"] for row in rows]
    assert len(keys) == len(set(keys))
    assert sum(row["is_reference"] for row in store(tmp_path).rows()[0]) == 4


def test_a_repeated_command_generates_nothing_and_a_longer_one_only_new_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trial_values(run_study(small_study(tmp_path)))
    before = {row["key"] for row in store(tmp_path).rows()[0]}
    longer = trial_values(run_study(small_study(tmp_path, "study.trials=12")))
    assert longer[:8] == first
    assert len(longer) == 12
    assert before < {row["key"] for row in store(tmp_path).rows()[0]}
    monkeypatch.setattr(runner.ImageGenerator, "generate", None)  # generating a cell raises
    assert trial_values(run_study(small_study(tmp_path, "study.trials=12"))) == longer
    at_once = trial_values(run_study_elsewhere(tmp_path, monkeypatch))
    assert at_once == longer


def run_study_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.undo()
    return run_study(small_study(tmp_path / "at_once", "study.trials=12"))


def run_and_die(study, self_kill: SelfKill) -> int:  # type: ignore[no-untyped-def]
    """Run a study in a child process, and return its wait status."""
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    try:
        self_kill.start()
        sys.addaudithook(self_kill.count_event)
        run_study(study)
    finally:
        os._exit(0)


def test_a_killed_study_reaches_the_same_answers_as_an_undisturbed_one(tmp_path: Path) -> None:
    rng, words = Random(0), ("engine.wave_rows=6", "engine.threads=1")
    torch.set_num_threads(1)
    undisturbed = trial_values(run_study(small_study(tmp_path / "undisturbed", *words)))
    died = 0
    study = small_study(tmp_path / "killed", *words)
    for _ in range(8):
        status = run_and_die(study, SelfKill(rng.randint(1, 400), rng.uniform(0, 0.01)))
        died += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert died >= 4
    answers = run_study(study)
    assert [(trial.params, trial.resource, trial.state) for trial, _ in trial_values(answers)] == [
        (trial.params, trial.resource, trial.state) for trial, _ in undisturbed
    ]
    assert [values for _, values in trial_values(answers)] == [values for _, values in undisturbed]


def test_a_kill_between_tells_changes_no_promotion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resources are stored before the first tell, so the rest of the batch is told without deciding again."""
    whole = trial_values(run_study(small_study(tmp_path / "whole")))
    promoted, tell = halving.promoted, OptunaStudy.tell

    def die(optuna_study: OptunaStudy, trial: Trial, *rest: object) -> None:
        if trial.number == 2:
            raise KeyboardInterrupt
        tell(optuna_study, trial, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(OptunaStudy, "tell", die)
    with pytest.raises(KeyboardInterrupt):
        run_study(small_study(tmp_path))
    monkeypatch.setattr(OptunaStudy, "tell", tell)
    candidate_counts: list[int] = []

    def counting(losses_TBK, candidates_T, *rest):  # type: ignore[no-untyped-def]
        candidate_counts.append(int(candidates_T.sum()))
        return promoted(losses_TBK, candidates_T, *rest)

    monkeypatch.setattr(halving, "promoted", counting)
    assert trial_values(run_study(small_study(tmp_path))) == whole
    assert candidate_counts == [4]  # the second batch only


def test_a_trial_whose_asking_was_cut_off_is_not_counted_as_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("study.sampler=gp", "study.min_resource=null", "study.trials=10", "study.batch=5")
    whole = trial_values(run_study(small_study(tmp_path / "whole", *words)))
    suggest = optuna.trial.Trial._suggest

    def die(trial: optuna.trial.Trial, *rest: Any) -> Any:
        if trial.number == 7:
            trial.relative_params  # noqa: B018  GPSampler stores these before the first suggestion
            raise KeyboardInterrupt
        return suggest(trial, *rest)

    monkeypatch.setattr(optuna.trial.Trial, "_suggest", die)
    with pytest.raises(KeyboardInterrupt):
        run_study(small_study(tmp_path, *words))
    monkeypatch.setattr(optuna.trial.Trial, "_suggest", suggest)
    assert trial_values(run_study(small_study(tmp_path, *words))) == whole


def test_with_fail_fast_the_first_failed_cell_ends_a_study_before_telling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("engine.wave_rows=4", "engine.threads=1", "study.min_resource=null")
    whole = trial_values(run_study(small_study(tmp_path / "whole", *words)))
    victim = small_study(tmp_path).cells(whole[1][0].params)[-1]

    def poisoned(
        denoiser: Denoiser, waves: Iterable[Wave], batching: Batching, on: Callable[[int], None]
    ) -> Iterator[list[Outcome] | Exception]:
        for wave in waves:
            (outcomes,) = run_waves(denoiser, [wave], batching, on)
            assert not isinstance(outcomes, Exception)
            yield [
                replace(outcome, image_HWC=None, error="NaN") if outcome.cell == victim else outcome
                for outcome in outcomes
            ]

    with monkeypatch.context() as patch, fake_networks():
        patch.setattr(generator, "run_waves", poisoned)
        assert call(patch, *command_line(tmp_path, *words, "fail_fast=true")) == 1
    assert [row["key"] for row in store(tmp_path).rows()[0] if row["status"] == "failed"] == [victim.key]
    assert not (store(tmp_path).root / "answers").exists()
    assert trial_values(run_study(small_study(tmp_path, *words, "retry_failed=true"))) == whole


def test_more_trials_are_refused_after_rescoring(tmp_path: Path) -> None:
    """The sampler knows the old scores. The existing trials can still be answered by the new ones."""
    run_study(small_study(tmp_path))
    plan = store(tmp_path).read_plan()
    assert plan is not None
    plan["scores"]["lpips"]["weights"] = "others"
    store(tmp_path).write_plan(plan)
    assert len(run_study(small_study(tmp_path)).trials) == 8
    with pytest.raises(UserError, match=r"^study\.trials: .* by the old lpips: for more trials"):
        run_study(small_study(tmp_path, "study.trials=12"))


def test_a_killed_writers_lock_and_torn_line_are_cleared_from_the_journal(tmp_path: Path) -> None:
    first = trial_values(run_study(small_study(tmp_path, "study.trials=4")))
    journal = store(tmp_path).study_journal
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "worker_i')
    journal.with_name("journal.log.lock").symlink_to(journal)
    assert trial_values(run_study(small_study(tmp_path, "study.trials=5")))[:4] == first
    assert journal.read_bytes().startswith(whole + b'{"op_code"')
    for line in journal.read_text().splitlines():
        json.loads(line)


def test_a_lost_journal_is_rebuilt_without_generating(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trial_values(run_study(small_study(tmp_path)))
    store(tmp_path).study_journal.unlink()
    monkeypatch.setattr(runner.ImageGenerator, "generate", None)
    assert trial_values(run_study(small_study(tmp_path))) == first


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_sampler_stays_within_the_space(tmp_path: Path, sampler: str) -> None:
    words = ["+study.space.edit_warmup_steps={low: 0, high: 3}", "+study.space.method=[sega, composable]"]
    words += ["+study.space.edit_threshold={low: 0.1, high: 0.9, step: 0.4}"] * (sampler == "grid")
    words += ["+study.space.edit_guidance_scale={low: 3, high: 5, step: 2}"] * (sampler == "grid")
    study = small_study(tmp_path, f"study.sampler={sampler}", "study.trials=14", "study.batch=7", *words)
    asked_params = [trial.params for trial in run_study(study).trials]
    assert len(asked_params) == 14
    assert len({tuple(params.values()) for params in asked_params}) >= 13
    assert {params["edit_warmup_steps"] for params in asked_params} <= {0, 1, 2, 3}
    assert {params["method"] for params in asked_params} == {"sega", "composable"}
    assert all(0.1 <= params["edit_threshold"] <= 0.9 for params in asked_params)


def test_a_grid_is_asked_for_once_and_completely(tmp_path: Path) -> None:
    words = ["study.sampler=grid", "+study.space.edit_guidance_scale={low: 3, high: 5, step: 2}"]
    words += ["+study.space.edit_threshold={low: 0.1, high: 0.9, step: 0.4}", "study.trials=50"]
    run_study(small_study(tmp_path, *words, "study.trials=4"))
    asked_params = [tuple(trial.params.values()) for trial in run_study(small_study(tmp_path, *words)).trials]
    assert sorted(asked_params) == [(t, s) for t in (0.1, 0.5, 0.9) for s in (3, 5)]


def test_per_concept_settings_give_each_concept_its_own_value(tmp_path: Path) -> None:
    words = ["concepts=[[glasses, smile]]", "+study.space.edit_threshold.per_concept=true"]
    study = small_study(tmp_path, *words, "study.trials=4")
    for trial in run_study(study).trials:
        assert set(trial.params) == {"edit_threshold_1", "edit_threshold_2", "edit_guidance_scale"}
        for cell in study.cells(trial.params):
            if not cell.is_reference:
                own = [edit.edit_threshold for edit in cell.edits]
                assert own == [trial.params["edit_threshold_1"], trial.params["edit_threshold_2"]]


def test_a_trial_that_violates_a_constraint_is_not_recommended(tmp_path: Path) -> None:
    free = run_study(small_study(tmp_path / "free", "study.min_resource=null"))
    costs = sorted(free.estimates_TK[:, 1])
    bound = float(costs[3] + costs[4]) / 2
    words = ("study.min_resource=null", f"study.constraints=['lpips <= {bound}']")
    kept = run_study(small_study(tmp_path / "kept", *words, "study.trials=4"))
    among = [trial.number for trial, (_, cost) in trial_values(kept) if cost <= bound]
    assert set(kept.feasible) == set(among)
    assert all(best.scores[1].mean <= bound for best in kept.best if best.concepts is None)
    none = run_study(small_study(tmp_path / "none", "study.constraints=['lpips <= -1']", "study.trials=4"))
    assert none.best == none.front == ()


def test_a_constraint_kept_for_one_concept_only_gives_a_recommendation_for_it_alone(tmp_path: Path) -> None:
    free = small_study(tmp_path / "free", "study.min_resource=null")
    answers = run_study(free)
    scores = Scores(free, {row["key"]: row for row in store(tmp_path / "free").rows()[0]})
    of = {
        concept: min(scores.estimates(t.params, ["lpips"], 4, concept)[0] for t in answers.trials)
        for concept in (None, ("glasses",), ("smile",))
    }
    keeps, other = sorted((("glasses",), ("smile",)), key=of.__getitem__)
    bound = (of[keeps] + min(of[None], of[other])) / 2
    study = small_study(
        tmp_path / "bound", "study.min_resource=null", f"study.constraints=['lpips <= {bound}']"
    )
    answers = run_study(study)
    assert answers.best_overall is None
    assert [best.concepts for best in answers.best] == [keeps]
    folder = store(tmp_path / "bound")
    answer_files.write(folder, answers)
    place = 1 + study.baseline.concepts.index(keeps)
    assert [path.name for path in (folder.answers_dir / "sweep").iterdir()] == [f"small_best_{place}.yaml"]
    assert not pd.read_csv(folder.answers_dir / "trials.csv")["best"].any()
    assert "keeps lpips" in next(advice(answers))
    summary = summarise(load(folder.root), list(study.plan(()).axes), folder.read_answers())
    assert summary.loc[summary["best"], "concepts"].tolist() == [json.dumps(list(keeps))]


@pytest.mark.parametrize(
    "space",
    [
        ["+study.space.scheduler=[euler,ddim]"],
        [
            "+study.space.method=[composable,sega]",
            "+study.space.edit_threshold={low: 0.2, high: 0.8, step: 0.6}",
        ],
        ["+study.space.edit_cooldown_steps=[null,2]", "+study.space.reverse_editing_direction=[true,false]"],
    ],
)
def test_the_summary_marks_the_recommended_setting(tmp_path: Path, space: list[str]) -> None:
    study = small_study(tmp_path, "study.sampler=grid", "study.min_resource=null", space=space)
    answers = run_study(study)
    answer_files.write(store(tmp_path), answers)
    frame = load(store(tmp_path).root)
    axes = [setting.name for setting in study.settings.space]
    summary = summarise(frame, axes, store(tmp_path).read_answers())
    (marked,) = summary.loc[summary["best"] & (summary["concepts"] == "all"), "lpips_mean"]
    keys = [cell.key for cell in study.cells(answers.best[0].trial.params) if not cell.is_reference]
    assert marked == pytest.approx(frame.set_index("key").loc[keys, "lpips"].mean())


def test_a_schedulers_aliases_are_one_choice(tmp_path: Path) -> None:
    study = small_study(tmp_path, space=["+study.space.scheduler=[euler,ddim,EulerDiscreteScheduler]"])
    assert study.settings.space[0].choices == ("EulerDiscreteScheduler", "DDIMScheduler")
    assert study.baseline_params == {"scheduler": study.baseline.cells[0].scheduler}


def test_lost_records_of_pruned_trials_are_generated_again(tmp_path: Path) -> None:
    study = small_study(tmp_path, "study.trials=16")
    answers = run_study(study)
    pruned = next(trial for trial in answers.trials if trial.resource == 2)
    lost = {cell.key for cell in study.cells(pruned.params) if not cell.is_reference}
    for path in store(tmp_path).records_dir.glob("*.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not any(key in line for key in lost)))
    again = run_study(small_study(tmp_path, "study.trials=16"))
    assert trial_values(again) == trial_values(answers)
    assert again.curves == answers.curves


def test_a_single_objective_has_one_trial_on_its_front(tmp_path: Path) -> None:
    answers = run_study(
        small_study(tmp_path, "+study.objectives.clip_concept_delta=maximize", "study.min_resource=null")
    )
    gains = answers.estimates_TK[:, 0].tolist()
    assert answers.front == (gains.index(max(gains)),)
    assert answers.best[0].trial.number == gains.index(max(gains))


def test_of_trials_with_equal_scores_the_earliest_is_recommended(tmp_path: Path) -> None:
    beyond_the_last_step = ["+study.space.edit_cooldown_steps=[100,200,300]"]
    words = ("study.sampler=grid", "study.min_resource=null")
    answers = run_study(small_study(tmp_path, *words, space=beyond_the_last_step))
    assert answers.front == (0, 1, 2)
    assert {best.trial.number for best in answers.best} == {0}


def test_the_best_settings_are_validated_on_held_out_seeds(tmp_path: Path) -> None:
    answers = run_study(small_study(tmp_path, "study.held_out.seeds=[7, 8, 9]"))
    assert [best.trial for best in answers.held_out] == [best.trial for best in answers.best]
    held_out_blocks = {(row["prompt"], row["seed"]) for row in held_out_rows(tmp_path)}
    assert held_out_blocks == {(prompt, seed) for prompt in ("a face", "a man") for seed in (7, 8, 9)}
    for best in answers.held_out:
        assert best.scores[0].n == 6
        mine = [
            row["clip_concept_delta"]
            for row in held_out_rows(tmp_path)
            if row["edit_threshold"] == [best.trial.params["edit_threshold"]]
            and (best.concepts is None or tuple(row["concepts"]) == best.concepts)
        ]
        assert best.scores[0].mean == pytest.approx(sum(mine) / len(mine))


def held_out_rows(folder: Path) -> list[dict]:  # type: ignore[type-arg]
    root = store(folder).root / "held_out-local"
    return type(store(folder))(root).rows()[0]


def test_the_command_writes_sweeps_that_compose_and_valid_diffusers_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in overrides(tmp_path) if not word.startswith("+axes")]
    words += [
        *SPACE,
        "study.trials=4",
        "concepts=['${nope}', a smile]".replace("$", "\\$"),
        "study.held_out.seeds=[5]",
    ]
    with fake_networks():
        assert call(monkeypatch, *words, "sampling.height=16", "sampling.width=16") == 0
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines()[:-8])) <= 100
    assert "held out" in output
    folder = store(tmp_path).answers_dir
    study = resolve(compose(*words, "sampling.height=16", "sampling.width=16"))
    best = json.loads((folder / "answers.json").read_text())["best"]
    for name, setting in zip(("small_best", "small_best_1", "small_best_2"), best, strict=True):
        sweep = planner.plan(
            compose(
                f"hydra.searchpath=['file://{folder}']",
                f"+sweep={name}",
                *[w for w in words if w[:5] in ("model", "score", "engin")],
            )
        )
        cells = set(study.cells(setting["params"]))
        assert set(sweep.edited) <= cells
        assert len(sweep.edited) == (4 if name == "small_best" else 2)
    calls = ast.parse((folder / "diffusers.py").read_text()).body
    assert len(calls) == 3
    arguments = {keyword.arg for keyword in calls[0].value.keywords}  # type: ignore[attr-defined]
    assert {"editing_prompt", "edit_threshold", "edit_mom_beta"} <= arguments
    assert not {"edit_cooldown_steps", "edit_weights"} & arguments  # pipeline defaults
    assert "held_out" in (store(tmp_path).report_dir / "data" / "sweep.js").read_text()
    wandb_summary = headline.study_headline(store(tmp_path).read_answers())
    assert {"study/lpips", "study/held_out/lpips", "study/edit_threshold"} <= set(wandb_summary)
    assert wandb_summary["study/edit_threshold"] == best[0]["params"]["edit_threshold"]
    refuse_to_load(monkeypatch)
    assert call(monkeypatch, *words, "sampling.height=16", "sampling.width=16") == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_dry_run_prints_the_cost_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in overrides(tmp_path) if not word.startswith("+axes")]
    refuse_to_load(monkeypatch)
    assert call(monkeypatch, *words, *SPACE, "study.trials=30", "study.min_resource=1", "dry_run=true") == 0
    output = capsys.readouterr().out
    assert "30 in batches of 63, sampler tpe" in output
    assert "1, near the front up to 2" in output
    assert list(tmp_path.iterdir()) == []


def test_advice_names_a_best_value_at_the_edge_of_its_space(tmp_path: Path) -> None:
    words = ("+study.objectives.clip_concept_delta=maximize", "study.sampler=grid", "study.min_resource=null")
    steps = ("+study.space.edit_guidance_scale.step=4", "+study.space.edit_threshold.step=0.8")
    answers = run_study(small_study(tmp_path, *words, *steps))
    assert answers.best[0].trial.params == {"edit_threshold": 0.1, "edit_guidance_scale": 9.0}
    text = "\n".join(advice(answers))
    assert "move study.space.edit_guidance_scale.high beyond 9" in text
    assert "move study.space.edit_threshold.low beyond 0.1" in text
    assert "validate on held-out seeds" in text


@pytest.mark.parametrize(
    ("space", "best", "advised"),
    [
        ("edit_guidance_scale={low: 0.01, high: 100, log: true}", 1.0, ""),
        ("edit_guidance_scale={low: 0.01, high: 100, log: true}", 100.0, "high beyond 100"),
        ("eta={low: 0, high: 1}", 0.0, ""),
        ("eta={low: 0, high: 0.5}", 0.5, "high beyond 0.5"),
        ("num_inference_steps={low: 1, high: 6}", 1, ""),
        ("edit_warmup_steps={low: 1, high: 4}", 4, ""),
        ("edit_warmup_steps={low: 1, high: 3}", 3, "high beyond 3"),
    ],
)
def test_advice_names_an_edge_only_if_the_range_can_be_extended(
    tmp_path: Path, space: str, best: float, advised: str
) -> None:
    study = small_study(tmp_path, space=[f"+study.space.{space}"])
    (setting,) = study.settings.space
    trial = Trial(0, {setting.name: best}, len(study.blocks), "complete")
    unknown = (Estimate(np.nan, np.nan, np.nan, np.nan, 0),) * 2
    answers = Answers(
        study, (), np.empty((0, 2)), (), (), (ScoredTrial(None, trial, *[unknown] * 2),), (), ()
    )
    edges = [line for line in advice(answers) if "edge" in line]
    assert [line.split(f"move study.space.{setting.name}.")[1] for line in edges] == [
        f"{edge}, under another name=." for edge in ([advised] if advised else [])
    ]


def test_a_study_is_compared_with_the_sweep_that_it_replaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study.sampler=grid", "+study.space.edit_guidance_scale={low: 3, high: 5, step: 2}"]
    words += ["+study.space.edit_threshold={low: 0.1, high: 0.9, step: 0.4}"]
    run_study(small_study(tmp_path, *words, "study.min_resource=null", "name=whole"))
    run_study(small_study(tmp_path, *words, "study.trials=2", "study.min_resource=1", "name=part"))
    run_study(small_study(tmp_path, *words, "study.trials=2", "seeds=1", "name=other"))
    whole, part, other = (tmp_path / f"{name}-local" for name in ("whole", "part", "other"))
    assert subcommand("compare", whole, whole) == 0
    assert capsys.readouterr().out.count("100.0%") == 2
    assert subcommand("compare", part, whole) == 0
    shares = [float(share) for share in re.findall(r"([\d.]+)%", capsys.readouterr().out)]
    assert 0 < shares[0] <= 100
    assert 0 < shares[1] < 60
    assert subcommand("compare", other, whole) == 2
    assert "its seed differs from that of" in capsys.readouterr().err


MISTAKES = {
    "+study.space.edit_treshold={low: 0, high: 1}": r"study\.space\.edit_treshold .*mean edit_threshold",
    "study.space.edit_threshold.high=1.5": r"study\.space\.edit_threshold is 1\.5, .* between 0 and 1",
    "study.space.edit_threshold.low=-1": r"study\.space\.edit_threshold is -1, ",
    "study.space.edit_threshold.low=0.95": r"study\.space\.edit_threshold\.high is 0\.9, .* above low",
    "study.space.edit_threshold=3": r"study\.space\.edit_threshold is 3: write",
    "+study.space.eta=[1]": r"study\.space\.eta is \[1\], .* two or more",
    "+study.space.edit_threshold.hihg=3": r"study\.space\.edit_threshold\.hihg: did you mean high",
    "+study.space.edit_threshold.step=abc": r"study\.space\.edit_threshold\.step is 'abc', .* number",
    "+study.space.edit_threshold.step=nan": r"study\.space\.edit_threshold\.step is nan, ",
    "+study.space.height={low: 16, high: 32, step: 4}": r"study\.space\.height\.step is 4, .* multiples of 8",
    "+study.space.height={low: 16, high: 32, log: true}": r"study\.space\.height\.log: .* multiples of 8",
    "+study.space.eta=[1, 1]": r"study\.space\.eta is \[1, 1\], .* two or more",
    "+study.space.edit_threshold.log=3": r"study\.space\.edit_threshold\.log is 3",
    "+study.space.edit_threshold.per_concept=true": r"study\.space\.edit_threshold\.per_concept: it is for",
    "+study.space.edit_warmup_steps={low: 0, high: 9}": r"study\.space\.edit_warmup_steps is 9, .* 4 steps",
    "+study.space.edit_warmup_steps={low: 0.5, high: 2}": r"study\.space\.edit_warmup_steps\.low is 0\.5",
    "+study.space.scheduler=[ddim, dimm]": r"study\.space\.scheduler",
    "+study.objectives.beauty=maximize": r"study\.objectives\.beauty: 'beauty' is no score",
    "+study.objectives.nsfw=minimize": r"study\.objectives\.nsfw: 'nsfw' is no score of this configuration",
    "+study.objectives.lpips=down": r"study\.objectives\.lpips is 'down': it is maximize or minimize",
    "study.constraints=['lpips = 3']": r"study\.constraints\[0\] is 'lpips = 3': write it as in",
    "study.constraints=['lpips <= 1e999']": r"study\.constraints\[0\] is 'lpips <= 1e999': write it as in",
    "study.constraints=['lipps <= 3']": r"study\.constraints\[0\]: 'lipps' is no score .*did you mean lpips",
    "study.sampler=tpee": r"study\.sampler is 'tpee': did you mean tpe\? there are random, tpe",
    "study.sampler=grid": r"study\.space\.edit_threshold: sampler=grid .* step",
    "study.storage='a\0b'": r"study\.storage is 'a\\x00b', with",
    "study.trials=0": r"study\.trials is 0",
    "study.min_resource=9": r"study\.min_resource is 9, but there are 4 prompts x seeds",
    "study.held_out.seeds=[1]": r"study\.held_out: 'a face' with seed 1 is searched with too",
    "study.held_out.seeds=x": r"study\.held_out\.seeds is 'x'",
    "study.storage=nosuch://db": r"study\.storage: cannot open this database",
    "+axes.edit_threshold=[0.5]": r"axes: a study has none",
    "concepts=[]": r"concepts: ",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_is_reported_before_a_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    refuse_to_load(monkeypatch)
    with pytest.raises(UserError, match=f"^{MISTAKES[word]}"):
        run_study(small_study(tmp_path, word))


def test_prompts_from_a_file_with_seeds_are_held_out_by_prompt(tmp_path: Path) -> None:
    files = [tmp_path / "searched.csv", tmp_path / "held_out.csv"]
    for file, prompt in zip(files, ("a face", "a man"), strict=True):
        file.write_text(f"prompt,seed\n{prompt},7\n")
    words = ("+prompt_file.columns.seed=seed", "study.min_resource=null", "study.held_out.seeds=[100]")
    words = (*words, f"prompts={files[0]}")
    with pytest.raises(
        UserError, match=r"^study\.held_out\.prompts: 'a face' with seed 7 .* so hold other prompts out"
    ):
        small_study(tmp_path, *words)
    held_out = small_study(tmp_path, *words, f"study.held_out.prompts={files[1]}").held_out
    assert held_out is not None
    assert held_out.blocks == (("a man", 7),)


def test_an_illegal_combination_of_two_settings_is_refused_among_many(tmp_path: Path) -> None:
    unit = "{low: 0, high: 1}"
    others = ("edit_weights", "edit_momentum_scale", "edit_mom_beta", "eta")
    words = [f"+study.space.{name}={unit}" for name in others]
    words += ["+study.space.num_inference_steps={low: 2, high: 4}"]
    small_study(tmp_path, *words, "+study.space.edit_warmup_steps={low: 0, high: 2}")
    with pytest.raises(UserError, match=r"^study\.space\.edit_warmup_steps is 4, but \w+ takes 2 steps"):
        small_study(tmp_path, *words, "+study.space.edit_warmup_steps={low: 0, high: 4}")


def test_height_is_searched_in_steps_of_8(tmp_path: Path) -> None:
    (*_, height) = small_study(tmp_path, "+study.space.height={low: 16, high: 40}").settings.space
    assert height.values() == (16, 24, 32, 40)


def test_a_huge_grid_is_refused_without_building_it(tmp_path: Path) -> None:
    steps = [f"+study.space.edit_{name}.step=1e-7" for name in ("threshold", "guidance_scale")]
    with pytest.raises(UserError, match=r"^study\.sampler is grid, .* 640,\d+,\d+,\d+,\d+ settings"):
        small_study(tmp_path, "study.sampler=grid", *steps)


def test_a_folder_of_another_study_or_of_a_sweep_is_refused(tmp_path: Path) -> None:
    run_study(small_study(tmp_path, "study.trials=4"))
    for words, key in (
        (["study.space.edit_threshold.high=0.8"], "study.space"),
        (["study.sampler=random"], "study.sampler"),
        (["seeds=3"], "prompts or seeds"),
        (["+study.objectives.ssim=maximize"], "study.objectives"),
        (["method=composable"], "method"),
        (["replay=a dog"], "replay"),
        (["concepts=[{text: glasses, edit_warmup_steps: 2}, smile]"], "edit_warmup_steps"),
    ):
        with pytest.raises(UserError, match=f"^{key}: this folder holds a study of another"):
            run_study(small_study(tmp_path, *words))
    with pytest.raises(UserError, match="it was a study and is a sweep"):
        jobs.prepare(planner.plan(compose(*overrides(tmp_path))))
    with pytest.raises(UserError, match=r"study: there is no study\.space"):
        planner.plan(compose(*overrides(tmp_path), "study.trials=3"))


def test_trials_are_stored_in_a_database_whose_url_stays_secret(tmp_path: Path) -> None:
    words = ("study.trials=4", f"study.storage=sqlite:///{tmp_path}/secret.db")
    first = trial_values(run_study(small_study(tmp_path, *words)))
    assert trial_values(run_study(small_study(tmp_path, *words))) == first
    assert not store(tmp_path).study_journal.exists()
    for path in store(tmp_path).root.rglob("*.json"):
        assert "secret" not in path.read_text()


def test_failed_cells_fail_only_their_own_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, lambda cell: any(edit.edit_guidance_scale < 3 for edit in cell.edits))
    answers = run_study(small_study(tmp_path))
    failed = [row for row in store(tmp_path).rows()[0] if row["status"] == "failed"]
    assert failed
    assert len(answers.trials) + len({tuple(row["edit_threshold"]) for row in failed}) == 8
    assert all(trial.params["edit_guidance_scale"] >= 3 for trial in answers.trials)


AT_ONCE = ("study.trials=4", "study.min_resource=null")


def test_a_trial_with_a_few_failed_cells_is_judged_by_its_other_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is compared with the baseline on the same blocks, and on all blocks after a successful retry."""
    whole = run_study(small_study(tmp_path / "whole", *AT_ONCE))
    with monkeypatch.context() as patched:
        poison(patched, lambda cell: (cell.prompt, cell.seed) == ("a man", 1) and edits_weakly(cell))
        answers = run_study(small_study(tmp_path, *AT_ONCE))
    assert [trial for trial, _ in trial_values(answers)] == [trial for trial, _ in trial_values(whole)]
    weak = [i for i, trial in enumerate(answers.trials) if trial.params["edit_guidance_scale"] < WEAK]
    assert [failure.trial.number for failure in answers.failures if failure.trial] == weak != []
    scores = Scores(answers.study, {row["key"]: row for row in store(tmp_path / "whole").rows()[0]})
    names = ("clip_concept_delta", "lpips")
    base_BS = scores.by_block(BASELINE, names, 4)
    for i, (trial, estimates) in enumerate(trial_values(answers)):
        own_BS = scores.by_block(trial.params, names, 4)
        blocks = slice(3 if i in weak else 4)  # ("a man", 1) is the last
        expected = base_BS.mean(axis=0) + (own_BS - base_BS)[blocks].mean(axis=0)
        assert estimates == pytest.approx(expected.tolist(), abs=1e-12)
    (sentence, *_) = [line for line in advice(answers) if line.startswith(f"Trial {weak[0]} ")]
    assert "failed on 1 of 4 prompts x seeds (ValueError: the model choked)" in sentence
    assert "judged by the others; retry_failed=true" in sentence
    retried = run_study(small_study(tmp_path, *AT_ONCE, "retry_failed=true"))
    assert trial_values(retried) == trial_values(whole)
    assert retried.failures == ()


def test_a_failed_trial_counts_after_a_successful_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_study(small_study(tmp_path / "whole", *AT_ONCE))
    with monkeypatch.context() as patched:
        poison(patched, lambda cell: (cell.prompt, cell.seed) == ("a man", 1) or edits_weakly(cell))
        answers = run_study(small_study(tmp_path, *AT_ONCE))
        again = run_study(small_study(tmp_path, *AT_ONCE, "retry_failed=true"))
    assert len(answers.trials) < 4
    assert trial_values(again) == trial_values(answers)
    text = "\n".join(advice(answers))
    assert "The baseline failed on 1 of 4" in text
    assert "it is excluded" in text
    # Without retry_failed, failed cells stay failed.
    assert trial_values(run_study(small_study(tmp_path, *AT_ONCE))) == trial_values(answers)
    retried = run_study(small_study(tmp_path, *AT_ONCE, "retry_failed=true"))
    assert trial_values(retried) == trial_values(whole)
    assert trial_values(run_study(small_study(tmp_path, *AT_ONCE))) == trial_values(whole)
    longer = run_study(small_study(tmp_path, *AT_ONCE, "study.trials=6"))
    assert [trial.number for trial in longer.trials] == [0, 1, 2, 3, 4, 5]


WEAK = 5.0


def edits_weakly(cell: Cell) -> bool:
    return any(edit.edit_guidance_scale < WEAK for edit in cell.edits)


@pytest.mark.parametrize("name", options("study"))
def test_headers_of_shipped_studies_state_their_trials_and_blocks(name: str) -> None:
    header = (CONF_DIR / "study" / f"{name}.yaml").read_text()
    stated = re.search(r"# Trials: (\d+), on (\d+) to (\d+) .+ on 2 CPU cores", header)
    assert stated is not None
    study = resolve(compose(f"+study={name}"))
    counts = (study.settings.trials, study.min_resource, len(study.blocks))
    assert tuple(map(int, stated.groups())) == counts
    assert study.held_out is not None

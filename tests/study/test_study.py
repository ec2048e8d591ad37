"""Studies from their first trial to their answers, on stand-ins for the networks."""

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
from support.doom import Doom
from support.small_sweep import overrides, poison, refuse_to_load
from support.stub_sweep import fake_networks
from support.study_runs import SPACE, conduct, store, study, told, written

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
from sega_bench.study.answers import Answers, Best
from sega_bench.study.optuna_study import Asking
from sega_bench.study.scoring import Scores
from sega_bench.study.settings import SAMPLERS
from sega_bench.study.trials import BASELINE, Trial, resolve
from sega_bench.tracking import headline


def test_every_trial_sees_the_same_prompts_and_seeds_in_the_same_order(tmp_path: Path) -> None:
    made = study(tmp_path)
    found = conduct(made)
    assert made.blocks == (("a face", 0), ("a man", 0), ("a face", 1), ("a man", 1))
    stored = {row["key"]: (row["prompt"], row["seed"]) for row in store(tmp_path).rows()[0]}
    assert [trial.number for trial in found.trials] == list(range(8))
    assert {trial.resource for trial in found.trials} <= {2, 4}
    for trial in found.trials:
        seen = {stored[cell.key] for cell in made.cells(trial.params) if cell.key in stored}
        assert seen == set(made.blocks[: trial.resource])


def test_the_baseline_is_the_first_trial_where_it_lies_in_the_space(tmp_path: Path) -> None:
    """And is given all blocks, where its cells are anyway; what is best is never worse."""
    made = study(tmp_path, "edit.edit_threshold=0.4")
    found = conduct(made)
    first = found.trials[0]
    assert first.params == made.start == {"edit_threshold": 0.4, "edit_guidance_scale": 5.0}
    assert made.cells(first.params) == made.cells(BASELINE)
    assert first.resource == len(made.blocks)
    baseline, best = found.estimates_TK[0], [one.mean for one in found.best[0].scores]
    assert best[0] >= baseline[0] - 0.01 * abs(baseline[0])
    assert best[1] <= baseline[1] + 0.01 * abs(baseline[1])
    assert study(tmp_path, "edit.edit_threshold=0.95").start is None
    assert study(tmp_path, "edit.edit_threshold=[0.2,0.4]", "concepts=[[glasses, smile]]").start is None
    own = ("concepts=[[glasses, smile]]", "+study.space.edit_threshold.per_concept=true")
    start = study(tmp_path, *own, "edit.edit_threshold=[0.2,0.4]").start
    assert start == {"edit_threshold_1": 0.2, "edit_threshold_2": 0.4, "edit_guidance_scale": 5.0}
    stepped = "+study.space.edit_threshold.step=0.3"
    assert study(tmp_path, stepped, "edit.edit_threshold=0.7").start is not None
    assert study(tmp_path, stepped, "edit.edit_threshold=0.6").start is None


def test_references_are_made_once_and_networks_loaded_once(tmp_path: Path) -> None:
    conduct(study(tmp_path))
    rows = (store(tmp_path).records_dir / "0.jsonl").read_bytes().splitlines()
    keys = [json.loads(row)["key"] for row in rows]
    assert len(keys) == len(set(keys))
    assert sum(row["is_reference"] for row in store(tmp_path).rows()[0]) == 4


def test_the_same_command_makes_nothing_and_a_larger_one_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = told(conduct(study(tmp_path)))
    before = {row["key"] for row in store(tmp_path).rows()[0]}
    longer = told(conduct(study(tmp_path, "study.trials=12")))
    assert longer[:8] == first
    assert len(longer) == 12
    assert before < {row["key"] for row in store(tmp_path).rows()[0]}
    monkeypatch.setattr(runner.ImageGenerator, "generate", None)  # whatever would make a cell raises
    assert told(conduct(study(tmp_path, "study.trials=12"))) == longer
    at_once = told(conduct_elsewhere(tmp_path, monkeypatch))
    assert at_once == longer


def conduct_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.undo()
    return conduct(study(tmp_path / "at_once", "study.trials=12"))


def run_and_die(made, doom: Doom) -> int:  # type: ignore[no-untyped-def]
    """A study in a process of its own; its status as the system has it."""
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    try:
        doom.start()
        sys.addaudithook(doom.note)
        conduct(made)
    finally:
        os._exit(0)


def test_a_study_that_is_killed_comes_to_what_it_comes_to_undisturbed(tmp_path: Path) -> None:
    rng, words = Random(0), ("engine.wave_rows=6", "engine.threads=1")
    torch.set_num_threads(1)
    undisturbed = told(conduct(study(tmp_path / "undisturbed", *words)))
    died = 0
    made = study(tmp_path / "killed", *words)
    for _ in range(8):
        status = run_and_die(made, Doom(rng.randint(1, 400), rng.uniform(0, 0.01)))
        died += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert died >= 4
    found = conduct(made)
    assert [(trial.params, trial.resource, trial.state) for trial, _ in told(found)] == [
        (trial.params, trial.resource, trial.state) for trial, _ in undisturbed
    ]
    assert [values for _, values in told(found)] == [values for _, values in undisturbed]


def test_a_kill_while_a_batch_is_told_changes_no_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who goes on was decided for all of it, and whoever is left is told just that."""
    whole = told(conduct(study(tmp_path / "whole")))
    promoted, tell = halving.promoted, Asking.tell

    def die(asking: Asking, trial: Trial, *rest: object) -> None:
        if trial.number == 2:
            raise KeyboardInterrupt
        tell(asking, trial, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Asking, "tell", die)
    with pytest.raises(KeyboardInterrupt):
        conduct(study(tmp_path))
    monkeypatch.setattr(Asking, "tell", tell)
    decided: list[int] = []

    def counted(losses_TBK, candidates_T, *rest):  # type: ignore[no-untyped-def]
        decided.append(int(candidates_T.sum()))
        return promoted(losses_TBK, candidates_T, *rest)

    monkeypatch.setattr(halving, "promoted", counted)
    assert told(conduct(study(tmp_path))) == whole
    assert decided == [4]  # of the second batch alone


def test_a_trial_whose_asking_was_cut_off_is_not_taken_to_be_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("study.sampler=gp", "study.min_resource=null", "study.trials=10", "study.batch=5")
    whole = told(conduct(study(tmp_path / "whole", *words)))
    suggest = optuna.trial.Trial._suggest

    def die(trial: optuna.trial.Trial, *rest: Any) -> Any:
        if trial.number == 7:
            trial.relative_params  # noqa: B018  of which GP keeps a record
            raise KeyboardInterrupt
        return suggest(trial, *rest)

    monkeypatch.setattr(optuna.trial.Trial, "_suggest", die)
    with pytest.raises(KeyboardInterrupt):
        conduct(study(tmp_path, *words))
    monkeypatch.setattr(optuna.trial.Trial, "_suggest", suggest)
    assert told(conduct(study(tmp_path, *words))) == whole


def test_the_first_failed_cell_ends_a_study_and_no_trial_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("engine.wave_rows=4", "engine.threads=1", "study.min_resource=null")
    whole = told(conduct(study(tmp_path / "whole", *words)))
    victim = study(tmp_path).cells(whole[1][0].params)[-1]

    def poisoned(
        denoiser: Denoiser, waves: Iterable[Wave], batching: Batching, on: Callable[[int], None]
    ) -> Iterator[list[Outcome] | Exception]:
        for wave in waves:
            (made,) = run_waves(denoiser, [wave], batching, on)
            assert not isinstance(made, Exception)
            yield [replace(one, image_HWC=None, error="NaN") if one.cell == victim else one for one in made]

    with monkeypatch.context() as patch, fake_networks():
        patch.setattr(generator, "run_waves", poisoned)
        assert call(patch, *written(tmp_path, *words, "fail_fast=true")) == 1
    assert [row["key"] for row in store(tmp_path).rows()[0] if row["status"] == "failed"] == [victim.key]
    assert not (store(tmp_path).root / "answers").exists()
    assert told(conduct(study(tmp_path, *words, "retry_failed=true"))) == whole


def test_more_trials_are_refused_once_the_pictures_were_scored_anew(tmp_path: Path) -> None:
    """The sampler knows the old scores; what was found so far can be told by the new ones."""
    conduct(study(tmp_path))
    plan = store(tmp_path).read_plan()
    assert plan is not None
    plan["scores"]["lpips"]["weights"] = "others"
    store(tmp_path).write_plan(plan)
    assert len(conduct(study(tmp_path)).trials) == 8
    with pytest.raises(UserError, match=r"^study\.trials: .* by the old lpips: for more of them"):
        conduct(study(tmp_path, "study.trials=12"))


def test_what_a_kill_leaves_of_the_journal_is_cleared(tmp_path: Path) -> None:
    first = told(conduct(study(tmp_path, "study.trials=4")))
    journal = store(tmp_path).study_journal
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "worker_i')
    journal.with_name("journal.log.lock").symlink_to(journal)
    assert told(conduct(study(tmp_path, "study.trials=5")))[:4] == first
    assert journal.read_bytes().startswith(whole + b'{"op_code"')
    for line in journal.read_text().splitlines():
        json.loads(line)


def test_a_lost_journal_costs_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = told(conduct(study(tmp_path)))
    store(tmp_path).study_journal.unlink()
    monkeypatch.setattr(runner.ImageGenerator, "generate", None)
    assert told(conduct(study(tmp_path))) == first


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_sampler_asks_within_the_space(tmp_path: Path, sampler: str) -> None:
    words = ["+study.space.edit_warmup_steps={low: 0, high: 3}", "+study.space.method=[sega, composable]"]
    words += ["+study.space.edit_threshold={low: 0.1, high: 0.9, step: 0.4}"] * (sampler == "grid")
    words += ["+study.space.edit_guidance_scale={low: 3, high: 5, step: 2}"] * (sampler == "grid")
    made = study(tmp_path, f"study.sampler={sampler}", "study.trials=14", "study.batch=7", *words)
    asked = [trial.params for trial in conduct(made).trials]
    assert len(asked) == 14
    assert len({tuple(params.values()) for params in asked}) >= 13
    assert {params["edit_warmup_steps"] for params in asked} <= {0, 1, 2, 3}
    assert {params["method"] for params in asked} == {"sega", "composable"}
    assert all(0.1 <= params["edit_threshold"] <= 0.9 for params in asked)


def test_a_grid_is_asked_for_once_in_whole(tmp_path: Path) -> None:
    words = ["study.sampler=grid", "+study.space.edit_guidance_scale={low: 3, high: 5, step: 2}"]
    words += ["+study.space.edit_threshold={low: 0.1, high: 0.9, step: 0.4}", "study.trials=50"]
    conduct(study(tmp_path, *words, "study.trials=4"))
    asked = [tuple(trial.params.values()) for trial in conduct(study(tmp_path, *words)).trials]
    assert sorted(asked) == [(t, s) for t in (0.1, 0.5, 0.9) for s in (3, 5)]


def test_a_concept_of_several_may_have_its_own_value(tmp_path: Path) -> None:
    words = ["concepts=[[glasses, smile]]", "+study.space.edit_threshold.per_concept=true"]
    made = study(tmp_path, *words, "study.trials=4")
    for trial in conduct(made).trials:
        assert set(trial.params) == {"edit_threshold_1", "edit_threshold_2", "edit_guidance_scale"}
        for cell in made.cells(trial.params):
            if not cell.is_reference:
                own = [edit.edit_threshold for edit in cell.edits]
                assert own == [trial.params["edit_threshold_1"], trial.params["edit_threshold_2"]]


def test_what_violates_a_constraint_is_not_recommended(tmp_path: Path) -> None:
    free = conduct(study(tmp_path / "free", "study.min_resource=null"))
    costs = sorted(free.estimates_TK[:, 1])
    bound = float(costs[3] + costs[4]) / 2
    words = ("study.min_resource=null", f"study.constraints=['lpips <= {bound}']")
    kept = conduct(study(tmp_path / "kept", *words, "study.trials=4"))
    among = [trial.number for trial, (_, cost) in told(kept) if cost <= bound]
    assert set(kept.whole) == set(among)
    assert all(best.scores[1].mean <= bound for best in kept.best if best.concepts is None)
    none = conduct(study(tmp_path / "none", "study.constraints=['lpips <= -1']", "study.trials=4"))
    assert none.best == none.front == ()


def test_what_only_one_concept_keeps_is_recommended_for_that_concept(tmp_path: Path) -> None:
    free = study(tmp_path / "free", "study.min_resource=null")
    found = conduct(free)
    scores = Scores(free, {row["key"]: row for row in store(tmp_path / "free").rows()[0]})
    of = {
        concept: min(scores.estimates(t.params, ["lpips"], 4, concept)[0] for t in found.trials)
        for concept in (None, ("glasses",), ("smile",))
    }
    keeps, other = sorted((("glasses",), ("smile",)), key=of.__getitem__)
    bound = (of[keeps] + min(of[None], of[other])) / 2
    made = study(tmp_path / "bound", "study.min_resource=null", f"study.constraints=['lpips <= {bound}']")
    found = conduct(made)
    assert found.of_all is None
    assert [best.concepts for best in found.best] == [keeps]
    folder = store(tmp_path / "bound")
    answer_files.write(folder, found)
    place = 1 + made.baseline.concepts.index(keeps)
    assert [path.name for path in (folder.answers_dir / "sweep").iterdir()] == [f"small_best_{place}.yaml"]
    assert not pd.read_csv(folder.answers_dir / "trials.csv")["best"].any()
    assert "keeps lpips" in next(advice(found))
    summary = summarise(load(folder.root), list(made.plan(()).axes), folder.answers())
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
def test_what_is_recommended_is_what_the_table_marks(tmp_path: Path, space: list[str]) -> None:
    made = study(tmp_path, "study.sampler=grid", "study.min_resource=null", space=space)
    found = conduct(made)
    answer_files.write(store(tmp_path), found)
    frame = load(store(tmp_path).root)
    axes = [setting.name for setting in made.settings.space]
    summary = summarise(frame, axes, store(tmp_path).answers())
    (marked,) = summary.loc[summary["best"] & (summary["concepts"] == "all"), "lpips_mean"]
    keys = [cell.key for cell in made.cells(found.best[0].trial.params) if not cell.is_reference]
    assert marked == pytest.approx(frame.set_index("key").loc[keys, "lpips"].mean())


def test_a_scheduler_has_one_name(tmp_path: Path) -> None:
    made = study(tmp_path, space=["+study.space.scheduler=[euler,ddim,EulerDiscreteScheduler]"])
    assert made.settings.space[0].choices == ("EulerDiscreteScheduler", "DDIMScheduler")
    assert made.start == {"scheduler": made.baseline.cells[0].scheduler}


def test_lost_records_of_what_was_dropped_are_made_again(tmp_path: Path) -> None:
    made = study(tmp_path, "study.trials=16")
    found = conduct(made)
    dropped = next(trial for trial in found.trials if trial.resource == 2)
    lost = {cell.key for cell in made.cells(dropped.params) if not cell.is_reference}
    for path in store(tmp_path).records_dir.glob("*.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not any(key in line for key in lost)))
    again = conduct(study(tmp_path, "study.trials=16"))
    assert told(again) == told(found)
    assert again.curves == found.curves


def test_one_objective_has_one_best(tmp_path: Path) -> None:
    found = conduct(
        study(tmp_path, "+study.objectives.clip_concept_delta=maximize", "study.min_resource=null")
    )
    gains = found.estimates_TK[:, 0].tolist()
    assert found.front == (gains.index(max(gains)),)
    assert found.best[0].trial.number == gains.index(max(gains))


def test_what_was_found_is_tried_on_what_was_held_out(tmp_path: Path) -> None:
    found = conduct(study(tmp_path, "study.held_out.seeds=[7, 8, 9]"))
    assert [best.trial for best in found.held_out] == [best.trial for best in found.best]
    apart = {(row["prompt"], row["seed"]) for row in held_out_rows(tmp_path)}
    assert apart == {(prompt, seed) for prompt in ("a face", "a man") for seed in (7, 8, 9)}
    for best in found.held_out:
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


def test_the_command_leaves_sweeps_that_run_and_calls_that_are_diffusers(
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
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines()[:-8])) <= 100
    assert "held out" in said
    answers = store(tmp_path).answers_dir
    made = resolve(compose(*words, "sampling.height=16", "sampling.width=16"))
    best = json.loads((answers / "answers.json").read_text())["best"]
    for name, setting in zip(("small_best", "small_best_1", "small_best_2"), best, strict=True):
        sweep = planner.plan(
            compose(
                f"hydra.searchpath=['file://{answers}']",
                f"+sweep={name}",
                *[w for w in words if w[:5] in ("model", "score", "engin")],
            )
        )
        cells = set(made.cells(setting["params"]))
        assert set(sweep.edited) <= cells
        assert len(sweep.edited) == (4 if name == "small_best" else 2)
    calls = ast.parse((answers / "diffusers.py").read_text()).body
    assert len(calls) == 3
    given = {keyword.arg for keyword in calls[0].value.keywords}  # type: ignore[attr-defined]
    assert {"editing_prompt", "edit_threshold", "edit_mom_beta"} <= given
    assert not {"edit_cooldown_steps", "edit_weights"} & given  # the pipeline's own
    assert "held_out" in (store(tmp_path).report_dir / "data" / "sweep.js").read_text()
    told_to_wandb = headline.found(store(tmp_path).answers())
    assert {"study/lpips", "study/held_out/lpips", "study/edit_threshold"} <= set(told_to_wandb)
    assert told_to_wandb["study/edit_threshold"] == best[0]["params"]["edit_threshold"]
    refuse_to_load(monkeypatch)
    assert call(monkeypatch, *words, "sampling.height=16", "sampling.width=16") == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_dry_run_says_how_much_there_is_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in overrides(tmp_path) if not word.startswith("+axes")]
    refuse_to_load(monkeypatch)
    assert call(monkeypatch, *words, *SPACE, "study.trials=30", "study.min_resource=1", "dry_run=true") == 0
    said = capsys.readouterr().out
    assert "30, 63 together, by sampler tpe" in said
    assert "1, near the front up to 2" in said
    assert list(tmp_path.iterdir()) == []


def test_the_best_at_the_edge_of_its_space_is_told(tmp_path: Path) -> None:
    words = ("+study.objectives.clip_concept_delta=maximize", "study.sampler=grid", "study.min_resource=null")
    steps = ("+study.space.edit_guidance_scale.step=4", "+study.space.edit_threshold.step=0.8")
    found = conduct(study(tmp_path, *words, *steps))
    assert found.best[0].trial.params == {"edit_threshold": 0.1, "edit_guidance_scale": 9.0}
    said = "\n".join(advice(found))
    assert "move study.space.edit_guidance_scale.high beyond 9" in said
    assert "move study.space.edit_threshold.low beyond 0.1" in said
    assert "hold seeds out" in said


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
def test_an_edge_is_told_where_there_is_something_beyond(
    tmp_path: Path, space: str, best: float, advised: str
) -> None:
    made = study(tmp_path, space=[f"+study.space.{space}"])
    (setting,) = made.settings.space
    trial = Trial(0, {setting.name: best}, len(made.blocks), "told")
    nothing_known = (Estimate(np.nan, np.nan, np.nan, np.nan, 0),) * 2
    found = Answers(made, (), np.empty((0, 2)), (), (), (Best(None, trial, *[nothing_known] * 2),), (), ())
    said = [line for line in advice(found) if "edge" in line]
    assert [line.split(f"move study.space.{setting.name}.")[1] for line in said] == [
        f"{edge}, under another name=." for edge in ([advised] if advised else [])
    ]


def test_a_study_is_set_against_the_sweep_that_it_replaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study.sampler=grid", "+study.space.edit_guidance_scale={low: 3, high: 5, step: 2}"]
    words += ["+study.space.edit_threshold={low: 0.1, high: 0.9, step: 0.4}"]
    conduct(study(tmp_path, *words, "study.min_resource=null", "name=whole"))
    conduct(study(tmp_path, *words, "study.trials=2", "study.min_resource=1", "name=part"))
    conduct(study(tmp_path, *words, "study.trials=2", "seeds=1", "name=other"))
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
    "+study.objectives.nsfw=minimize": r"study\.objectives\.nsfw: 'nsfw' is no score that is taken here",
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
    "study.storage=nosuch://db": r"study\.storage: this database can't be had",
    "+axes.edit_threshold=[0.5]": r"axes: a study has none",
    "concepts=[]": r"concepts: ",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_is_one_line_before_a_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    refuse_to_load(monkeypatch)
    with pytest.raises(UserError, match=f"^{MISTAKES[word]}"):
        conduct(study(tmp_path, word))


def test_prompts_with_seeds_of_their_own_are_held_out_by_prompts(tmp_path: Path) -> None:
    files = [tmp_path / "searched.csv", tmp_path / "apart.csv"]
    for file, prompt in zip(files, ("a face", "a man"), strict=True):
        file.write_text(f"prompt,seed\n{prompt},7\n")
    words = ("+prompt_file.columns.seed=seed", "study.min_resource=null", "study.held_out.seeds=[100]")
    words = (*words, f"prompts={files[0]}")
    with pytest.raises(
        UserError, match=r"^study\.held_out\.prompts: 'a face' with seed 7 .* so hold other prompts out"
    ):
        study(tmp_path, *words)
    apart = study(tmp_path, *words, f"study.held_out.prompts={files[1]}").held_out
    assert apart is not None
    assert apart.blocks == (("a man", 7),)


def test_what_two_settings_may_not_be_together_is_told_however_many_there_are(tmp_path: Path) -> None:
    unit = "{low: 0, high: 1}"
    others = ("edit_weights", "edit_momentum_scale", "edit_mom_beta", "eta")
    words = [f"+study.space.{name}={unit}" for name in others]
    words += ["+study.space.num_inference_steps={low: 2, high: 4}"]
    study(tmp_path, *words, "+study.space.edit_warmup_steps={low: 0, high: 2}")
    with pytest.raises(UserError, match=r"^study\.space\.edit_warmup_steps is 4, but \w+ takes 2 steps"):
        study(tmp_path, *words, "+study.space.edit_warmup_steps={low: 0, high: 4}")


def test_sides_are_searched_in_steps_of_8(tmp_path: Path) -> None:
    (*_, height) = study(tmp_path, "+study.space.height={low: 16, high: 40}").settings.space
    assert height.values() == (16, 24, 32, 40)


def test_a_grid_that_nobody_could_run_is_refused_without_making_it(tmp_path: Path) -> None:
    steps = [f"+study.space.edit_{name}.step=1e-7" for name in ("threshold", "guidance_scale")]
    with pytest.raises(UserError, match=r"^study\.sampler is grid, .* 640,\d+,\d+,\d+,\d+ settings"):
        study(tmp_path, "study.sampler=grid", *steps)


def test_a_folder_of_another_study_or_of_a_sweep_is_refused(tmp_path: Path) -> None:
    conduct(study(tmp_path, "study.trials=4"))
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
            conduct(study(tmp_path, *words))
    with pytest.raises(UserError, match="it was a study and is a sweep"):
        jobs.prepare(planner.plan(compose(*overrides(tmp_path))))
    with pytest.raises(UserError, match=r"study: there is no study\.space"):
        planner.plan(compose(*overrides(tmp_path), "study.trials=3"))


def test_a_database_holds_trials_and_its_address_stays_secret(tmp_path: Path) -> None:
    words = ("study.trials=4", f"study.storage=sqlite:///{tmp_path}/secret.db")
    first = told(conduct(study(tmp_path, *words)))
    assert told(conduct(study(tmp_path, *words))) == first
    assert not store(tmp_path).study_journal.exists()
    for path in store(tmp_path).root.rglob("*.json"):
        assert "secret" not in path.read_text()


def test_failed_cells_fail_their_trial_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, lambda cell: any(edit.edit_guidance_scale < 3 for edit in cell.edits))
    found = conduct(study(tmp_path))
    failed = [row for row in store(tmp_path).rows()[0] if row["status"] == "failed"]
    assert failed
    assert len(found.trials) + len({tuple(row["edit_threshold"]) for row in failed}) == 8
    assert all(trial.params["edit_guidance_scale"] >= 3 for trial in found.trials)


AT_ONCE = ("study.trials=4", "study.min_resource=null")


def test_a_trial_with_a_few_failed_cells_is_judged_by_its_other_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the baseline on the same blocks; and by all of them once what failed was made."""
    whole = conduct(study(tmp_path / "whole", *AT_ONCE))
    with monkeypatch.context() as patched:
        poison(patched, lambda cell: (cell.prompt, cell.seed) == ("a man", 1) and edits_weakly(cell))
        found = conduct(study(tmp_path, *AT_ONCE))
    assert [trial for trial, _ in told(found)] == [trial for trial, _ in told(whole)]
    weak = [i for i, trial in enumerate(found.trials) if trial.params["edit_guidance_scale"] < WEAK]
    assert [one.trial.number for one in found.failures if one.trial] == weak != []
    scores = Scores(found.study, {row["key"]: row for row in store(tmp_path / "whole").rows()[0]})
    names = ("clip_concept_delta", "lpips")
    base_BS = scores.by_block(BASELINE, names, 4)
    for i, (trial, estimates) in enumerate(told(found)):
        own_BS = scores.by_block(trial.params, names, 4)
        blocks = slice(3 if i in weak else 4)  # ("a man", 1) is the last
        expected = base_BS.mean(axis=0) + (own_BS - base_BS)[blocks].mean(axis=0)
        assert estimates == pytest.approx(expected.tolist(), abs=1e-12)
    (said, *_) = [line for line in advice(found) if line.startswith(f"Trial {weak[0]} ")]
    assert "failed on 1 of 4 prompts x seeds (ValueError: the model choked)" in said
    assert "judged by the others; retry_failed=true" in said
    mended = conduct(study(tmp_path, *AT_ONCE, "retry_failed=true"))
    assert told(mended) == told(whole)
    assert mended.failures == ()


def test_a_failed_trial_that_is_tried_again_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = conduct(study(tmp_path / "whole", *AT_ONCE))
    with monkeypatch.context() as patched:
        poison(patched, lambda cell: (cell.prompt, cell.seed) == ("a man", 1) or edits_weakly(cell))
        found = conduct(study(tmp_path, *AT_ONCE))
        again = conduct(study(tmp_path, *AT_ONCE, "retry_failed=true"))
    assert len(found.trials) < 4
    assert told(again) == told(found)
    said = "\n".join(advice(found))
    assert "The baseline failed on 1 of 4" in said
    assert "it counts for nothing" in said
    assert told(conduct(study(tmp_path, *AT_ONCE))) == told(
        found
    )  # what failed stays so until it is asked for
    mended = conduct(study(tmp_path, *AT_ONCE, "retry_failed=true"))
    assert told(mended) == told(whole)
    assert told(conduct(study(tmp_path, *AT_ONCE))) == told(whole)
    longer = conduct(study(tmp_path, *AT_ONCE, "study.trials=6"))
    assert [trial.number for trial in longer.trials] == [0, 1, 2, 3, 4, 5]


WEAK = 5.0


def edits_weakly(cell: Cell) -> bool:
    return any(edit.edit_guidance_scale < WEAK for edit in cell.edits)


@pytest.mark.parametrize("name", options("study"))
def test_headers_of_shipped_studies_tell_the_truth(name: str) -> None:
    header = (CONF_DIR / "study" / f"{name}.yaml").read_text()
    stated = re.search(r"# Trials: (\d+), on (\d+) to (\d+) .+ on 2 CPU cores", header)
    assert stated is not None
    made = resolve(compose(f"+study={name}"))
    counts = (made.settings.trials, made.first_resource, len(made.blocks))
    assert tuple(map(int, stated.groups())) == counts
    assert made.held_out is not None

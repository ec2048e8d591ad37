"""Writes a study's answers: answers.json, tables, and each best setting as a sweep and a diffusers call."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from sega_bench.analysis.table_files import inert
from sega_bench.errors import clean
from sega_bench.sega.pipeline_arguments import diffusers_arguments
from sega_bench.stats.intervals import Estimate
from sega_bench.store import Store
from sega_bench.study.advice import advice
from sega_bench.study.answers import Answers, ScoredTrial
from sega_bench.study.format import verdict
from sega_bench.study.scoring import concept_set
from sega_bench.study.trials import Study

_COPIED = ("prompts", "prompt_file", "negative_prompt", "seeds", "concepts", "method", "replay")
"""Keys of the study's configuration that a best setting's sweep repeats."""


def write(store: Store, answers: Answers) -> dict[str, Path]:
    """Write the ``answers`` folder.

    Returns:
        Paths by label, for the terminal.
    """
    folder, study = store.answers_dir, answers.study
    for file, table in _tables(answers):
        # Quoted and inert, so that a searched prompt does not become a formula in a spreadsheet.
        text = inert(table).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        store.write_text(folder / file, text)
    for best in answers.best:
        suffix = "" if best.concepts is None else f"_{1 + study.baseline.concepts.index(best.concepts)}"
        title = f"{study.config.name}_best{suffix}"
        store.write_text(folder / "sweep" / f"{title}.yaml", sweep_yaml(study, best, title, folder))
    store.write_answers(_payload(answers))
    calls = "\n\n".join(diffusers_call(study, best) for best in answers.best)
    store.write_text(folder / "diffusers.py", calls + "\n")
    return {"trials": folder / "trials.csv", "best sweeps": folder / "sweep"}


def _payload(answers: Answers) -> dict[str, Any]:
    """The contents of answers.json."""
    return {
        "concepts": list(map(list, answers.study.baseline.concepts)),
        "best": [_best_payload(answers, i) for i in range(len(answers.best))],
        "importance": [asdict(curve) for curve in answers.curves],
        "cost": {"unet_evals": answers.evaluations, "hypervolume": answers.hypervolumes},
        "advice": list(advice(answers)),
    }


def _best_payload(answers: Answers, index: int) -> dict[str, Any]:
    """One best setting, with its searched and held-out scores."""
    study, best = answers.study, answers.best[index]
    phases = {"searched": best} | ({"held_out": answers.held_out[index]} if answers.held_out else {})
    return {
        "concepts": None if best.concepts is None else list(best.concepts),
        "trial": best.trial.number,
        "params": dict(best.trial.params),
        "settings": study.resolved_point(best.trial.params),
        "verdict": verdict(study, best, phases.get("held_out")),
        **{phase: _scores_payload(study, scored) for phase, scored in phases.items()},
    }


def _scores_payload(study: Study, scored: ScoredTrial) -> dict[str, Any]:
    return {
        objective.name: {"score": _estimate_payload(score), "over_baseline": _estimate_payload(over)}
        for objective, score, over in zip(
            study.settings.objectives, scored.scores, scored.over_baseline, strict=True
        )
    }


def _estimate_payload(estimate: Estimate) -> dict[str, float | None]:
    """Mean, interval and n; null where unknown, because JSON has no NaN."""
    numbers = {name: value for name, value in asdict(estimate).items() if name != "sd"}
    return {name: value if np.isfinite(value) else None for name, value in numbers.items()}


def _tables(answers: Answers) -> Iterator[tuple[str, pd.DataFrame]]:
    yield "trials.csv", trials_table(answers)
    yield "hypervolume.csv", hypervolume_table(answers)
    yield "importance.csv", importance_table(answers)


def trials_table(answers: Answers) -> pd.DataFrame:
    """One row per complete trial: blocks, parameters, objectives estimated for all blocks, and marks."""
    failed = {
        failure.trial.number: failure.blocks for failure in answers.failures if failure.trial is not None
    }
    names = [objective.name for objective in answers.study.settings.objectives]
    return pd.DataFrame(
        [
            {
                "trial": trial.number,
                "blocks": trial.resource,
                "failed_blocks": failed.get(trial.number, 0),
                **trial.params,
                **dict(zip(names, estimates_K, strict=True)),
                "feasible": trial.number in answers.feasible,
                "pareto": trial.number in answers.front,
                "best": trial.number == answers.best_number,
            }
            for trial, estimates_K in zip(answers.trials, answers.estimates_TK.tolist(), strict=True)
        ]
    )


def hypervolume_table(answers: Answers) -> pd.DataFrame:
    """One row per trial: UNet evaluations and hypervolume of the search up to and including it."""
    columns = {"trial": [trial.number for trial in answers.trials], "unet_evals": answers.evaluations}
    return pd.DataFrame(columns | {"hypervolume": answers.hypervolumes})


def importance_table(answers: Answers) -> pd.DataFrame:
    """One row per value of each curve."""
    columns = ["setting", "objective", "importance", "value", "mean"]
    rows = [
        (curve.parameter, curve.objective, curve.importance, value, mean)
        for curve in answers.curves
        for value, mean in zip(curve.values, curve.means, strict=True)
    ]
    return pd.DataFrame(rows, columns=columns)


def sweep_yaml(study: Study, best: ScoredTrial, title: str, folder: Path) -> str:
    """A best setting as a file for conf/sweep: the search space fixed to it, all else as in the study."""
    config = study.config
    scope = "all concepts together" if best.concepts is None else f"{', '.join(best.concepts)} alone"
    header = [
        "# @package _global_",
        f"# The best of {config.name} for {clean(scope)}: trial {best.trial.number}.",
        f"# Run: python -m sega_bench --config-dir {clean(str(folder))} +sweep={title}",
    ]
    content: dict[str, Any] = {"name": title, "description": f"The best of {config.name} for {scope}."}
    content |= {name: value for name, value in asdict(config).items() if name in _COPIED}
    if best.concepts is not None:
        content["concepts"] = [config.concepts[study.baseline.concepts.index(best.concepts)]]
    content |= {"sampling": asdict(config.sampling), "edit": asdict(config.edit)}
    content["zip"] = {name: [value] for name, value in study.point(best.trial.params).items()}
    text: str = yaml.safe_dump(
        _escape_interpolations(content), sort_keys=False, allow_unicode=True, width=100
    )
    return "\n".join(header) + "\n" + text


def _escape_interpolations(value: Any) -> Any:
    """Escape OmegaConf's ``${``, which in a composed configuration can only be literal text."""
    if isinstance(value, dict):
        return {name: _escape_interpolations(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_escape_interpolations(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


_PIPELINE_DEFAULTS: dict[str, Any] = {
    "edit_cooldown_steps": None,
    "edit_weights": 1.0,
    "reverse_editing_direction": False,
}
"""Values that diffusers' pipeline uses for omitted arguments."""


def diffusers_call(study: Study, best: ScoredTrial) -> str:
    """A best setting as a call of diffusers' pipeline, or of :mod:`sega_bench.sega.pipeline`'s."""
    cells = study.cells(best.trial.params)
    cell = next(c for c in cells if not c.is_reference and best.concepts in (None, concept_set(c)))
    default_edits = tuple(replace(edit, **_PIPELINE_DEFAULTS) for edit in cell.edits)
    defaults = diffusers_arguments(replace(cell, edits=default_edits))
    arguments = "".join(
        f"    {name}={value!r},\n"
        for name, value in diffusers_arguments(cell).items()
        if name not in _PIPELINE_DEFAULTS or value != defaults[name]
    )
    generator = f"    generator=torch.Generator().manual_seed({cell.seed}),\n"
    scope = "all concepts together" if best.concepts is None else ", ".join(best.concepts)
    return f"# {clean(scope)}: trial {best.trial.number}\nout = pipe(\n{arguments}{generator})"

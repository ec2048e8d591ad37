"""What a study found, as files: sweeps that run, diffusers calls, tables."""

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
from sega_bench.study.answers import Answers, Best
from sega_bench.study.format import verdict
from sega_bench.study.scoring import texts
from sega_bench.study.trials import Study

_SWEPT = ("prompts", "prompt_file", "negative_prompt", "seeds", "concepts", "method", "replay")


def write(store: Store, found: Answers) -> dict[str, Path]:
    """Write answers/: answers.json, the tables, and of each best setting a sweep and a diffusers call.

    Returns:
        Where they are, by what they are called.
    """
    folder, name = store.answers_dir, found.study.config.name
    for file, table in _tables(found):
        text = inert(table).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        store.write_text(folder / file, text)
    for best in found.best:
        of = "" if best.concepts is None else f"_{1 + found.study.baseline.concepts.index(best.concepts)}"
        title = f"{name}_best{of}"
        store.write_text(folder / "sweep" / f"{title}.yaml", sweep(found.study, best, title, folder))
    told = {
        "concepts": list(map(list, found.study.baseline.concepts)),
        "best": [_plain(found, i) for i in range(len(found.best))],
        "importance": [asdict(curve) for curve in found.curves],
        "cost": {"unet_evals": found.evaluations, "hypervolume": found.volumes},
        "advice": list(advice(found)),
    }
    store.write_answers(told)
    calls = "\n\n".join(diffusers_call(found.study, best) for best in found.best)
    store.write_text(folder / "diffusers.py", calls + "\n")
    return {"trials": folder / "trials.csv", "best sweeps": folder / "sweep"}


def _tables(found: Answers) -> Iterator[tuple[str, pd.DataFrame]]:
    yield "trials.csv", trials(found)
    yield "hypervolume.csv", volumes(found)
    columns = ["setting", "objective", "importance", "value", "mean"]
    rows = [
        (curve.parameter, curve.objective, curve.importance, value, mean)
        for curve in found.curves
        for value, mean in zip(curve.values, curve.means, strict=True)
    ]
    yield "importance.csv", pd.DataFrame(rows, columns=columns)


def _plain(found: Answers, place: int) -> dict[str, Any]:
    """One of the best settings as JSON has it, with what it scored where it was searched and held out."""
    best = found.best[place]
    where = {"searched": best} | ({"held_out": found.held_out[place]} if found.held_out else {})
    names = [one.name for one in found.study.settings.objectives]
    scores = {
        word: {
            name: {"score": _numbers(one.scores[k]), "over_baseline": _numbers(one.over_baseline[k])}
            for k, name in enumerate(names)
        }
        for word, one in where.items()
    }
    concepts = None if best.concepts is None else list(best.concepts)
    return {
        "concepts": concepts,
        "trial": best.trial.number,
        "params": dict(best.trial.params),
        "settings": found.study.resolved(best.trial.params),
        "verdict": verdict(found.study, best, where.get("held_out")),
        **scores,
    }


def _numbers(estimate: Estimate) -> dict[str, float | None]:
    """Mean, interval and n; null what is not known."""
    known = {name: value for name, value in asdict(estimate).items() if name != "sd"}
    return {name: value if np.isfinite(value) else None for name, value in known.items()}


def trials(found: Answers) -> pd.DataFrame:
    """One row a trial that was told: blocks, values, objectives as estimated of all blocks, and marks."""
    best = found.recommended
    failed = {one.trial.number: one.blocks for one in found.failures if one.trial is not None}
    names = [one.name for one in found.study.settings.objectives]
    return pd.DataFrame(
        [
            {
                "trial": trial.number,
                "blocks": trial.resource,
                "failed_blocks": failed.get(trial.number, 0),
                **trial.params,
            }
            | dict(zip(names, estimates_K, strict=True))
            | {"feasible": trial.number in found.whole, "pareto": trial.number in found.front}
            | {"best": trial.number == best}
            for trial, estimates_K in zip(found.trials, found.estimates_TK.tolist(), strict=True)
        ]
    )


def volumes(found: Answers) -> pd.DataFrame:
    """What was found at which cost: a row a trial, with UNet evaluations and hypervolume up to it."""
    columns = {"trial": [t.number for t in found.trials], "unet_evals": found.evaluations}
    return pd.DataFrame(columns | {"hypervolume": found.volumes})


def sweep(study: Study, best: Best, title: str, folder: Path) -> str:
    """A best setting as a file of conf/sweep, with what is searched fixed and all else as it was."""
    config = study.config
    of = "all concepts together" if best.concepts is None else f"{', '.join(best.concepts)} alone"
    head = [
        "# @package _global_",
        f"# The best of {config.name} for {clean(of)}: trial {best.trial.number}.",
        f"# Run: python -m sega_bench --config-dir {clean(str(folder))} +sweep={title}",
    ]
    content: dict[str, Any] = {"name": title, "description": f"The best of {config.name} for {of}."}
    content |= {name: value for name, value in asdict(config).items() if name in _SWEPT}
    if best.concepts is not None:
        content["concepts"] = [config.concepts[study.baseline.concepts.index(best.concepts)]]
    content |= {"sampling": asdict(config.sampling), "edit": asdict(config.edit)}
    content["zip"] = {name: [value] for name, value in study.point(best.trial.params).items()}
    text: str = yaml.safe_dump(_escaped(content), sort_keys=False, allow_unicode=True, width=100)
    return "\n".join(head) + "\n" + text


def _escaped(value: Any) -> Any:
    """Without interpolations: what stands in a file is what was meant."""
    if isinstance(value, dict):
        return {name: _escaped(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


_PLAIN: dict[str, Any] = {
    "edit_cooldown_steps": None,
    "edit_weights": 1.0,
    "reverse_editing_direction": False,
}
"""What the pipeline does where it is told nothing."""


def diffusers_call(study: Study, best: Best) -> str:
    """A best setting as a call of diffusers' pipeline, or of the one in :mod:`sega_bench.sega.pipeline`."""
    cells = study.cells(best.trial.params)
    cell = next(c for c in cells if not c.is_reference and best.concepts in (None, texts(c)))
    plain = diffusers_arguments(replace(cell, edits=tuple(replace(edit, **_PLAIN) for edit in cell.edits)))
    arguments = "".join(
        f"    {name}={value!r},\n"
        for name, value in diffusers_arguments(cell).items()
        if name not in _PLAIN or value != plain[name]
    )
    generator = f"    generator=torch.Generator().manual_seed({cell.seed}),\n"
    of = "all concepts together" if best.concepts is None else ", ".join(best.concepts)
    return f"# {clean(of)}: trial {best.trial.number}\nout = pipe(\n{arguments}{generator})"

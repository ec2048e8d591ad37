"""plan.json: its content, and whether a new plan continues the sweep that it describes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from sega_bench import version
from sega_bench.cell import abbreviated
from sega_bench.config import Config, to_dict
from sega_bench.errors import UserError
from sega_bench.planning.planner import Plan
from sega_bench.scores import ScoreSettings
from sega_bench.store import PLAN_VERSION

_EXTENDABLE = (
    "prompts",
    "prompt_file",
    "concepts",
    "seeds",
    "method",
    "replay",
    "axes",
    "zip",
    "study",
    "verdict",
)
_OPERATIONAL = (
    "name",
    "description",
    "engine",
    "wandb",
    "launch",
    "output_dir",
    "dry_run",
    "retry_failed",
    "fail_fast",
)
_BITWISE_NEUTRAL = ("wave_rows",)
"""Engine entries of plan.json that do not affect a single bit of an image."""

_SCORE_BATCH_SIZE = "scores.batch_size"
"""Operational, unlike the other settings of its section."""

SCORE_PATHS = ("clip_model", "clip_pretrained", "dino")
"""Score settings that may be local paths, of which plan.json has only the last part."""

_PACKAGES = ("torch", "diffusers", "transformers", "open-clip-torch", "lpips", "numpy", "pillow")


def document(plan: Plan, engine: Mapping[str, Any], scores: Mapping[str, Any]) -> dict[str, Any]:
    """The content of plan.json.

    Args:
        plan: the plan.
        engine: resolved batch sizes and device, which a resume reuses.
        scores: backbone, weights id and preprocessing of every score.
    """
    return _requested(plan) | {
        "engine": dict(engine),
        "scores": dict(scores),
        "versions": versions(),
        "code_version": version.__version__,
    }


def updated(plan: Plan, stored: Mapping[str, Any]) -> dict[str, Any]:
    """plan.json for a plan whose cells all exist already: the stored engine, scores and versions stay."""
    return {**stored, **_requested(plan)}


def with_scores(
    stored: Mapping[str, Any], settings: ScoreSettings, scores: Mapping[str, Any]
) -> dict[str, Any]:
    """plan.json of a sweep whose images were rescored; only the scores' settings and provenance change."""
    new_settings = {**stored["settings"], "scores": _portable_scores(asdict(settings))}
    return {**stored, "settings": new_settings, "scores": dict(scores)}


def is_outdated(plan: Plan, stored: Mapping[str, Any]) -> bool:
    """Whether plan.json describes another plan, operational settings aside."""
    return _result_settings(updated(plan, stored)) != _result_settings(stored)


def _result_settings(document: Mapping[str, Any]) -> str:
    """The part of plan.json that determines the results, as JSON, because dicts compare without order."""
    settings = {
        name: value for name, value in _flatten(document.get("settings", {})) if not _is_operational(name)
    }
    return json.dumps({**document, "settings": settings})


def _is_operational(key: str) -> bool:
    return key.partition(".")[0] in _OPERATIONAL or key == _SCORE_BATCH_SIZE


def _requested(plan: Plan) -> dict[str, Any]:
    return {
        "plan_version": PLAN_VERSION,
        "name": plan.name,
        "description": plan.config.description,
        "settings": _portable_settings(plan.config),
        "model": {
            "id": plan.model.id,
            "name": plan.config.model.name,
            "path": _portable(plan.config.model.path),
        },
        "axes": dict(plan.axes),
        "prompts": list(plan.prompts),
        "concepts": [list(concept_set) for concept_set in plan.concepts],
        "seeds": list(plan.seeds),
        "counts": plan.counts(),
        "keys": [cell.key for cell in plan.cells],
    }


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that affect images or scores."""
    return {"sega_bench": version.__version__} | {name: metadata.version(name) for name in _PACKAGES}


def environment_changes(stored: Mapping[str, Any], engine: Mapping[str, Any], config: Config) -> list[str]:
    """Describe changes since the stored plan that can alter the last digits of an image or a score."""
    batch_size = stored.get("settings", {}).get("scores", {}).get("batch_size")
    before = {**stored.get("engine", {}), **stored.get("versions", {}), _SCORE_BATCH_SIZE: batch_size}
    now = {**engine, **versions(), _SCORE_BATCH_SIZE: config.scores.batch_size}
    return [
        f"{name} is {value} and was {before[name]}"
        for name, value in now.items()
        if name not in _BITWISE_NEUTRAL and before.get(name) not in (None, value)
    ]


def check_same_sweep(plan: Plan, stored: Mapping[str, Any]) -> None:
    """Refuse to mix two sweeps in one folder.

    Prompts, concepts, seeds, method, replay, axes and zip may change. A study compares its own settings with
    study.json.

    Raises:
        UserError: another setting differs from the stored plan's.
    """
    before = dict(_flatten(stored.get("settings", {})))
    differences = [
        f"{key} was {abbreviated(before.get(key))} and is {abbreviated(value)}"
        for key, value in _flatten(_portable_settings(plan.config))
        if key.partition(".")[0] not in (*_EXTENDABLE, "model")
        and not _is_operational(key)
        and before.get(key) != value
    ]
    model_id = stored.get("model", {}).get("id", "")
    if model_id.rpartition("@")[2] != plan.model.id.rpartition("@")[2]:  # the hash: a model may be renamed
        differences.append(f"the model was {model_id} and is {plan.model.id}")
    was_study = bool(stored.get("settings", {}).get("study", {}).get("space"))
    if was_study != bool(plan.config.study.space):
        kinds = ("a sweep", "a study")
        differences.append(f"it was {kinds[was_study]} and is {kinds[not was_study]}")
    checker = plan.config.model.safety_checker  # not part of the model's id, but it fills a column
    if bool(before.get("model.safety_checker")) != checker:
        differences.append(f"model.safety_checker was {not checker} and is {checker}")
    dtype = stored.get("engine", {}).get("dtype")
    if dtype != plan.cells[0].dtype:
        differences.append(f"engine.dtype was {dtype} and is {plan.cells[0].dtype}")
    if differences:
        raise UserError(
            f"name={plan.config.name}: this folder holds another sweep ({'; '.join(differences)}): "
            "give this one another name=..., or the old settings"
        )


def check_same_scores(scores: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Refuse to mix scores of different weights or preprocessing in one column.

    Raises:
        UserError: a score's provenance differs from the stored one.
    """
    for name, before in stored.get("scores", {}).items():
        if scores.get(name) != before:
            raise UserError(
                f"scores: {name} was {before} in this folder and is {scores.get(name)}: "
                "give this sweep another name=..., or the old weights"
            )


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _portable_settings(config: Config) -> dict[str, Any]:
    """The configuration without local paths and without the keys of where and how a sweep runs."""
    settings = to_dict(config)
    settings["model"] = _portable_model(settings["model"])
    if isinstance(config.prompts, str):  # a file, whose prompts the plan has in full
        settings["prompts"] = Path(config.prompts).name
    settings["scores"] = _portable_scores(settings["scores"])
    for key in ("output_dir", "launch"):
        del settings[key]
    if config.study.space:
        del settings["study"]["storage"]  # a database URL may contain a password
    else:
        del settings["study"]
    return settings


def _portable_scores(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Score settings without folders; the scores' own entries identify the weights."""
    named = {name: settings[name] for name in SCORE_PATHS if settings[name]}
    return {**settings, **{name: _portable(value) for name, value in named.items()}}


def _portable_model(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Model settings without folders; the model's id identifies the files."""
    paths = {key: _portable(settings[key]) for key in ("path", "config") if settings[key]}
    loras = [
        {**entry, "path": _portable(entry["path"])} if isinstance(entry, dict) else _portable(entry)
        for entry in settings["lora"]
    ]
    return {**settings, **paths, "lora": loras}


def _portable(name: str) -> str:
    """The last part of an existing path, with a prefix such as ``local-dir:``; other names unchanged."""
    prefix, colon, path = name.rpartition(":")
    if not Path(path).expanduser().exists():
        return name
    return prefix + colon + Path(path).expanduser().resolve().name

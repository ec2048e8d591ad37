"""plan.json: what a sweep was, in full, and whether another command is the same sweep."""

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

_MAY_GROW = ("prompts", "prompt_file", "concepts", "seeds", "method", "replay", "axes", "zip", "study")
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
_NOT_IN_AN_IMAGE = ("wave_rows",)
"""Of the engine's entries in plan.json those that no bit of an image depends on."""

_SCORED_TOGETHER = "scores.batch_size"
"""As operational, though it stands among settings that are not."""

SCORE_PATHS = ("clip_model", "clip_pretrained", "dino")
"""Scorers' settings that may be paths of this machine, of which plan.json has the last part alone."""

_PACKAGES = ("torch", "diffusers", "transformers", "open-clip-torch", "lpips", "numpy", "pillow")


def document(made: Plan, engine: Mapping[str, Any], scores: Mapping[str, Any]) -> dict[str, Any]:
    """The content of plan.json.

    Args:
        made: the plan.
        engine: sizes and device as they were resolved; a resume reuses them.
        scores: backbone, weights id and preprocessing of every score.
    """
    return _asked(made) | {
        "engine": dict(engine),
        "scores": dict(scores),
        "versions": versions(),
        "code_version": version.__version__,
    }


def renewed(made: Plan, stored: Mapping[str, Any]) -> dict[str, Any]:
    """plan.json for a plan of which everything is made already: what it was computed with stays."""
    return {**stored, **_asked(made)}


def rescored(stored: Mapping[str, Any], settings: ScoreSettings, scores: Mapping[str, Any]) -> dict[str, Any]:
    """plan.json of a sweep whose pictures are scored anew; all else stays."""
    asked = {**stored["settings"], "scores": _portable_scores(asdict(settings))}
    return {**stored, "settings": asked, "scores": dict(scores)}


def is_behind(made: Plan, stored: Mapping[str, Any]) -> bool:
    """Whether plan.json shows another plan; settings that change no result may differ."""
    return _results_of(renewed(made, stored)) != _results_of(stored)


def _results_of(plan: Mapping[str, Any]) -> str:
    """What of plan.json decides the results, as a text: the order of axes and of their values counts."""
    settings = {name: value for name, value in _flat(plan.get("settings", {})) if not _is_operational(name)}
    return json.dumps({**plan, "settings": settings})


def _is_operational(key: str) -> bool:
    return key.partition(".")[0] in _OPERATIONAL or key == _SCORED_TOGETHER


def _asked(made: Plan) -> dict[str, Any]:
    return {
        "plan_version": PLAN_VERSION,
        "name": made.name,
        "description": made.config.description,
        "settings": _portable_settings(made.config),
        "model": {
            "id": made.model.id,
            "name": made.config.model.name,
            "path": _portable(made.config.model.path),
        },
        "axes": dict(made.axes),
        "prompts": list(made.prompts),
        "concepts": [list(together) for together in made.concepts],
        "seeds": list(made.seeds),
        "counts": made.counts(),
        "keys": [cell.key for cell in made.cells],
    }


def versions() -> dict[str, str]:
    """Versions of this code and of the libraries that a number may depend on."""
    return {"sega_bench": version.__version__} | {name: metadata.version(name) for name in _PACKAGES}


def changes(stored: Mapping[str, Any], engine: Mapping[str, Any], config: Config) -> list[str]:
    """What differs from the stored plan, and may change the last digit of an image or a score, as words."""
    together = stored.get("settings", {}).get("scores", {}).get("batch_size")
    before = {**stored.get("engine", {}), **stored.get("versions", {}), _SCORED_TOGETHER: together}
    now = {**engine, **versions(), _SCORED_TOGETHER: config.scores.batch_size}
    return [
        f"{name} is {value} and was {before[name]}"
        for name, value in now.items()
        if name not in _NOT_IN_AN_IMAGE and before.get(name) not in (None, value)
    ]


def check_same_sweep(made: Plan, stored: Mapping[str, Any]) -> None:
    """Refuse to mix two sweeps in one folder; prompts, concepts, seeds, method, replay, axes and zip may
    change. What of a study may, its own file says.

    Raises:
        UserError: what differs from the stored plan, and how to go on.
    """
    before = dict(_flat(stored.get("settings", {})))
    differences = [
        f"{key} was {abbreviated(before.get(key))} and is {abbreviated(value)}"
        for key, value in _flat(_portable_settings(made.config))
        if key.partition(".")[0] not in (*_MAY_GROW, "model")
        and not _is_operational(key)
        and before.get(key) != value
    ]
    was, dtype = stored.get("model", {}).get("id", ""), stored.get("engine", {}).get("dtype")
    if was.rpartition("@")[2] != made.model.id.rpartition("@")[2]:  # what it is called is no part of it
        differences.append(f"the model was {was} and is {made.model.id}")
    searched = bool(stored.get("settings", {}).get("study", {}).get("space"))
    if searched != bool(made.config.study.space):  # what a study may change, study.json says
        kinds = ("a sweep", "a study")
        differences.append(f"it was {kinds[searched]} and is {kinds[not searched]}")
    checker = made.config.model.safety_checker  # it is no part of the model's id, and fills a column
    if bool(before.get("model.safety_checker")) != checker:
        differences.append(f"model.safety_checker was {not checker} and is {checker}")
    if dtype != made.cells[0].dtype:
        differences.append(f"engine.dtype was {dtype} and is {made.cells[0].dtype}")
    if differences:
        raise UserError(
            f"name={made.config.name}: this folder holds another sweep ({'; '.join(differences)}): "
            "give this one another name=..., or the old settings"
        )


def check_same_scores(scores: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Refuse to put numbers of other weights or preprocessing into one column.

    Raises:
        UserError: which score differs, and how to go on.
    """
    for name, before in stored.get("scores", {}).items():
        if scores.get(name) != before:
            raise UserError(
                f"scores: {name} was {before} in this folder and is {scores.get(name)}: "
                "give this sweep another name=..., or the old weights"
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _portable_settings(config: Config) -> dict[str, Any]:
    """The configuration without this machine's paths and without what changes no result."""
    settings = to_dict(config)
    settings["model"] = _portable_model(settings["model"])
    if isinstance(config.prompts, str):  # a file; what it says is in the plan
        settings["prompts"] = Path(config.prompts).name
    settings["scores"] = _portable_scores(settings["scores"])
    for key in ("output_dir", "launch"):  # where, and by whom
        del settings[key]
    if config.study.space:
        del settings["study"]["storage"]  # the address of a database may hold a password
    else:
        del settings["study"]
    return settings


def _portable_scores(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights are is in the scores' own entries."""
    named = {name: settings[name] for name in SCORE_PATHS if settings[name]}
    return {**settings, **{name: _portable(value) for name, value in named.items()}}


def _portable_model(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the files are is in the model's id."""
    paths = {key: _portable(settings[key]) for key in ("path", "config") if settings[key]}
    loras = [
        {**entry, "path": _portable(entry["path"])} if isinstance(entry, dict) else _portable(entry)
        for entry in settings["lora"]
    ]
    return {**settings, **paths, "lora": loras}


def _portable(name: str) -> str:
    """A path, perhaps behind ``local-dir:``, without its folders; anything else as it is."""
    prefix, colon, path = name.rpartition(":")
    if not Path(path).expanduser().exists():
        return name
    return prefix + colon + Path(path).expanduser().resolve().name

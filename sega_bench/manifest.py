"""plan.json: what a sweep was, in full, and whether another command is the same sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import sega_bench
from sega_bench.cell import shown
from sega_bench.config import Config, plain
from sega_bench.errors import UserError
from sega_bench.planner import Plan
from sega_bench.store import PLAN_VERSION

_MAY_GROW = ("prompts", "prompt_file", "concepts", "seeds", "axes", "zip")
_OPERATIONAL = (
    "name",
    "description",
    "engine",
    "wandb",
    "output_dir",
    "dry_run",
    "retry_failed",
    "fail_fast",
)
_PACKAGES = ("torch", "diffusers", "transformers", "open-clip-torch", "lpips", "numpy", "pillow")


def document(made: Plan, engine: Mapping[str, Any], scores: Mapping[str, Any]) -> dict[str, Any]:
    """The content of plan.json.

    Args:
        made: the plan.
        engine: sizes and device as they were resolved; a resume reuses them.
        scores: backbone, weights id and preprocessing of every score.
    """
    return {
        "plan_version": PLAN_VERSION,
        "name": made.name,
        "description": made.config.description,
        "settings": _portable_settings(made.config),
        "model": {"id": made.model.id, "name": made.config.model.name, "path": _portable_path(made.config)},
        "axes": dict(made.axes),
        "prompts": list(made.prompts),
        "concepts": [list(together) for together in made.concepts],
        "seeds": list(made.seeds),
        "counts": made.counts(),
        "keys": [cell.key for cell in made.cells],
        "engine": dict(engine),
        "scores": dict(scores),
        "versions": versions(),
        "code_version": sega_bench.__version__,
    }


def versions() -> dict[str, str]:
    """Versions of the libraries that a number may depend on."""
    return {name: metadata.version(name) for name in _PACKAGES}


def check_same_sweep(made: Plan, stored: Mapping[str, Any]) -> None:
    """Refuse to mix two sweeps in one folder; prompts, concepts, seeds, axes and zip may change.

    Raises:
        UserError: what differs from the stored plan, and how to go on.
    """
    before = dict(_flat(stored.get("settings", {})))
    differences = [
        f"{key} was {shown(before.get(key))} and is {shown(value)}"
        for key, value in _flat(_portable_settings(made.config))
        if key.partition(".")[0] not in (*_MAY_GROW, *_OPERATIONAL) and before.get(key) != value
    ]
    if stored.get("model", {}).get("id") != made.model.id:
        differences.append(f"the model was {stored.get('model', {}).get('id')} and is {made.model.id}")
    if differences:
        raise UserError(
            f"name={made.config.name}: this folder holds another sweep ({'; '.join(differences)}): "
            "give this one another name=..., or the old settings"
        )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _portable_settings(config: Config) -> dict[str, Any]:
    """The configuration without this machine's paths and without what changes no result."""
    settings = plain(config)
    settings["model"]["path"] = _portable_path(config)
    del settings["output_dir"]
    return settings


def _portable_path(config: Config) -> str:
    path = Path(config.model.path).expanduser()
    return path.resolve().name if path.is_dir() else config.model.path

"""The configuration as Hydra reads it: its schema, its composition, and errors in one line.

The dataclasses here are mutable because OmegaConf cannot use frozen ones as a schema; everything after the
planner is frozen. What may be of several shapes (``prompts``, ``seeds``, ``concepts``, values of axes) is
typed Any here and checked by the planner.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sega_bench.cell import shown
from sega_bench.errors import UserError


def _find_conf() -> Path:
    """conf/ inside an installed package, at the top of a checkout otherwise."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "conf"


CONF_DIR = _find_conf()
HYDRA_ERRORS = (HydraException, OmegaConfBaseException)


@dataclass
class ModelConfig:
    """See :class:`sega_bench.sega.models.ModelSettings`."""

    name: str = "???"
    path: str = "???"
    revision: str | None = None
    variant: str | None = None


@dataclass
class PromptFileConfig:
    """How a prompt file is read: which column, how many rows, which columns hold a prompt's own settings."""

    column: str = "prompt"
    limit: int | None = None
    columns: dict[str, str] = field(default_factory=dict)


@dataclass
class SamplingConfig:
    """Settings of the sampler; None is the model's own."""

    scheduler: str | None = None
    num_inference_steps: Any = 50
    guidance_scale: Any = 7.5
    eta: Any = 0.0
    height: Any = None
    width: Any = None


@dataclass
class EditConfig:
    """Settings of the edit; a list gives every concept of a cell its own value."""

    edit_guidance_scale: Any = 5.0
    edit_threshold: Any = 0.9
    edit_warmup_steps: Any = 10
    edit_cooldown_steps: Any = None
    edit_weights: Any = 1.0
    reverse_editing_direction: Any = False
    edit_momentum_scale: Any = 0.1
    edit_mom_beta: Any = 0.4


@dataclass
class ScoresConfig:
    """See :class:`sega_bench.scores.ScoreSettings`."""

    clip_model: str = "???"
    clip_pretrained: str | None = None
    perceptual: str = "clip"
    batch_size: int = 16


@dataclass
class EngineConfig:
    """How it is computed, not what; None is as this folder's sweep began, or is found out.

    ``micro_batch_size`` estimates go through the UNet at once and ``decode_batch_size`` latents through the
    VAE; ``wave_rows`` images are in flight; ``threads`` are torch's on the CPU; ``compile`` is for the UNet.
    """

    device: str | None = None
    dtype: str | None = None
    micro_batch_size: int | None = None
    decode_batch_size: int | None = None
    wave_rows: int = 64
    threads: int | None = None
    compile: bool = False


@dataclass
class WandbConfig:
    """Where to log; ``auto`` is online when logged in, else offline."""

    mode: str = "auto"
    project: str = "sega_bench"
    entity: str | None = None


@dataclass
class Config:
    """One sweep, as asked for."""

    name: str = "custom"
    description: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    prompts: Any = None
    prompt_file: PromptFileConfig = field(default_factory=PromptFileConfig)
    negative_prompt: Any = ""
    seeds: Any = 1
    concepts: Any = field(default_factory=list)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    edit: EditConfig = field(default_factory=EditConfig)
    axes: dict[str, Any] = field(default_factory=dict)
    zip: dict[str, Any] = field(default_factory=dict)
    scores: ScoresConfig = field(default_factory=ScoresConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    output_dir: str = "outputs"
    dry_run: bool = False
    retry_failed: bool = False
    fail_fast: bool = False


def register() -> None:
    """Make the schema known to Hydra, under the name that conf/config.yaml builds on."""
    ConfigStore.instance().store(name="schema", node=Config)


def compose(*overrides: str) -> Config:
    """The configuration that ``python -m sega_bench OVERRIDES`` would run.

    Args:
        overrides: as on the command line, for example ``"+sweep=thresholds"``, ``"seeds=4"``.

    Raises:
        UserError: an unknown key, group or value; one line.
    """
    register()
    check_overrides(overrides)
    try:
        with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            composed = hydra.compose("config", list(overrides))
        return typed(composed)
    except HYDRA_ERRORS as error:
        raise UserError(explain(error)) from error


def typed(composed: DictConfig) -> Config:
    """A composed configuration as the dataclasses above.

    Raises:
        UserError: a key that the schema does not have; Hydra lets ``+typo=1`` through.
        OmegaConfBaseException: a value of the wrong type.
    """
    _refuse_unknown_keys(composed, Config, "")
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    return config


def plain(config: Config) -> dict[str, Any]:
    """A configuration as nested dictionaries and lists, for JSON."""
    container = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def options(group: str) -> list[str]:
    """The choices of a config group, such as ``sweep`` or ``model``."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("[!_]*.yaml"))


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean X? `` or nothing."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}? " if near else ""


def check_overrides(overrides: Iterable[str]) -> None:
    """Refuse overrides that Hydra cannot read, naming them; its own message does not.

    Raises:
        UserError: with the first of them.
    """
    for override in overrides:
        try:
            OverridesParser.create().parse_override(override)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{shown(override)} cannot be read ({reason}): quote texts with commas, brackets or spaces, "
                "as in 'prompts=[\"a house, a tree\"]'"
            ) from error


def explain(error: BaseException) -> str:
    """Hydra's and OmegaConf's errors, which run over many lines, as one line with the key in it."""
    if str(error).startswith("Error merging") and error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        return _explain_unknown(found[1])
    if found := re.search(r"Could not find '([^/']+)/([^']+)'", text):
        known = options(found[1])
        return f"{found[1]}={found[2]}: {nearest(found[2], known)}there are {', '.join(known) or 'none'}"
    if found := re.search(r"You must specify '([^']+)'", text):
        return f"{found[1]}: choose one of {', '.join(options(found[1]))}"
    if found := re.search(r"missing mandatory value: (\S+)\s+full_key: (\S+)", text):
        return f"{found[2]} is not given: add {found[2]}=..."
    if found := re.search(r"full_key: (\S+)", text):
        return f"{found[1]}: {text.splitlines()[0]}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines)[:400] or type(error).__name__


def _explain_unknown(key: str) -> str:
    if choices := options(key):
        return f"{key}=... is appended, so write +{key}=... (there are {', '.join(choices)})"
    *parents, name = key.split(".")
    if parents and parents[0] in ("axes", "zip"):
        return f"{key}: the sweep has no such axis; add one with +{key}=[...], remove one with ~{key}"
    known = _known_keys(parents)
    groups = [] if parents else ["sweep"]
    return f"unknown key {key!r}: {nearest(name, [*known, *groups])}there are {', '.join(known)}"


def _known_keys(parents: Sequence[str]) -> list[str]:
    schema: Any = Config
    for parent in parents:
        schema = get_type_hints(schema).get(parent) if is_dataclass(schema) else None
    return [known.name for known in fields(schema)] if is_dataclass(schema) else _known_keys(())


def _refuse_unknown_keys(node: DictConfig, schema: Any, prefix: str) -> None:
    hints = get_type_hints(schema)
    for key in node:
        if str(key) not in hints:
            raise UserError(_explain_unknown(f"{prefix}{key!s}"))
        child = node._get_node(key)
        if is_dataclass(hints[str(key)]) and isinstance(child, DictConfig):
            _refuse_unknown_keys(child, hints[str(key)], f"{prefix}{key!s}.")


def headlines(group: str) -> dict[str, str]:
    """The choices of a config group, each with the first line of its file's header."""
    lines: dict[str, str] = {}
    for name in options(group):
        text = (CONF_DIR / group / f"{name}.yaml").read_text(encoding="utf-8")
        comments = [line.lstrip("# ") for line in text.splitlines() if line.startswith("# ")]
        lines[name] = next((line for line in comments if not line.startswith("@package")), "")
    return lines

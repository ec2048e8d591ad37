"""The configuration as Hydra reads it: its schema, its composition, and errors in one line.

The dataclasses here are mutable because OmegaConf cannot use frozen ones as a schema; everything after the
planner is frozen. What may be of several shapes (``prompts``, ``seeds``, ``concepts``, ``replay``, values of
axes) is typed Any here and checked by the planner.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from sega_bench.cell import abbreviated
from sega_bench.errors import UserError, nearest


def _find_conf() -> Path:
    """conf/ inside an installed package, at the top of a checkout otherwise."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "conf"


CONF_DIR = _find_conf()

_DEEPEST = 10
_LONGEST_WORD = 1_000_000

_COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError, RecursionError)
"""What composing raises, Hydra's plain errors included, if what was asked cannot be composed."""


@dataclass
class ModelConfig:
    """See :class:`sega_bench.sega.checkpoints.settings.ModelSettings`."""

    name: str = "???"
    path: str = "???"
    revision: str | None = None
    variant: str | None = None
    config: str | None = None
    lora: Any = field(default_factory=list)
    safety_checker: bool = False


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
    attributes: str | None = None
    dino: str | None = None
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


WANDB_MODES = ("auto", "online", "offline", "disabled")


@dataclass
class WandbConfig:
    """Where to log; ``auto`` is online when logged in, else offline."""

    mode: str = "auto"
    project: str = "sega_bench"
    entity: str | None = None


@dataclass
class HeldOutConfig:
    """Prompts and seeds that a study does not search with, on which what it found is tried again."""

    prompts: Any = None
    seeds: Any = None


@dataclass
class StudyConfig:
    """A search in place of a sweep's axes; without a ``space`` there is none.

    See :class:`sega_bench.study.settings.StudySettings`.
    """

    space: dict[str, Any] = field(default_factory=dict)
    objectives: dict[str, Any] = field(default_factory=dict)
    constraints: Any = field(default_factory=list)
    sampler: str = "tpe"
    sampler_seed: int = 0
    trials: int = 60
    batch: int | None = None
    min_resource: int | None = None
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    storage: str | None = None


@dataclass
class LaunchConfig:
    """Which processes do it: this one (``inline``), so many of this machine (``local``), or a cluster's tasks
    (``slurm``), for which everything below ``workers`` is; ``extra`` holds sbatch's other options.

    ``workers`` is a number, or ``auto``: one a GPU.
    """

    name: str = "inline"
    workers: Any = "auto"
    partition: str | None = None
    timeout_min: int | None = None
    gpus_per_worker: int | None = None
    account: str | None = None
    setup: Any = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    wait: bool = True


@dataclass
class Config:
    """One sweep or study, as asked for."""

    name: str = "custom"
    description: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    prompts: Any = None
    prompt_file: PromptFileConfig = field(default_factory=PromptFileConfig)
    negative_prompt: Any = ""
    seeds: Any = 1
    concepts: Any = field(default_factory=list)
    method: Any = "sega"
    replay: Any = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    edit: EditConfig = field(default_factory=EditConfig)
    axes: dict[str, Any] = field(default_factory=dict)
    zip: dict[str, Any] = field(default_factory=dict)
    scores: ScoresConfig = field(default_factory=ScoresConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
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
    with explained(), hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        composed = hydra.compose("config", list(overrides))
    return typed(composed)


def typed(composed: DictConfig) -> Config:
    """A composed configuration as the dataclasses above.

    Raises:
        UserError: a value of the wrong type, or a key that the schema does not have; Hydra lets ``+typo=1``
            through.
    """
    if OmegaConf.get_type(composed) is not Config:
        raise UserError(
            "--config-name: that file must begin its defaults list with `- schema`, as config.yaml does"
        )
    _refuse_unknown_keys(composed, Config, "")
    with explained():
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


def check_overrides(overrides: Iterable[str]) -> None:
    """Refuse overrides that Hydra cannot read or use, naming them; its own messages do not.

    Raises:
        UserError: with the first of them.
    """
    for override in overrides:
        if len(override) > _LONGEST_WORD:
            key = override[:100].partition("=")[0]
            raise UserError(f"{key}=... has {len(override):,} characters: put long lists into a file")
        try:
            parsed = OverridesParser.create().parse_override(override)
        except (HydraException, ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            word = override if len(override) <= 100 else override[:100] + "..."
            raise UserError(f"{word!r} cannot be read ({reason[:100]}): {_remedy(override)}") from error
        key, value = parsed.key_or_group, parsed.value()
        if _depth(value) > _DEEPEST:
            raise UserError(f"{key} nests lists too deeply: no setting needs {_DEEPEST} levels")
        choices = [] if parsed.is_delete() else options(key)
        for name in _names(value) if choices else ():
            if not isinstance(name, str | QuotedString) or name == "":
                raise UserError(f"{key} is {abbreviated(name)}: choose one of {', '.join(choices)}")


def _names(value: Any) -> list[Any]:
    """What a config group's value names: one choice, a list of them, or a multirun's."""
    if isinstance(value, ChoiceSweep):
        return [name for one in value.list for name in _names(one)]
    return value if isinstance(value, list) else [value]


def _remedy(override: str) -> str:
    """How to write a word that Hydra cannot read."""
    key, equals, value = override.partition("=")
    if not equals:
        example = f"+sweep={override}" if override in options("sweep") else "seeds=4"
        return f"a setting is written key=value, as in {example}"
    if len(value) < 100 and not set(value) & set("\"'[]{}()"):
        return f"quote it, '{key}=\"{value}\"'"
    return "quote texts with commas, brackets or spaces, as in 'prompts=[\"a house, a tree\"]'"


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


@contextmanager
def explained() -> Iterator[None]:
    """Whatever Hydra and OmegaConf say to what was asked, as a :class:`UserError`."""
    try:
        yield
    except _COMPOSITION_ERRORS as error:
        raise UserError(_explain(error)) from error


def _explain(error: BaseException) -> str:
    """Hydra's and OmegaConf's errors, which run over many lines, with the key in front."""
    if isinstance(error, RecursionError):
        return "the configuration nests lists too deeply: no setting needs more than a few levels"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        known = [choice for choice in error.options if not choice.startswith("_")]
        return f"{group}={name}: {nearest(name, known)}there are {', '.join(known) or 'none'}"
    place = re.match(r"Error merging override \+*([^=]*)|In '([^']+)'", str(error))
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        error = error.__cause__
    text = str(error)
    if found := re.search(r"Key '.*' (?:is )?not in .*\s+full_key: (\S+)", text):
        if options(found[1]):
            return f"{found[1]}: a file of one's own begins with the line `# @package _global_`"
        return _explain_unknown(found[1])
    if found := re.search(r"Could not override '([^']+)'", text):
        return _explain_unknown(found[1])
    if found := re.search(r"You must specify '([^']+)'", text):
        return f"{found[1]}: choose one of {', '.join(options(found[1]))}"
    if found := re.search(r"missing mandatory value: (\S+)\s+full_key: (\S+)", text):
        return f"{found[2]} is not given: add {found[2]}=..."
    found = re.search(r"full_key: (\S+)\n", text)
    key = found[1] if found else ""
    if place and key[:1] in ("", "["):  # no key at all, or the rest of one behind the override's
        key = f"{place[1] or place[2]}{key}"
    remedy = ""
    if isinstance(error, GrammarParseError | InterpolationResolutionError):
        remedy = ": ${ begins an interpolation, write \\${ for the characters themselves"
    return f"{key}: {text.splitlines()[0]}{remedy}" if key else text[:400] or type(error).__name__


def _explain_unknown(key: str) -> str:
    if choices := options(key):
        return f"{key}=... is appended, so write +{key}=... (there are {', '.join(choices)})"
    schema: Any = Config
    above = ""
    for name in key.split("."):
        if get_origin(schema) is dict:
            example = "[...]" if schema == dict[str, Any] else "..."
            return f"{key}: {above} has no such entry; add one with +{key}={example}, remove one with ~{key}"
        if not is_dataclass(schema):
            return f"{key}: {above} has no keys of its own, but a value: {above}=..."
        hints = get_type_hints(schema)
        if name not in hints:
            known = [*hints, *([] if above else ["sweep"])]
            return f"unknown key {key!r}: {nearest(name, known)}there are {', '.join(hints)}"
        schema, above = hints[name], f"{above}.{name}".lstrip(".")
    return f"{key} cannot be overridden like this: write {key}=..., or +{key}=... where there is none"


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

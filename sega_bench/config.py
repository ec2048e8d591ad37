"""Hydra configuration: its schema, its composition, and one-line messages for its errors.

The dataclasses are mutable because OmegaConf does not accept a frozen dataclass as a schema; everything that
the planner returns is frozen. A key that accepts several types (``prompts``, ``seeds``, ``concepts``,
``replay``, the values of an axis) is typed Any here, and the planner checks it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import YAMLError

from sega_bench.cell import abbreviated
from sega_bench.errors import UserError, nearest


def _find_conf() -> Path:
    """The package's own conf/ if it is installed, else the one at the top of the checkout."""
    installed = Path(__file__).parent / "conf"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "conf"


CONF_DIR = _find_conf()

_MAX_DEPTH = 10
"""Levels of nested lists and mappings in one value."""

_MAX_OVERRIDE_LENGTH = 1_000_000
"""Characters; longer lists belong in a file."""

_COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError, RecursionError)
"""Raised by Hydra's composition for invalid input; Hydra also raises plain ValueErrors and OSErrors."""


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
    """How to read a prompt file: the prompt's column, a row limit, and the columns of per-prompt settings."""

    column: str = "prompt"
    limit: int | None = None
    columns: dict[str, str] = field(default_factory=dict)


@dataclass
class SamplingConfig:
    """Settings of the sampler; None selects the model's default."""

    scheduler: str | None = None
    num_inference_steps: Any = 50
    guidance_scale: Any = 7.5
    eta: Any = 0.0
    height: Any = None
    width: Any = None


@dataclass
class EditConfig:
    """Settings of the edit; a list has one value per concept of a cell."""

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
    """Execution settings, which do not define an image; None: as the folder's sweep began, else automatic.

    ``micro_batch_size`` is the UNet's batch size in noise estimates, ``decode_batch_size`` the VAE's in
    latents, ``wave_rows`` the number of images in flight, ``threads`` torch's CPU thread count; ``compile``
    compiles the UNet.
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
    """Logging to Weights & Biases; ``auto`` is online if the user is logged in, else offline."""

    mode: str = "auto"
    project: str = "sega_bench"
    entity: str | None = None


@dataclass
class VerdictConfig:
    """By which scores settings are judged, and how strictly; see :class:`sega_bench.analysis.best.Criteria`.

    ``success`` None is the best judge that the sweep has. ``margin`` is the loss that still counts as
    working: absolute for success, relative to the best for gain.
    """

    success: str | None = None
    gain: str = "clip_concept_delta"
    cost: str = "lpips"
    margin: float = 0.05


@dataclass
class HeldOutConfig:
    """Prompts and seeds excluded from a study's search, on which its answers are validated."""

    prompts: Any = None
    seeds: Any = None


@dataclass
class StudyConfig:
    """A search that replaces a sweep's axes; an empty ``space`` means no search.

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
    """The processes that run a sweep: this one (``inline``), several on this machine (``local``), or the
    tasks of a job array (``slurm``).

    ``workers`` is a number, or ``auto`` for one per GPU. The keys after it apply to ``slurm`` only; ``extra``
    holds further sbatch options.
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
    """The configuration of one sweep or study."""

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
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    output_dir: str = "outputs"
    dry_run: bool = False
    retry_failed: bool = False
    fail_fast: bool = False


def register() -> None:
    """Register the schema with Hydra under the name in the defaults list of conf/config.yaml."""
    ConfigStore.instance().store(name="schema", node=Config)


def compose(*overrides: str) -> Config:
    """Compose the configuration that ``python -m sega_bench OVERRIDES`` runs.

    Args:
        overrides: as on the command line, for example ``"+sweep=thresholds"``, ``"seeds=4"``.

    Raises:
        UserError: a key, config group or value is unknown.
    """
    register()
    check_overrides(overrides)
    with translate_errors(), hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        composed = hydra.compose("config", list(overrides))
    return to_config(composed)


def to_config(composed: DictConfig) -> Config:
    """Convert a composed configuration to the dataclasses above.

    Raises:
        UserError: a value has the wrong type, or the schema lacks a key; Hydra itself accepts ``+typo=1``.
    """
    if OmegaConf.get_type(composed) is not Config:
        raise UserError(
            "--config-name: that file must begin its defaults list with `- schema`, as config.yaml does"
        )
    _refuse_unknown_keys(composed, Config, "")
    with translate_errors():
        config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """A configuration as nested dictionaries and lists that JSON can represent."""
    container = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def options(group: str) -> list[str]:
    """The options of a config group such as ``sweep`` or ``model``; empty if there is no such group."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("[!_]*.yaml"))


def check_overrides(overrides: Iterable[str]) -> None:
    """Check that Hydra can parse each override, because Hydra's own messages do not name it.

    Raises:
        UserError: about the first override that is invalid.
    """
    for override in overrides:
        _check_override(override)


def _check_override(override: str) -> None:
    if len(override) > _MAX_OVERRIDE_LENGTH:
        key = override[:100].partition("=")[0]
        raise UserError(f"{key}=... has {len(override):,} characters: put long lists into a file")
    try:
        parsed = OverridesParser.create().parse_override(override)
    except (HydraException, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        start = override if len(override) <= 100 else override[:100] + "..."
        raise UserError(f"{start!r} cannot be read ({reason[:100]}): {_remedy(override)}") from error
    key, value = parsed.key_or_group, parsed.value()
    if _depth(value) > _MAX_DEPTH:
        raise UserError(f"{key} nests lists too deeply: no setting needs {_MAX_DEPTH} levels")
    if not parsed.is_delete() and (choices := options(key)):
        for name in _selected_options(value):
            if not isinstance(name, str | QuotedString) or name == "":
                raise UserError(f"{key} is {abbreviated(name)}: choose one of {', '.join(choices)}")


def _selected_options(value: Any) -> list[Any]:
    """The options that an override selects in a config group: one, a list, or a multirun's choices."""
    if isinstance(value, ChoiceSweep):
        return [name for choice in value.list for name in _selected_options(choice)]
    return value if isinstance(value, list) else [value]


def _remedy(override: str) -> str:
    """How to write an override that Hydra cannot parse."""
    key, equals, value = override.partition("=")
    if not equals:
        example = f"+sweep={override}" if override in options("sweep") else "seeds=4"
        return f"a setting is written key=value, as in {example}"
    if len(value) < 100 and not set(value) & set("\"'[]{}()"):
        return f"quote it, '{key}=\"{value}\"'"
    return "quote texts with commas, brackets or spaces, as in 'prompts=[\"a house, a tree\"]'"


def _depth(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, children), default=0)


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise the errors of Hydra and OmegaConf as a :class:`UserError` of one line that names the key."""
    try:
        yield
    except _COMPOSITION_ERRORS as error:
        raise UserError(_explain(error)) from error


def _explain(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "the configuration nests lists too deeply: no setting needs more than a few levels"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        return _explain_missing_option(error.missing_cfg_file, error.options)
    origin = _omegaconf_error(error)
    if isinstance(origin, ConfigKeyError | ConfigAttributeError) and origin.full_key:
        return _explain_rejected_key(origin.full_key)
    if isinstance(origin, MissingMandatoryValue):
        return f"{origin.full_key} is not given: add {origin.full_key}=..."
    for pattern, explain in _HYDRA_MESSAGES:
        if match := pattern.search(str(error)):
            return explain(match[1])
    return _prefix_key(error, origin or error)


def _omegaconf_error(error: BaseException) -> OmegaConfBaseException | None:
    """The OmegaConf error behind an error of Hydra's, which has the key as an attribute."""
    origin: BaseException | None = error
    if isinstance(error, HydraException):
        # Hydra merges a file's content without `raise ... from`, and repeats the error in its own message.
        is_repeated = "raised while composing config:" in str(error)
        origin = error.__context__ if is_repeated else error.__cause__
    return origin if isinstance(origin, OmegaConfBaseException) else None


def _explain_missing_option(path: str, known: Sequence[str]) -> str:
    group, _, name = path.rpartition("/")
    public = [option for option in known if not option.startswith("_")]
    return f"{group}={name}: {nearest(name, public)}there are {', '.join(public) or 'none'}"


def _explain_rejected_key(key: str) -> str:
    """Explain a key that OmegaConf rejects; a config group here is a file without a package directive."""
    if options(key):
        return f"{key}: a file of one's own begins with the line `# @package _global_`"
    return _explain_unknown(key)


def _explain_unselected(group: str) -> str:
    return f"{group}: choose one of {', '.join(options(group))}"


def _explain_unknown(key: str) -> str:
    """Explain a key that cannot be overridden by following it into the schema as far as it goes."""
    if choices := options(key):
        return f"{key}=... is appended, so write +{key}=... (there are {', '.join(choices)})"
    schema: Any = Config
    parent = ""
    for name in key.split("."):
        if get_origin(schema) is dict:
            example = "[...]" if schema == dict[str, Any] else "..."
            return f"{key}: {parent} has no such entry; add one with +{key}={example}, remove one with ~{key}"
        if not is_dataclass(schema):
            return f"{key}: {parent} has no keys of its own, but a value: {parent}=..."
        hints = get_type_hints(schema)
        if name not in hints:
            known = [*hints, *([] if parent else ["sweep"])]
            return f"unknown key {key!r}: {nearest(name, known)}there are {', '.join(hints)}"
        schema, parent = hints[name], f"{parent}.{name}".lstrip(".")
    return f"{key} cannot be overridden like this: write {key}=..., or +{key}=... where there is none"


_HYDRA_MESSAGES: tuple[tuple[re.Pattern[str], Callable[[str], str]], ...] = (
    (re.compile(r"Could not override '([^']+)'"), _explain_unknown),
    (re.compile(r"You must specify '([^']+)'"), _explain_unselected),
)
"""Messages of Hydra that contain a key which its exceptions do not have as an attribute."""

_LOCATION = re.compile(r"Error merging override \+*([^=]*)|In '([^']+)'")
"""The override or the configuration file that a message of Hydra's begins with."""


def _prefix_key(error: BaseException, origin: BaseException) -> str:
    """The first line of an error's message after the key, or after Hydra's location if it has no key."""
    message = str(origin)
    key = getattr(origin, "full_key", None) or ""
    location = _LOCATION.match(str(error))
    if location and key[:1] in ("", "["):  # inside an override's value, OmegaConf's key is relative to it
        key = f"{location[1] or location[2]}{key}"
    if not key:
        return message[:400] or type(origin).__name__
    is_interpolation = isinstance(origin, GrammarParseError | InterpolationResolutionError)
    remedy = ": ${ begins an interpolation, write \\${ for the characters themselves"
    return f"{key}: {message.splitlines()[0]}{remedy if is_interpolation else ''}"


def _refuse_unknown_keys(node: DictConfig, schema: Any, prefix: str) -> None:
    hints = get_type_hints(schema)
    for key in map(str, node):
        if key not in hints:
            raise UserError(_explain_unknown(f"{prefix}{key}"))
        child = node._get_node(key)
        if is_dataclass(hints[key]) and isinstance(child, DictConfig):
            _refuse_unknown_keys(child, hints[key], f"{prefix}{key}.")


def describe_options(group: str) -> dict[str, str]:
    """The options of a config group, each with the first line of its file's header comment."""
    lines: dict[str, str] = {}
    for name in options(group):
        text = (CONF_DIR / group / f"{name}.yaml").read_text(encoding="utf-8")
        comments = [line.lstrip("# ") for line in text.splitlines() if line.startswith("# ")]
        lines[name] = next((line for line in comments if not line.startswith("@package")), "")
    return lines

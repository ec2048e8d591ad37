"""A checkpoint found, identified and checked to the last tensor's shape, with nothing loaded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sega_bench import faces
from sega_bench.cell import canonical_json
from sega_bench.errors import UserError
from sega_bench.sega import schedulers
from sega_bench.sega.checkpoints import hub, original
from sega_bench.sega.checkpoints.checkpoint import Checkpoint, Part, SafetyChecker
from sega_bench.sega.checkpoints.identity import digest_lines, file_digests
from sega_bench.sega.checkpoints.layout import (
    NETWORKS_XL,
    PREPROCESSOR,
    SAFETY_CHECKER,
    SAFETY_CHECKER_CLASS,
    Config,
    Layout,
    choose_weights,
    read_layout,
    read_object,
)
from sega_bench.sega.checkpoints.lora import lora_file
from sega_bench.sega.checkpoints.settings import LoraSettings, ModelSettings, local_path
from sega_bench.sega.checkpoints.weights import read_tensors

_HUB_ID = r"[\w-][\w.-]*/[\w.-]+"
_CONFIGURATIONS = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{name}/config.json" for name in (*NETWORKS_XL, SAFETY_CHECKER)),
)


@dataclass(frozen=True)
class Model:
    """A checkpoint, described but not loaded.

    Args:
        id: ``name@hash`` of its weights and configurations, or ``name@commit`` if it came from a hub; behind
            it ``.variant`` of a commit's files and ``+hash`` of the LoRAs, where there are any.
        scheduler: diffusers' class name.
        scheduler_config: of the checkpoint's own scheduler, as JSON.
        size: default height and width in pixels.
        checkpoint: what to load; None after a dry run with a hub id, which fetches no weights.
    """

    id: str
    scheduler: str
    scheduler_config: str
    size: int
    checkpoint: Checkpoint | None

    @property
    def safety_checker(self) -> SafetyChecker | None:
        """The checkpoint's own, if it was asked for."""
        return None if self.checkpoint is None else self.checkpoint.safety_checker

    def scheduler_for(self, name: str | None) -> tuple[str, str]:
        """Class name and configuration of the scheduler that ``sampling.scheduler`` asks for.

        Another class than the checkpoint's gets the part of its configuration that it understands.
        """
        if name is None and not schedulers.is_known(self.scheduler):
            raise UserError(
                f"model.path: the checkpoint's own scheduler is {self.scheduler}, which SEGA cannot fork: "
                "set sampling.scheduler to another, for example euler"
            )
        chosen = self.scheduler if name is None else schedulers.class_name(name)
        return chosen, _config_for(chosen, self.scheduler_config)


@cache
def _config_for(scheduler: str, config: str) -> str:
    return canonical_json(schedulers.accepted_config(scheduler, json.loads(config)))


def describe(settings: ModelSettings, *, dry_run: bool = False) -> Model:
    """Find a checkpoint and say what it is: configurations, tokenizers and headers are read, weights hashed.

    Args:
        settings: which.
        dry_run: of a hub id nothing but small configurations is fetched, and a hub that cannot be reached
            gives a description with Stable Diffusion's usual scheduler and size, and an id without hash.

    Raises:
        UserError: there is no such checkpoint, it is none of Stable Diffusion, something of it is missing or
            does not fit the rest, or the hub says no.
    """
    where = f"model.path is {settings.path!r}"
    path = _local(settings)
    _refuse_what_does_not_apply(settings, path)
    if os.path.isdir(path):
        names = [file.relative_to(path).as_posix() for file in path.glob("*/*")]
        checkpoint = _from_folder(path, read_layout(path, where), names, settings, where)
        checkpoint.check()
        return _model(settings, checkpoint.layout, checkpoint, _identity(path, checkpoint), where)
    if os.path.isfile(path):
        checkpoint = _from_file(path, settings, where)
        checkpoint.check()
        return _model(settings, checkpoint.layout, checkpoint, _identity(path, checkpoint), where)
    if re.fullmatch(_HUB_ID, settings.path):
        return _from_hub(settings, where, dry_run=dry_run)
    raise UserError(
        f"{where}, but there is no such folder or file: give the path of a diffusers folder (it holds "
        "model_index.json), of a .safetensors file, or a hub id such as "
        "stable-diffusion-v1-5/stable-diffusion-v1-5"
    )


def check_unchanged(settings: ModelSettings, model: Model) -> None:
    """Before a model is loaded: is it the one that was described, perhaps days ago or on another machine?

    Args:
        settings: what was asked for.
        model: what :func:`describe` made of it. One of a hub is its commit, and is never another.

    Raises:
        UserError: other weights, configurations or LoRAs are there now.
    """
    path = _local(settings)
    if model.checkpoint is None or not os.path.exists(path):
        return
    found = _id(settings, _identity(path, model.checkpoint))
    if found != model.id:
        raise UserError(
            f"model.path is {settings.path!r}, but on {os.uname().nodename} it is {found} now and was "
            f"{model.id} when this was planned: give all machines the same, and start the command again"
        )


def _local(settings: ModelSettings) -> Path:
    """Where the model is, if it is on this machine."""
    return faces.PIPELINE_DIR if settings.path == "embedded" else local_path(settings.path)


def _identity(path: Path, checkpoint: Checkpoint) -> str:
    """What is in a local folder or file, LoRAs apart."""
    return (_folder_identity if os.path.isdir(path) else _file_identity)(path, checkpoint)


def _refuse_what_does_not_apply(settings: ModelSettings, path: Path) -> None:
    """Settings that would be passed over without a word."""
    for key, value, applies, what in (
        ("revision", settings.revision, not os.path.exists(path), "a hub id"),
        ("variant", settings.variant, not os.path.isfile(path), "a folder or a hub id"),
        ("config", settings.config, os.path.isfile(path), "one .safetensors file"),
    ):
        if value is not None and not applies:
            raise UserError(f"model.{key} is {value!r}, but it is for {what} as model.path: leave it out")


def _from_folder(
    folder: Path, layout: Layout, names: Sequence[str], settings: ModelSettings, where: str
) -> Checkpoint:
    """A checkpoint in diffusers' format.

    Args:
        folder: where its files are, or will be.
        layout: its configurations.
        names: the files that it has.
        settings: what was asked for.
        where: begins an error message.
    """

    def part(name: str, kind: str, config: Config) -> Part:
        chosen = choose_weights(names, name, settings.variant, where)
        return Part(name, kind, config, tuple(folder / file for file in chosen))

    checker = None
    if settings.safety_checker:
        if not layout.has_safety_checker:
            raise UserError(f"{where}, which has no safety checker: set model.safety_checker=false")
        config = read_object(folder / SAFETY_CHECKER / "config.json", where)
        checker = SafetyChecker(part(SAFETY_CHECKER, SAFETY_CHECKER_CLASS, config), folder / PREPROCESSOR)
    return Checkpoint(
        layout=layout,
        parts={name: part(name, kind, config) for name, (kind, config) in layout.networks.items()},
        tokenizers=tuple(folder / name for name in layout.tokenizers),
        loras=settings.lora,
        safety_checker=checker,
    )


def _folder_identity(folder: Path, checkpoint: Checkpoint) -> str:
    files = list(_identifying_files(folder, checkpoint))
    digests = file_digests(files)
    lines = [f"{path.relative_to(folder).as_posix()} {digests[path]}" for path in files]
    if checkpoint.layout.is_xl:
        lines.append(f"force_zeros_for_empty_prompt {checkpoint.layout.force_zeros_for_empty_prompt}")
    return digest_lines(lines)


def _identifying_files(folder: Path, checkpoint: Checkpoint) -> Iterator[Path]:
    """The files that decide what the model draws: configurations, vocabularies, the weights it will load."""
    for name in sorted((*checkpoint.parts, *checkpoint.layout.tokenizers)):
        weights = checkpoint.parts[name].files if name in checkpoint.parts else ()
        for path in sorted((folder / name).glob("*")):
            if path in weights or (path.suffix in (".json", ".txt") and path.is_file()):
                yield path


def _from_file(path: Path, settings: ModelSettings, where: str) -> Checkpoint:
    """A checkpoint in one file, in the layout of the original code."""
    if path.suffix != ".safetensors":
        raise UserError(f"{where}: only .safetensors files are read, because others can run code: convert it")
    if settings.safety_checker:
        raise UserError(f"{where}, one file, which has no safety checker: set model.safety_checker=false")
    headers = read_tensors((path,), where, headers_only=True)
    config = settings.config or original.identify(headers.keys(), where)
    layout, tokenizers = original.layout_of(config, f"model.config is {config!r}")
    return Checkpoint(
        layout=layout,
        parts={
            name: Part(name, kind, network, (path,), is_original=True)
            for name, (kind, network) in layout.networks.items()
        },
        tokenizers=tokenizers,
        loras=settings.lora,
    )


def _file_identity(path: Path, checkpoint: Checkpoint) -> str:
    """Of the file, and of the configurations and vocabularies that it was read with."""
    folders = [source for source in checkpoint.tokenizers if isinstance(source, Path)]
    texts = [file for folder in folders for file in sorted(folder.glob("*")) if file.is_file()]
    layout = checkpoint.layout
    read_with = {
        "networks": {name: dict(config) for name, (_, config) in layout.networks.items()},
        "force_zeros_for_empty_prompt": layout.force_zeros_for_empty_prompt,
        "pad_tokens": [source for source in checkpoint.tokenizers if isinstance(source, str)],
    }
    return digest_lines([*file_digests((path, *texts)).values(), canonical_json(read_with)])


def _from_hub(settings: ModelSettings, where: str, *, dry_run: bool) -> Model:
    """A checkpoint of the hub, of which no file is fetched that is not read."""
    repo = settings.path
    try:
        snapshot = hub.fetch(repo, settings.revision, _CONFIGURATIONS, where)
    except hub.HubUnreachableError:
        if not dry_run:
            raise
        return Model(settings.name, "PNDMScheduler", '{"skip_prk_steps":true}', 512, None)
    layout = read_layout(snapshot, where)
    identity = snapshot.name + (f".{settings.variant}" if settings.variant else "")
    if dry_run:
        return _model(settings, layout, None, identity, where)
    names = hub.list_names(repo, snapshot, where)
    checkpoint = _from_folder(snapshot, layout, sorted(names), settings, where)
    hub.fetch(repo, snapshot.name, _needed(snapshot, checkpoint), where)
    checkpoint.check()
    return _model(settings, layout, checkpoint, identity, where)


def _needed(folder: Path, checkpoint: Checkpoint) -> Iterator[str]:
    """The files of a hub's repository that loading reads, besides configurations."""
    parts = [*checkpoint.parts.values()]
    if checkpoint.safety_checker is not None:
        parts.append(checkpoint.safety_checker.part)
        yield f"{PREPROCESSOR}/preprocessor_config.json"
    for part in parts:
        yield from (file.relative_to(folder).as_posix() for file in part.files)
    for name in checkpoint.layout.tokenizers:
        yield from (f"{name}/*.json", f"{name}/*.txt")


def _model(
    settings: ModelSettings, layout: Layout, checkpoint: Checkpoint | None, identity: str, where: str
) -> Model:
    scheduler = {name: value for name, value in layout.scheduler.items() if not name.startswith("_")}
    return Model(
        id=_id(settings, identity),
        scheduler=_checked_scheduler(layout.scheduler, where),
        scheduler_config=canonical_json(scheduler),
        size=layout.size,
        checkpoint=checkpoint,
    )


def _id(settings: ModelSettings, identity: str) -> str:
    loras = f"+{_lora_identity(settings.lora)}" if settings.lora else ""
    return f"{settings.name}@{identity}{loras}"


def _lora_identity(loras: Iterable[LoraSettings]) -> str:
    files = [lora_file(one) for one in loras]
    digests = file_digests(files)
    return digest_lines(f"{digests[file]} {one.scale}" for file, one in zip(files, loras, strict=True))


def _checked_scheduler(config: Mapping[str, Any], where: str) -> str:
    """The class name of the checkpoint's scheduler.

    One that SEGA cannot fork is no error before it is used: ``sampling.scheduler`` may name another.

    Raises:
        UserError: its configuration makes no scheduler.
    """
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise UserError(f"{where}: scheduler/scheduler_config.json has no _class_name")
    if config.get("prediction_type", "epsilon") not in ("epsilon", "sample", "v_prediction"):
        raise UserError(
            f"{where}: scheduler/scheduler_config.json: prediction_type is {config['prediction_type']!r}, "
            "but Stable Diffusion predicts epsilon, sample or v_prediction"
        )
    if schedulers.is_known(name):
        try:
            accepted = schedulers.accepted_config(name, config)
            schedulers.make(name, canonical_json(accepted), 2)
        except Exception as error:  # constructors raise whatever a wrong value runs into
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{where}: scheduler/scheduler_config.json makes no {name} ({type(error).__name__}: {reason})"
            ) from error
    return name

"""Locate, identify and validate a checkpoint, down to the shapes of its tensors, without loading it."""

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
        id: ``name@hash`` of weights and configurations, or ``name@commit`` for a hub id; then ``.variant``
            for a hub id's variant, and ``+hash`` of the LoRAs if there are any.
        scheduler: diffusers' class name.
        scheduler_config: the configuration of the checkpoint's own scheduler, as JSON.
        size: default height and width in pixels.
        checkpoint: the files to load; None after a dry run with a hub id, which downloads no weights.
    """

    id: str
    scheduler: str
    scheduler_config: str
    size: int
    checkpoint: Checkpoint | None

    @property
    def safety_checker(self) -> SafetyChecker | None:
        """The checkpoint's safety checker, if the settings want it."""
        return None if self.checkpoint is None else self.checkpoint.safety_checker

    def scheduler_for(self, name: str | None) -> tuple[str, str]:
        """Class name and configuration (JSON) of a scheduler.

        Args:
            name: ``sampling.scheduler``; None: the checkpoint's own. Another class gets those entries of the
                checkpoint's configuration that it accepts.

        Raises:
            UserError: the engine does not support this scheduler.
        """
        if name is None and not schedulers.is_known(self.scheduler):
            raise UserError(
                f"model.path: the checkpoint's own scheduler is {self.scheduler}, which SEGA cannot fork: "
                "set sampling.scheduler to another, for example euler"
            )
        class_name = self.scheduler if name is None else schedulers.class_name(name)
        return class_name, _config_for(class_name, self.scheduler_config)


@cache
def _config_for(scheduler: str, config: str) -> str:
    return canonical_json(schedulers.accepted_config(scheduler, json.loads(config)))


def describe(settings: ModelSettings, *, dry_run: bool = False) -> Model:
    """Locate and validate a checkpoint: read configurations, tokenizers and headers, and hash the weights.

    Args:
        settings: which checkpoint.
        dry_run: for a hub id, download only small configurations. If the hub cannot be reached, describe a
            model with Stable Diffusion's usual scheduler and size, and an id without hash.

    Raises:
        UserError: there is no such checkpoint, it is no Stable Diffusion, a part of it is missing or does not
            fit the others, or the hub refuses.
    """
    where = f"model.path is {settings.path!r}"
    path = _local_path(settings)
    _check_applicable(settings, path)
    if os.path.isdir(path):
        names = [file.relative_to(path).as_posix() for file in path.glob("*/*")]
        checkpoint = _from_folder(path, read_layout(path, where), names, settings, where)
        return _local_model(settings, path, checkpoint, where)
    if os.path.isfile(path):
        return _local_model(settings, path, _from_file(path, settings, where), where)
    if re.fullmatch(_HUB_ID, settings.path):
        return _from_hub(settings, where, dry_run=dry_run)
    raise UserError(
        f"{where}, but there is no such folder or file: give the path of a diffusers folder (it holds "
        "model_index.json), of a .safetensors file, or a hub id such as "
        "stable-diffusion-v1-5/stable-diffusion-v1-5"
    )


def check_unchanged(settings: ModelSettings, model: Model) -> None:
    """Check that a model is still the described one, which may be days old or from another machine.

    Args:
        settings: which checkpoint.
        model: from :func:`describe`. A hub's model cannot change, because a commit identifies it.

    Raises:
        UserError: weights, configurations or LoRAs have changed.
    """
    path = _local_path(settings)
    if model.checkpoint is None or not os.path.exists(path):
        return
    current_id = _id(settings, _identity(path, model.checkpoint))
    if current_id != model.id:
        raise UserError(
            f"model.path is {settings.path!r}, but on {os.uname().nodename} it is {current_id} now and was "
            f"{model.id} when this was planned: give all machines the same, and start the command again"
        )


def _local_path(settings: ModelSettings) -> Path:
    """The model's path on this machine, whether or not it exists."""
    return faces.PIPELINE_DIR if settings.path == "embedded" else local_path(settings.path)


def _local_model(settings: ModelSettings, path: Path, checkpoint: Checkpoint, where: str) -> Model:
    checkpoint.check()
    return _model(settings, checkpoint.layout, checkpoint, _identity(path, checkpoint), where)


def _identity(path: Path, checkpoint: Checkpoint) -> str:
    """Digest of a local folder or file, without LoRAs."""
    return (_folder_identity if os.path.isdir(path) else _file_identity)(path, checkpoint)


def _check_applicable(settings: ModelSettings, path: Path) -> None:
    """Refuse settings that would have no effect for this kind of path."""
    for key, value, applies, kind in (
        ("revision", settings.revision, not os.path.exists(path), "a hub id"),
        ("variant", settings.variant, not os.path.isfile(path), "a folder or a hub id"),
        ("config", settings.config, os.path.isfile(path), "one .safetensors file"),
    ):
        if value is not None and not applies:
            raise UserError(f"model.{key} is {value!r}, but it is for {kind} as model.path: leave it out")


def _from_folder(
    folder: Path, layout: Layout, names: Sequence[str], settings: ModelSettings, where: str
) -> Checkpoint:
    """A checkpoint in diffusers' format.

    Args:
        folder: of its files, which may not be downloaded yet.
        layout: its configurations.
        names: all its files, relative to the folder.
        settings: which variant, LoRAs and safety checker.
        where: start of an error message.
    """

    def part(name: str, kind: str, config: Config) -> Part:
        files = choose_weights(names, name, settings.variant, where)
        return Part(name, kind, config, tuple(folder / file for file in files))

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
    if checkpoint.layout.is_xl:  # the one entry of model_index.json that changes images
        lines.append(f"force_zeros_for_empty_prompt {checkpoint.layout.force_zeros_for_empty_prompt}")
    return digest_lines(lines)


def _identifying_files(folder: Path, checkpoint: Checkpoint) -> Iterator[Path]:
    """The files that determine the model's images: configurations, vocabularies and the weights in use."""
    # The scheduler is left out: its configuration is a field of every cell.
    for name in sorted((*checkpoint.parts, *checkpoint.layout.tokenizers)):
        weights = checkpoint.parts[name].files if name in checkpoint.parts else ()
        for path in sorted((folder / name).glob("*")):
            if path in weights or (path.suffix in (".json", ".txt") and path.is_file()):
                yield path


def _from_file(path: Path, settings: ModelSettings, where: str) -> Checkpoint:
    """A checkpoint in one file, in the original code's layout."""
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
    """Digest of the file and of the configurations and vocabularies used with it."""
    folders = [source for source in checkpoint.tokenizers if isinstance(source, Path)]
    vocabularies = [file for folder in folders for file in sorted(folder.glob("*")) if file.is_file()]
    layout = checkpoint.layout
    configurations = {
        "networks": {name: dict(config) for name, (_, config) in layout.networks.items()},
        "force_zeros_for_empty_prompt": layout.force_zeros_for_empty_prompt,
        "pad_tokens": [source for source in checkpoint.tokenizers if isinstance(source, str)],
    }
    digests = file_digests((path, *vocabularies))
    return digest_lines([*digests.values(), canonical_json(configurations)])


def _from_hub(settings: ModelSettings, where: str, *, dry_run: bool) -> Model:
    """A checkpoint of the hub; downloads only the files that loading reads."""
    repo = settings.path
    try:
        snapshot = hub.fetch(repo, settings.revision, _CONFIGURATIONS, where)
    except hub.HubUnreachableError:
        if not dry_run:
            raise
        # Good enough to count cells; a run would fail here.
        return Model(settings.name, "PNDMScheduler", '{"skip_prk_steps":true}', 512, None)
    layout = read_layout(snapshot, where)
    identity = snapshot.name + (f".{settings.variant}" if settings.variant else "")
    if dry_run:
        return _model(settings, layout, None, identity, where)
    names = hub.list_names(repo, snapshot, where)
    checkpoint = _from_folder(snapshot, layout, sorted(names), settings, where)
    hub.fetch(repo, snapshot.name, _files_to_load(snapshot, checkpoint), where)
    checkpoint.check()
    return _model(settings, layout, checkpoint, identity, where)


def _files_to_load(folder: Path, checkpoint: Checkpoint) -> Iterator[str]:
    """Names and patterns of the repository's files that loading reads, besides configurations."""
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
    files = [lora_file(lora) for lora in loras]
    digests = file_digests(files)
    return digest_lines(f"{digests[file]} {lora.scale}" for file, lora in zip(files, loras, strict=True))


def _checked_scheduler(config: Mapping[str, Any], where: str) -> str:
    """The class name of the checkpoint's scheduler.

    An unsupported class is no error here, because ``sampling.scheduler`` may name another.

    Raises:
        UserError: its configuration is invalid.
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
        except Exception as error:  # a wrong value can raise anything in the constructor
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{where}: scheduler/scheduler_config.json makes no {name} ({type(error).__name__}: {reason})"
            ) from error
    return name

"""Validation of the ``launch`` settings, and the device that a launch computes on."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from sega_bench.cell import abbreviated
from sega_bench.config import Config, LaunchConfig
from sega_bench.errors import UserError, check_count, nearest
from sega_bench.planning.prompts import as_text
from sega_bench.sega.models import resolve_device

LAUNCHES = ("inline", "local", "slurm")
_MAX_WORKERS = 4096
_MAX_GPUS = 64
_MAX_MINUTES = 60 * 24 * 365
_COMMON_KEYS = ("name", "workers")


def check(launch: LaunchConfig) -> None:
    """Check the launch settings as far as possible without querying a machine or a cluster.

    Raises:
        UserError: a value is invalid, or a key belongs to another launcher.
    """
    if launch.name not in LAUNCHES:
        raise UserError(
            f"launch.name is {abbreviated(launch.name)}: {nearest(launch.name, LAUNCHES)}"
            f"there are {', '.join(LAUNCHES)}"
        )
    if launch.name != "slurm":
        defaults = LaunchConfig()
        for field in fields(LaunchConfig):
            is_changed = getattr(launch, field.name) != getattr(defaults, field.name)
            if field.name not in _COMMON_KEYS and is_changed:
                raise UserError(f"launch.{field.name} is a cluster's: add launch=slurm, or leave it out")
    if launch.workers != "auto" or launch.name == "slurm":
        _check_workers(launch)
    if launch.name == "inline" and launch.workers not in ("auto", 1):
        raise UserError(
            f"launch.workers is {launch.workers}, but launch=inline is one process: add launch=local"
        )
    if launch.name == "slurm":
        _check_cluster(launch)


def _check_workers(launch: LaunchConfig) -> None:
    if type(launch.workers) is not int:
        auto = "" if launch.name == "slurm" else ", or auto for one a GPU"
        raise UserError(f"launch.workers is {abbreviated(launch.workers)}, but it must be a number{auto}")
    check_count("launch.workers", launch.workers, _MAX_WORKERS)


def _check_cluster(launch: LaunchConfig) -> None:
    check_count("launch.timeout_min", launch.timeout_min or 0, _MAX_MINUTES)
    if launch.gpus_per_worker:
        check_count("launch.gpus_per_worker", launch.gpus_per_worker, _MAX_GPUS)
    for i, line in enumerate(_setup_lines(launch.setup)):
        as_text(line, f"launch.setup[{i}]")
    for name in ("partition", "account"):
        _check_line(f"launch.{name}", getattr(launch, name))
    for name, value in launch.extra.items():
        if not isinstance(value, str | int | float) or value is False:
            raise UserError(
                f"launch.extra.{name} is {abbreviated(value)}, but it must be a text, a number, or true for "
                "an option without a value"
            )
        _check_line(f"launch.extra.{name}", value)


def _check_line(key: str, value: Any) -> None:
    """Refuse a text that would break out of its ``#SBATCH`` line in the batch script."""
    if isinstance(value, str) and not (value and value.isprintable()):
        raise UserError(f"{key} is {abbreviated(value)}: it has to be a text on one line")


def _setup_lines(setup: Any) -> list[Any]:
    if not isinstance(setup, list):
        raise UserError(
            f"launch.setup is {abbreviated(setup)}, but it must be a list: launch.setup=['module load cuda']"
        )
    return setup


def device_of(config: Config) -> torch.device:
    """The device that generates images: on this machine, or on a cluster's nodes, which cannot be queried.

    Raises:
        UserError: this machine has no such device, or no device has that name.
    """
    if config.launch.name != "slurm":
        return resolve_device(config.engine.device)
    node_default = "cuda" if config.launch.gpus_per_worker else "cpu"
    try:
        return torch.device(node_default if config.engine.device is None else config.engine.device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"engine.device is {abbreviated(config.engine.device)}: {reason}") from error

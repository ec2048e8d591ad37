"""Compose configurations from the command line with Hydra."""

from __future__ import annotations

import argparse
import io
import os
import sys
from contextlib import redirect_stderr
from tempfile import TemporaryDirectory

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from sega_bench import config as configuration
from sega_bench.config import Config
from sega_bench.errors import UserError


def flags() -> argparse.Namespace:
    """Parse the command line with Hydra's own parser; its multi-line complaints become one line."""
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return get_args_parser().parse_args()
    except SystemExit as end:
        if not end.code:  # --version
            raise
        reason = complaint.getvalue().rpartition("error: ")[2]
        raise UserError(
            f"{reason.strip()}: settings are key=value and stand together, --hydra-help lists the flags"
        ) from None


def composed(given: argparse.Namespace) -> list[Config]:
    """The configurations that Hydra composes: several for a multirun, none with ``--cfg``.

    Nothing runs inside Hydra, so whatever it raises is about the command line.
    """
    if given.experimental_rerun:
        raise UserError(
            "--experimental-rerun reads a pickle, which could run anything: give the settings instead"
        )
    if not given.shell_completion:
        configuration.check_overrides(given.overrides)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints several lines and exits 1
    configuration.register()
    configs: list[DictConfig] = []

    def collect(one: DictConfig) -> None:
        configs.append(one)

    app = hydra.main(config_path=str(configuration.CONF_DIR), config_name="config", version_base="1.3")(
        collect
    )
    with TemporaryDirectory() as scratch, configuration.translate_errors():
        # A multirun writes a note to its folder; plan.json holds everything worth keeping.
        OmegaConf.register_new_resolver("scratch", lambda: scratch, replace=True)
        try:
            app()
        except SystemExit as end:  # Hydra has printed the reason
            sys.exit(2 if end.code else 0)
    return [configuration.to_config(one) for one in configs]

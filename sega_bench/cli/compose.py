"""The command line as configurations: Hydra's part."""

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
    """The command line as Hydra's own parser reads it, whose complaints fill several lines."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return get_args_parser().parse_args()
    except SystemExit as end:
        if not end.code:  # --version
            raise
        reason = said.getvalue().rpartition("error: ")[2]
        raise UserError(
            f"{reason.strip()}: settings are key=value and stand together, --hydra-help lists the flags"
        ) from None


def composed(given: argparse.Namespace) -> list[Config]:
    """The configuration that Hydra makes of the command line: several of a multirun, none with ``--cfg``.

    It only composes, so that whatever it raises is about what was asked.
    """
    if given.experimental_rerun:
        raise UserError(
            "--experimental-rerun reads a pickle, which could run anything: give the settings instead"
        )
    if not given.shell_completion:
        configuration.check_overrides(given.overrides)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra exits 1 with several lines of its own otherwise
    configuration.register()
    made: list[DictConfig] = []

    def collect(one: DictConfig) -> None:
        made.append(one)

    app = hydra.main(config_path=str(configuration.CONF_DIR), config_name="config", version_base="1.3")(
        collect
    )
    with TemporaryDirectory() as scratch, configuration.translate_errors():
        # A multirun leaves a note in its folder; what is worth keeping is in each sweep's plan.json.
        OmegaConf.register_new_resolver("scratch", lambda: scratch, replace=True)
        try:
            app()
        except SystemExit as end:  # Hydra has said why
            sys.exit(2 if end.code else 0)
    return [configuration.to_config(one) for one in made]

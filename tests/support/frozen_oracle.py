"""Frozen latents of diffusers' deprecated SEGA pipeline, which diffusers is removing.

``tests/fixtures/oracle`` holds the settings (``cells.json``), the final latents in float64
(``latents.safetensors``) and the weights of the random checkpoint (``unet.safetensors``,
``text_encoder.safetensors``); nothing in it depends on hypothesis, and only the noise on PyTorch's generator.
``tools/freeze_oracle.py`` writes them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sega_bench.cell import Cell, Edit
from sega_bench.sega.checkpoints.locate import describe
from sega_bench.sega.checkpoints.settings import ModelSettings
from sega_bench.sega.models import StableDiffusion, load
from support import tiny_sd

FOLDER = Path(__file__).parents[1] / "fixtures" / "oracle"

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
"""The networks whose weights are frozen, and the names of their files in diffusers' format."""

_NOISE = "noise"
_OF_THE_CHECKPOINT = ("model", "dtype")


@dataclass(frozen=True)
class Case:
    """Cells that one scheduler steps together.

    Args:
        prediction_type: the checkpoint's, ``epsilon`` or ``v_prediction``.
        cells: in float64.
    """

    prediction_type: str
    cells: tuple[Cell, ...]


def noise() -> Tensor:
    """The first numbers of PyTorch's generator, from which latents and step noise are drawn."""
    return torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@cache
def document() -> dict[str, Any]:
    """Contents of ``cells.json``: the versions of the libraries, and the cells of each case."""
    return json.loads((FOLDER / "cells.json").read_bytes())


@cache
def cases() -> dict[str, Case]:
    """Every case, by its name: ``settings/...``, ``schedulers/...``, ``replay/...``, ``random/...``."""
    return {
        name: Case(case["prediction_type"], tuple(_cell(case["shared"] | own) for own in case["cells"]))
        for name, case in document()["cases"].items()
    }


@cache
def all_latents() -> dict[str, Tensor]:
    """Final latents of each case's cells, NCHW, in float64."""
    tensors = load_file(FOLDER / "latents.safetensors")
    return {name: value for name, value in tensors.items() if name != _NOISE}


def frozen_noise() -> Tensor:
    """:func:`noise` as it was when the latents were frozen."""
    return load_file(FOLDER / "latents.safetensors")[_NOISE]


@cache
def loaded(prediction_type: str) -> StableDiffusion:
    """The random checkpoint with the frozen weights, in float64 on the CPU."""
    folder = tiny_sd.write_checkpoint(
        Path(tiny_sd._folders.name) / f"frozen-{prediction_type}", prediction_type=prediction_type
    )
    for network, file in WEIGHTS.items():
        shutil.copyfile(FOLDER / f"{network}.safetensors", folder / network / file)
    model = describe(ModelSettings("frozen", str(folder)))
    return load(model, torch.device("cpu"), "float64")


def write(cases: Mapping[str, Case], latents: Mapping[str, Tensor], versions: Mapping[str, str]) -> None:
    """Write ``cells.json`` and ``latents.safetensors``.

    Args:
        cases: by name.
        latents: of each case, NCHW.
        versions: of the libraries that made the latents.
    """
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(_plain(case))}" for name, case in cases.items())
    (FOLDER / "cells.json").write_text(
        f'{{"versions": {json.dumps(versions)},\n"cases": {{\n{lines}\n}}}}\n', encoding="utf-8"
    )
    save_file({**latents, _NOISE: noise()}, FOLDER / "latents.safetensors")


def _plain(case: Case) -> dict[str, Any]:
    """A case for JSON: the settings that its cells share once, an edit as a list of its fields."""
    rows = [
        {f.name: getattr(cell, f.name) for f in fields(cell) if f.name not in _OF_THE_CHECKPOINT}
        | {"edits": [astuple(edit) for edit in cell.edits]}
        for cell in case.cells
    ]
    shared = {name: value for name, value in rows[0].items() if all(row[name] == value for row in rows)}
    own = [{name: value for name, value in row.items() if name not in shared} for row in rows]
    return {"prediction_type": case.prediction_type, "shared": shared, "cells": own}


def _cell(settings: dict[str, Any]) -> Cell:
    edits = tuple(Edit(*edit) for edit in settings.pop("edits"))
    return Cell(**settings, edits=edits, dtype="float64")

"""Synthetic finished sweeps: folders as a run leaves them, with drawn images and invented scores."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from sega_bench.analysis.results import Results
from sega_bench.cell import Cell, Edit
from sega_bench.store import PLAN_VERSION, Record, Store

MODEL = "faces@0123456789ab"
PROVENANCE = {
    "clip": {"backbone": "faces-clip", "weights": "ab12", "preprocessing": "64 px"},
    "lpips": {"name": "lpips (faces CLIP features)", "backbone": "faces-clip", "weights": "ab12"},
}


def draw_face(cell: Cell) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Draw a face whose colour depends on the seed and whose mouth widens with the edit; HWC, uint8."""
    tint = np.random.default_rng(cell.seed).integers(60, 200, 3)
    image = Image.new("RGB", (256, 256), tuple(int(c) for c in tint))
    draw = ImageDraw.Draw(image)
    draw.ellipse([48, 40, 208, 230], fill=(236, 200, 170), outline=(90, 60, 50), width=5)
    for x in (100, 156):
        draw.ellipse([x - 9, 108, x + 9, 126], fill=(40, 30, 30))
    strength = sum(e.edit_guidance_scale * (1.0 - e.edit_threshold) for e in cell.edits)
    reach = min(2 + 20 * strength, 40)
    draw.arc([128 - 40, 180 - reach, 128 + 40, 180 + reach], 0, 180, fill=(150, 30, 40), width=7)
    if any("glasses" in e.concept for e in cell.edits):
        for x in (100, 156):
            draw.ellipse([x - 24, 94, x + 24, 142], outline=(20, 20, 20), width=6)
    return np.asarray(image.resize((cell.width, cell.height), Image.Resampling.LANCZOS))


def scores(cell: Cell) -> dict[str, float]:
    """Noisy scores: with the edit's strength the gain rises, and the cost in other scores rises faster.

    A reference has only the scores that a run gives it.
    """
    noise = np.random.default_rng(int(cell.key, 16)).normal(0, 0.004)
    strength = sum(e.edit_guidance_scale * (1.0 - e.edit_threshold) for e in cell.edits)
    if cell.is_reference:
        return {"clip_prompt": 0.3 + noise}
    delta = 0.1 * (1 - np.exp(-strength)) + noise
    return {
        "clip_prompt": 0.3 + noise,
        "clip_concept": 0.2 + delta,
        "clip_concept_delta": delta,
        "clip_directional": 2 * delta,
        "clip_image": 1.0 - 0.05 * strength,
        "lpips": 0.06 * strength**2,
        "ssim": 1.0 / (1.0 + strength),
        "psnr": 30.0 - strength,
        "mse": 0.001 * strength,
        "changed_fraction": min(0.1 * strength, 1.0),
    } | {f"clip_concept_{i}": 0.2 + delta for i, _ in enumerate(cell.edits, 1)}


def record(store: Store, cell: Cell, *, worker: str = "w0", **changes: Any) -> Record:
    """A done record of a cell, with its image written to the store."""
    image, digest = store.write_image(cell, draw_face(cell))
    fields: dict[str, Any] = {
        "image": image,
        "image_sha256": digest,
        "scores": scores(cell),
        "worker": worker,
    }
    fields |= {"unet_evals": 20, "seconds": 0.25, "device": "cpu", "versions": "torch 2.14"}
    return Record(cell, "done", **(fields | changes))


def cells(
    axes: Mapping[str, Sequence[Any]],
    prompts: Sequence[str],
    concepts: Sequence[Sequence[str]],
    seeds: Sequence[int],
    size: int = 64,
) -> list[Cell]:
    """Cells of a grid, each reference before its edits. An axis value may be a list, one per concept."""
    plan: dict[str, Cell] = {}
    for prompt, seed, texts in itertools.product(prompts, seeds, concepts):
        for values in itertools.product(*axes.values()):
            setting = {"height": size, "width": size} | dict(zip(axes, values, strict=True))
            cell = _cell(prompt, seed, texts, setting)
            plan.setdefault(cell.reference().key, cell.reference())
            plan.setdefault(cell.key, cell)
    return list(plan.values())


def _cell(prompt: str, seed: int, texts: Sequence[str], setting: dict[str, Any]) -> Cell:
    of_edit = {name: value for name, value in setting.items() if name in Edit.__dataclass_fields__}
    of_cell = {name: value for name, value in setting.items() if name not in of_edit}
    edits = tuple(
        Edit(
            text, **{name: value[i] if isinstance(value, list) else value for name, value in of_edit.items()}
        )
        for i, text in enumerate(texts)
    )
    return Cell(prompt, seed, edits, model=MODEL, **of_cell)


def write_plan(store: Store, plan: Sequence[Cell], axes: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Write plan.json for these cells in the planner's format; returns its content."""
    edited = [cell for cell in plan if not cell.is_reference]
    counts = {"cells": len(plan), "edited": len(edited), "references": len(plan) - len(edited)}
    document = {
        "plan_version": PLAN_VERSION,
        "name": "synthetic",
        "description": "",
        "settings": {"edit": {}, "sampling": {"height": 64}},
        "model": {"id": MODEL, "name": "faces", "path": None},
        "axes": dict(axes),
        "prompts": list(dict.fromkeys(cell.prompt for cell in plan)),
        "concepts": [list(c) for c in dict.fromkeys(tuple(e.concept for e in cell.edits) for cell in edited)],
        "seeds": list(dict.fromkeys(cell.seed for cell in plan)),
        "counts": counts | {"merged": 0, "same_as_reference": 0, "unet_evals": 20 * len(plan)},
        "keys": [cell.key for cell in plan],
        "engine": {},
        "scores": PROVENANCE,
        "versions": {"torch": "2.14"},
        "code_version": "0",
    }
    store.write_plan(document)
    return document


AXES = {"edit_threshold": [0.5, 0.8, 0.9, 0.95], "edit_guidance_scale": [2.0, 5.0, 8.0]}
PROMPTS = ["a photo of the face of a woman"]
CONCEPTS = [["smiling, smile"], ["glasses, wearing glasses"]]


def finished(
    root: Path,
    axes: Mapping[str, Sequence[Any]] = AXES,
    prompts: Sequence[str] = PROMPTS,
    concepts: Sequence[Sequence[str]] = CONCEPTS,
    seeds: Sequence[int] = (0, 1, 2),
    size: int = 64,
) -> Store:
    """Write the folder of a finished grid sweep."""
    store = Store(root)
    store.prepare()
    plan = cells(axes, prompts, concepts, seeds, size)
    write_plan(store, plan, axes)
    store.append("w0", [record(store, cell) for cell in plan])
    return store


def scattered(root: Path) -> Store:
    """Write the folder of a study's sweep: scattered settings, few of which share a value."""
    trials = [(0.5, 1.0), (0.6, 1.0), (0.7, 2.0), (0.7, 3.0), (0.8, 4.0), (0.9, 5.0), (0.4, 6.0)]
    settings = [
        {"edit_threshold": [threshold], "edit_guidance_scale": [scale]} for threshold, scale in trials
    ]
    repeated = [cell for axes in settings for cell in cells(axes, PROMPTS, CONCEPTS, [0, 1, 2], size=8)]
    plan = list({cell.key: cell for cell in repeated}.values())
    store = Store(root)
    store.prepare()
    store.append("w0", [record(store, cell) for cell in plan])
    write_plan(store, plan, {"edit_threshold": [], "edit_guidance_scale": []})
    return store


LARGE_AXES = {
    "edit_threshold": [0.5, 0.6, 0.7, 0.8, 0.9, 0.91, 0.92, 0.93, 0.94, 0.95],
    "edit_guidance_scale": [float(scale) for scale in range(1, 11)],
}
_LINKS = 20_000
"""Hard links to one image file; ext4 allows 65,000."""


def large(root: Path, count: int) -> Store:
    """Write the folder of about ``count`` cells with all scores of the embedded model.

    Its images are hard links to a few files.
    """
    store = Store(root)
    store.prepare()
    seeds = range(max(1, count // 200))
    plan = cells(LARGE_AXES, PROMPTS, CONCEPTS, seeds)
    write_plan(store, plan, LARGE_AXES)
    for start in range(0, len(plan), _LINKS):
        part = plan[start : start + _LINKS]
        store.write_image(part[0], draw_face(part[0]))
        source = store.image_path(part[0].key)
        for cell in part[1:]:
            store.image_path(cell.key).parent.mkdir(exist_ok=True)
            os.link(source, store.image_path(cell.key))
        store.append("w0", [_scored(store, cell) for cell in part])
    return store


def _scored(store: Store, cell: Cell) -> Record:
    verdict: dict[str, Any] = {}
    if cell.edits:
        chance = int(cell.key, 16) / 16**16
        verdict = {name: float(chance > 0.1) for name in ("success", "success_1", "attribute_success")}
        verdict |= {
            "attribute_leakage": chance,
            "locality": 0.7 + chance / 5,
            "guided_fraction": chance / 4,
        }
        verdict |= {"attribute_leaked": ["hair colour"] if chance > 0.8 else []}
    return Record(
        cell,
        "done",
        store.image_path(cell.key).relative_to(store.root).as_posix(),
        f"{int(cell.key, 16) ** 4:064x}",
        scores(cell) | verdict,
        unet_evals=20,
        seconds=0.25,
        worker="w0",
        device="cpu",
        versions='{"diffusers": "0.36.0", "sega_bench": "0.1.0", "torch": "2.14.0", "transformers": "4.57"}',
    )


def results_of(frame: pd.DataFrame, axes: Sequence[str], store: Store | None = None) -> Results:
    """The results of a frame, without a folder."""
    plan = {
        "name": frame.attrs.get("name", "synthetic"),
        "axes": {axis: [] for axis in axes},
        "scores": frame.attrs.get("scores", PROVENANCE),
    }
    return Results(store or Store(Path("nowhere")), plan, frame, "0" * 64)

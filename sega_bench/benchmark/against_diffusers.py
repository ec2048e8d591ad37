"""One sweep by this engine, by a plain loop over diffusers' pipeline, and by a process for every cell.

All use the same checkpoint, device, precision and number of threads; diffusers' pipeline is as it comes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sega_bench import scores
from sega_bench.benchmark import one_cell, oracle
from sega_bench.benchmark.clock import Timing, interleave, ratio, seconds
from sega_bench.cell import Cell
from sega_bench.config import compose
from sega_bench.execution import jobs, runner
from sega_bench.planning.planner import Plan, plan
from sega_bench.sega.batching import Batching
from sega_bench.sega.denoiser import Denoiser
from sega_bench.sega.models import load, resolve_device
from sega_bench.sega.wave import generate
from sega_bench.store import Store

SWEEP = (
    "name=benchmark",
    "prompts=[a photo of the face of a woman]",
    "seeds=2",
    'concepts=["smiling, smile","glasses, wearing glasses"]',
    "+axes.edit_threshold=[0.5,0.75,0.9,0.95,0.99]",
    "+axes.edit_guidance_scale=[3,6]",
    "sampling.num_inference_steps=30",
    "edit.edit_warmup_steps=6",
    "wandb.mode=disabled",
)
"""40 edited cells and 2 references."""
SHIPPED = ("+sweep=thresholds", "wandb.mode=disabled")
"""Compared with a process for every cell as well: in a sweep of usual size, starting weighs less."""

Images = dict[str, npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Comparison:
    """How long the same cells took.

    Args:
        cells, unet_evals, unet_evals_diffusers: how much there was to do.
        images: images alone, the model loaded before: ``engine``, ``diffusers``, ``engine compiled``.
        whole: from loading the model to the last file, with scores: ``engine``, ``diffusers``.
        commands: seconds of ``python -m sega_bench``, from its start to its tables and grids, by how many
            cells: of this sweep and of the shipped ``thresholds``.
        process_a_cell: of each process of a sample, which loads, makes, scores and writes one cell.
        compile_seconds: the first images with ``engine.compile``, less the others; None if not asked for.
        mean_difference, max_difference: of the engine's pictures from diffusers', of 255.
    """

    cells: int
    unet_evals: int
    unet_evals_diffusers: int
    images: Mapping[str, Timing]
    whole: Mapping[str, Timing]
    commands: Mapping[int, float]
    process_a_cell: Sequence[float]
    compile_seconds: float | None
    mean_difference: float
    max_difference: int

    def ratios(self) -> dict[str, float]:
        """How many times as long as the engine the others took."""
        a_cell = median(self.process_a_cell)
        found = {
            "loop over diffusers, images": ratio(self.images, "diffusers", "engine"),
            "loop over diffusers, loading, scores and files too": ratio(self.whole, "diffusers", "engine"),
        }
        for cells, command in self.commands.items():
            found[f"a process for every cell, of {cells}"] = cells * a_cell / command
        if "engine compiled" in self.images:
            found["loop over diffusers, images, compiled"] = ratio(
                self.images, "diffusers", "engine compiled"
            )
        return found


def compare(overrides: Sequence[str], repeats: int, processes: int, *, compiled: bool) -> Comparison:
    """Run the sweep in all ways.

    Args:
        overrides: of its configuration: model, device, sizes.
        repeats: of everything but the processes.
        processes: how many cells get a process of their own.
        compiled: whether to take times with ``engine.compile`` too.
    """
    made = plan(compose(*SWEEP, *overrides))
    device = resolve_device(made.config.engine.device)
    with TemporaryDirectory() as folder:
        made.config.output_dir = folder
        ways, compile_seconds = _ways_to_images(made, device, compiled=compiled)
        images = interleave(ways, repeats, device)
        difference = _difference(ways["engine"](), ways["diffusers"]())
        both = {"engine": partial(_whole, made), "diffusers": partial(_whole_loop, made)}
        whole = interleave(both, repeats, device)
        counts = made.counts()
        return Comparison(
            cells=counts["cells"],
            unet_evals=counts["unet_evals"],
            unet_evals_diffusers=counts["unet_evals_diffusers"],
            images=images,
            whole=whole,
            commands={
                len(plan(compose(*sweep, *overrides)).cells): _process(
                    "sega_bench", *sweep, *overrides, f"output_dir={folder}/command"
                )
                for sweep in (SWEEP, SHIPPED)
            },
            process_a_cell=[
                _process("sega_bench.benchmark.one_cell", one_cell.task(made, cell, folder))
                for cell in made.cells[:processes]
            ],
            compile_seconds=compile_seconds,
            mean_difference=float(difference.mean()),
            max_difference=int(difference.max()),
        )


def _ways_to_images(
    made: Plan, device: torch.device, *, compiled: bool
) -> tuple[dict[str, Callable[[], Images]], float | None]:
    """Functions that make all images with networks that are loaded, and how long compiling took."""
    dtype = made.cells[0].dtype
    pipeline = one_cell.load_pipeline(made, device, dtype)
    batching = jobs.batching_for(made, made.waves, asdict(made.config.engine))
    ways: dict[str, Callable[[], Images]] = {
        "engine": partial(_engine, load(made.model, device, dtype), made.cells, batching),
        "diffusers": partial(_loop, pipeline, made.cells),
    }
    if not compiled:
        return ways, None
    faster = partial(_engine, load(made.model, device, dtype, compile=True), made.cells, batching)
    first, second = seconds(faster, device), seconds(faster, device)
    return ways | {"engine compiled": faster}, first - second


def _engine(denoiser: Denoiser, cells: Sequence[Cell], batching: Batching) -> Images:
    outcomes = generate(denoiser, cells, batching)
    return {outcome.cell.key: outcome.image_HWC for outcome in outcomes if outcome.image_HWC is not None}


def _loop(pipeline: Any, cells: Sequence[Cell]) -> Images:
    return {cell.key: oracle.make_image(pipeline, cell) for cell in cells}


def _difference(ours: Images, theirs: Images) -> npt.NDArray[np.int16]:
    """Absolute differences of all pixels."""
    pairs = [(ours[key].astype(np.int16), theirs[key].astype(np.int16)) for key in theirs]
    return np.abs(np.stack([a - b for a, b in pairs]))


def _whole(made: Plan) -> None:
    """The runner, from loading to the last file."""
    with TemporaryDirectory(dir=made.config.output_dir) as folder:
        config = replace(made.config, output_dir=folder)
        for _ in runner.execute(jobs.prepare(replace(made, config=config))):
            pass


def _whole_loop(made: Plan) -> None:
    """The same with diffusers: load, loop, score with the same scorers, write the same files."""
    device, dtype = resolve_device(made.config.engine.device), made.cells[0].dtype
    with TemporaryDirectory(dir=made.config.output_dir) as folder:
        scorers = scores.build(one_cell.score_settings(made.config), device)
        images = _loop(one_cell.load_pipeline(made, device, dtype), made.cells)
        one_cell.keep(Store(Path(folder)), scorers, made.cells, images)


def _process(*arguments: str) -> float:
    """Wall time of a Python process, from its start to its end."""
    start = perf_counter()
    subprocess.run([sys.executable, "-m", *arguments], check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - start

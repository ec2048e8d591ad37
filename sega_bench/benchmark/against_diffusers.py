"""Compare this engine with a loop over diffusers' pipeline and with one process for each cell.

All use the same checkpoint, device, precision and number of threads. Diffusers' pipeline is unmodified.
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
from sega_bench.planning import planner
from sega_bench.planning.planner import Plan
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
"""A sweep of usual size: compared with one process for each cell too, because start-up weighs less in it."""

Images = dict[str, npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Comparison:
    """Wall times of the same cells in different ways.

    Args:
        cells, unet_evals, unet_evals_diffusers: the amount of work.
        images: time of the images alone, with a loaded model: ``engine``, ``diffusers``, ``engine compiled``.
        whole: time from loading the model to the last file, scores included: ``engine``, ``diffusers``.
        commands: seconds that ``python -m sega_bench`` takes, tables and grids included, by the number of
            cells: this sweep and the shipped ``thresholds``.
        process_a_cell: seconds of each sampled process, which loads, generates, scores and writes one cell.
        compile_seconds: time that compilation adds to the first images; None without ``engine.compile``.
        mean_difference, max_difference: between the engine's images and diffusers', of 255.
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
        """The other times divided by the engine's."""
        process_seconds = median(self.process_a_cell)
        ratios = {
            "loop over diffusers, images": ratio(self.images, "diffusers", "engine"),
            "loop over diffusers, loading, scores and files too": ratio(self.whole, "diffusers", "engine"),
        }
        for cells, command in self.commands.items():
            ratios[f"a process for every cell, of {cells}"] = cells * process_seconds / command
        if "engine compiled" in self.images:
            ratios["loop over diffusers, images, compiled"] = ratio(
                self.images, "diffusers", "engine compiled"
            )
        return ratios


def compare(overrides: Sequence[str], repeats: int, processes: int, *, compiled: bool) -> Comparison:
    """Run the sweep in all ways.

    Args:
        overrides: words of its command line: model, device, sizes.
        repeats: how often to time everything but the processes.
        processes: the number of cells that run in a process each.
        compiled: whether to measure ``engine.compile`` too.
    """
    plan = planner.plan(compose(*SWEEP, *overrides))
    device = resolve_device(plan.config.engine.device)
    with TemporaryDirectory() as folder:
        plan.config.output_dir = folder
        ways, compile_seconds = _image_functions(plan, device, compiled=compiled)
        images = interleave(ways, repeats, device)
        difference = _difference(ways["engine"](), ways["diffusers"]())
        functions = {"engine": partial(_whole, plan), "diffusers": partial(_whole_loop, plan)}
        whole = interleave(functions, repeats, device)
        counts = plan.counts()
        return Comparison(
            cells=counts["cells"],
            unet_evals=counts["unet_evals"],
            unet_evals_diffusers=counts["unet_evals_diffusers"],
            images=images,
            whole=whole,
            commands={
                len(planner.plan(compose(*sweep, *overrides)).cells): _process(
                    "sega_bench", *sweep, *overrides, f"output_dir={folder}/command"
                )
                for sweep in (SWEEP, SHIPPED)
            },
            process_a_cell=[
                _process("sega_bench.benchmark.one_cell", one_cell.task_json(plan, cell, folder))
                for cell in plan.cells[:processes]
            ],
            compile_seconds=compile_seconds,
            mean_difference=float(difference.mean()),
            max_difference=int(difference.max()),
        )


def _image_functions(
    plan: Plan, device: torch.device, *, compiled: bool
) -> tuple[dict[str, Callable[[], Images]], float | None]:
    """Functions that generate all images with loaded networks, and the time that compilation took."""
    dtype = plan.cells[0].dtype
    pipeline = one_cell.load_pipeline(plan, device, dtype)
    batching = jobs.batching_for(plan, plan.waves, asdict(plan.config.engine))
    ways: dict[str, Callable[[], Images]] = {
        "engine": partial(_engine, load(plan.model, device, dtype), plan.cells, batching),
        "diffusers": partial(_loop, pipeline, plan.cells),
    }
    if not compiled:
        return ways, None
    compiled_engine = partial(_engine, load(plan.model, device, dtype, compile=True), plan.cells, batching)
    first, second = seconds(compiled_engine, device), seconds(compiled_engine, device)
    return ways | {"engine compiled": compiled_engine}, first - second


def _engine(denoiser: Denoiser, cells: Sequence[Cell], batching: Batching) -> Images:
    outcomes = generate(denoiser, cells, batching)
    return {outcome.cell.key: outcome.image_HWC for outcome in outcomes if outcome.image_HWC is not None}


def _loop(pipeline: Any, cells: Sequence[Cell]) -> Images:
    return {cell.key: oracle.make_image(pipeline, cell) for cell in cells}


def _difference(ours: Images, theirs: Images) -> npt.NDArray[np.int16]:
    """Absolute differences of all pixels."""
    pairs = [(ours[key].astype(np.int16), theirs[key].astype(np.int16)) for key in theirs]
    return np.abs(np.stack([a - b for a, b in pairs]))


def _whole(plan: Plan) -> None:
    """Run the engine from loading the model to the last file."""
    with TemporaryDirectory(dir=plan.config.output_dir) as folder:
        config = replace(plan.config, output_dir=folder)
        for _ in runner.execute(jobs.prepare(replace(plan, config=config))):
            pass


def _whole_loop(plan: Plan) -> None:
    """Do the same with diffusers: load, loop, score with the same scorers, write the same files."""
    device, dtype = resolve_device(plan.config.engine.device), plan.cells[0].dtype
    with TemporaryDirectory(dir=plan.config.output_dir) as folder:
        scorers = scores.build(one_cell.score_settings(plan.config), device)
        images = _loop(one_cell.load_pipeline(plan, device, dtype), plan.cells)
        one_cell.score_and_write(Store(Path(folder)), scorers, plan.cells, images)


def _process(*arguments: str) -> float:
    """Wall time of a Python process, start-up included."""
    start = perf_counter()
    subprocess.run([sys.executable, "-m", *arguments], check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - start

"""A whole run against its floor: the passes through the networks that it needs, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from sega_bench.benchmark.clock import interleave, seconds
from sega_bench.benchmark.forwards import ENGINE, Way
from sega_bench.benchmark.one_cell import score_settings
from sega_bench.config import compose
from sega_bench.execution.generator import ImageGenerator
from sega_bench.execution.grader import Grader
from sega_bench.execution.jobs import batching_for
from sega_bench.planning.planner import Plan, plan
from sega_bench.scores import build
from sega_bench.scores.scoring import Scorer, reproducible
from sega_bench.sega.batching import Batching, decode
from sega_bench.sega.models import StableDiffusion, load, resolve_device
from sega_bench.store import Store

SWEEP = ("+sweep=thresholds", "seeds=5", "wandb.mode=disabled")
"""200 edited cells and 5 references."""

_SHARE = 8
"""Every eighth of the evaluations stands for all: seconds, where a pass takes a tenth of one."""


@dataclass(frozen=True)
class Floor:
    """A run and its floor, in seconds.

    Args:
        cells, unet_evals: of the run.
        runs: each from its first step to its last file.
        micro: the size of micro-batches at which the UNet is fastest.
        unet, vae, scorers: their passes.
    """

    cells: int
    unet_evals: int
    runs: Sequence[float]
    micro: int
    unet: float
    vae: float
    scorers: float

    @property
    def seconds(self) -> float:
        """The floor."""
        return self.unet + self.vae + self.scorers

    @property
    def ratio(self) -> float:
        """How many times the floor the run took."""
        return median(self.runs) / self.seconds


def measure(overrides: Sequence[str], batches: Sequence[int], repeats: int) -> Floor:
    """Run a sweep, and by turns the passes it needs.

    Args:
        overrides: of its configuration: model, device, sizes.
        batches: micro-batch sizes to look for the fastest among.
        repeats: of everything.
    """
    made = plan(compose(*SWEEP, *overrides))
    config, counts = made.config, made.counts()
    device = resolve_device(config.engine.device)
    denoiser = load(made.model, device, made.cells[0].dtype, compile=config.engine.compile)
    scorers = build(score_settings(config), device)
    batching = batching_for(made, made.waves, asdict(config.engine))
    way = Way(ENGINE, denoiser)
    micro = min(batches, key=partial(_seconds_a_row, way, repeats))
    times = ceil(counts["unet_evals"] / _SHARE / way.rows(micro))
    timings = interleave(
        {
            "run": partial(_run, made, denoiser, scorers, batching),
            "unet": partial(_repeat, partial(way.run, micro), times),
            "vae": partial(_decode, made, denoiser),
            "scorers": partial(_features, made, scorers),
        },
        repeats,
        device,
    )
    return Floor(
        cells=counts["cells"],
        unet_evals=counts["unet_evals"],
        runs=timings["run"].all,
        micro=micro,
        unet=timings["unet"].median / (times * way.rows(micro)) * counts["unet_evals"],
        vae=timings["vae"].median,
        scorers=timings["scorers"].median,
    )


def _seconds_a_row(way: Way, repeats: int, batch: int) -> float:
    way.run(batch)  # the first pass is another matter
    device = way.denoiser.device
    return median(seconds(partial(way.run, batch), device) for _ in range(repeats)) / way.rows(batch)


def _repeat(function: Callable[[], None], times: int) -> None:
    for _ in range(times):
        function()


def _run(made: Plan, denoiser: StableDiffusion, scorers: Sequence[Scorer], batching: Batching) -> None:
    """All waves, scored and written, with networks that are loaded."""
    with TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.prepare()
        generator = ImageGenerator(
            store=store,
            denoiser=denoiser,
            grader=Grader(store, scorers, made.config.scores.batch_size),
            config=made.config,
            batching=replace(batching),
            worker="0",
            device="",
            versions="",
            on_evaluations=lambda count: None,
        )
        _exhaust(generator.generate(made.waves))


def _decode(made: Plan, denoiser: StableDiffusion) -> None:
    shape = denoiser.latent_shape(made.cells[0].height, made.cells[0].width)
    latents_NCHW = torch.randn(len(made.cells), *shape, dtype=denoiser.latent_dtype, device=denoiser.device)
    _exhaust(decode(denoiser, latents_NCHW, Batching()))


def _features(made: Plan, scorers: Sequence[Scorer]) -> None:
    """Every image once through every scorer's networks, as in a run."""
    size = made.config.scores.batch_size
    image_BHW3 = torch.randint(
        0, 256, (size, made.cells[0].height, made.cells[0].width, 3), dtype=torch.uint8
    )
    with reproducible(), torch.inference_mode():
        for _ in range(0, len(made.cells), size):
            for scorer in scorers:
                scorer.features(image_BHW3)


def _exhaust(items: Iterable[object]) -> None:
    for _ in items:
        pass

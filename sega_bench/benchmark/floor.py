"""Compare a whole run with its floor: the time of the network passes that it needs, and nothing else."""

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
from sega_bench.planning import planner
from sega_bench.planning.planner import Plan
from sega_bench.scores import build
from sega_bench.scores.scoring import Scorer, reproducible
from sega_bench.sega.batching import Batching, decode
from sega_bench.sega.models import StableDiffusion, load, resolve_device
from sega_bench.store import Store

SWEEP = ("+sweep=thresholds", "seeds=5", "wandb.mode=disabled")
"""200 edited cells and 5 references."""

_SHARE = 8
"""One eighth of the UNet evaluations is timed and extrapolated: still seconds, where a pass takes 0.1 s."""


@dataclass(frozen=True)
class Floor:
    """A run and its floor, in seconds.

    Args:
        cells, unet_evals: the amount of work.
        runs: time of each run, from its first step to its last file.
        micro: the micro-batch size at which the UNet is fastest.
        unet, vae, scorers: time of the passes through each of them.
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
        """The floor: all passes together."""
        return self.unet + self.vae + self.scorers

    @property
    def ratio(self) -> float:
        """The run's time divided by the floor."""
        return median(self.runs) / self.seconds


def measure(overrides: Sequence[str], batches: Sequence[int], repeats: int) -> Floor:
    """Time a sweep and, in turn, the passes that it needs.

    Args:
        overrides: words of its command line: model, device, sizes.
        batches: micro-batch sizes from which to take the fastest.
        repeats: how often to time everything.
    """
    plan = planner.plan(compose(*SWEEP, *overrides))
    config, counts = plan.config, plan.counts()
    device = resolve_device(config.engine.device)
    denoiser = load(plan.model, device, plan.cells[0].dtype, compile=config.engine.compile)
    scorers = build(score_settings(config), device)
    batching = batching_for(plan, plan.waves, asdict(config.engine))
    way = Way(ENGINE, denoiser)
    micro = min(batches, key=partial(_seconds_per_row, way, repeats))
    times = ceil(counts["unet_evals"] / _SHARE / way.rows(micro))
    timings = interleave(
        {
            "run": partial(_run, plan, denoiser, scorers, batching),
            "unet": partial(_repeat, partial(way.run, micro), times),
            "vae": partial(_decode, plan, denoiser),
            "scorers": partial(_extract_features, plan, scorers),
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


def _seconds_per_row(way: Way, repeats: int, batch: int) -> float:
    way.run(batch)  # the first pass also compiles and allocates
    device = way.denoiser.device
    return median(seconds(partial(way.run, batch), device) for _ in range(repeats)) / way.rows(batch)


def _repeat(function: Callable[[], None], times: int) -> None:
    for _ in range(times):
        function()


def _run(plan: Plan, denoiser: StableDiffusion, scorers: Sequence[Scorer], batching: Batching) -> None:
    """Generate, score and write all waves with loaded networks."""
    with TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.prepare()
        generator = ImageGenerator(
            store=store,
            denoiser=denoiser,
            grader=Grader(store, scorers, plan.config.scores.batch_size),
            config=plan.config,
            batching=replace(batching),
            worker="0",
            device="",
            versions="",
            on_evaluations=lambda count: None,
        )
        _consume(generator.generate(plan.waves))


def _decode(plan: Plan, denoiser: StableDiffusion) -> None:
    shape = denoiser.latent_shape(plan.cells[0].height, plan.cells[0].width)
    latents_NCHW = torch.randn(len(plan.cells), *shape, dtype=denoiser.latent_dtype, device=denoiser.device)
    _consume(decode(denoiser, latents_NCHW, Batching()))


def _extract_features(plan: Plan, scorers: Sequence[Scorer]) -> None:
    """Pass every image once through every scorer's networks, as a run does."""
    size = plan.config.scores.batch_size
    image_BHW3 = torch.randint(
        0, 256, (size, plan.cells[0].height, plan.cells[0].width, 3), dtype=torch.uint8
    )
    with reproducible(), torch.inference_mode():
        for _ in range(0, len(plan.cells), size):
            for scorer in scorers:
                scorer.features(image_BHW3)


def _consume(items: Iterable[object]) -> None:
    for _ in items:
        pass

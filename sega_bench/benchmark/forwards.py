"""Measure one UNet evaluation: time and memory by batch size and way of running it, and share of the peak."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sega_bench.benchmark import one_cell
from sega_bench.benchmark.clock import interleave, seconds
from sega_bench.benchmark.peak import peak_bytes
from sega_bench.config import compose
from sega_bench.planning import planner
from sega_bench.planning.planner import Plan
from sega_bench.sega import onednn
from sega_bench.sega.batching import Batching
from sega_bench.sega.denoiser import Conditioning
from sega_bench.sega.models import StableDiffusion, accelerated, resolve_device
from sega_bench.sega.pooling import Request, evaluate

PROMPT = "a photo of the face of a woman"
DIFFUSERS = "diffusers' UNet"
ENGINE = "this engine"
COMPILED = "this engine, compiled"


@dataclass(frozen=True)
class Forward:
    """One way of running the UNet at one batch size.

    Args:
        way: the name of the way.
        dtype: precision of the network.
        batch: evaluations in one pass.
        milliseconds: time of one evaluation while all threads are occupied.
        peak_mb: peak memory of a pass without weights, in 10**6 bytes; None where it is not measured.
        utilisation: floating-point operations a second, divided by those that a large matrix product or
            convolution reaches on the device in this precision.
        first_seconds: time of the first pass, which includes compilation.
    """

    way: str
    dtype: str
    batch: int
    milliseconds: float
    peak_mb: float | None
    utilisation: float
    first_seconds: float


@dataclass(frozen=True)
class Way:
    """A way of running the UNet.

    Args:
        name: as in the table.
        denoiser: holds the UNet.
        is_threaded: whether each CPU thread runs its own batch.
    """

    name: str
    denoiser: StableDiffusion
    is_threaded: bool = True

    def rows(self, batch: int) -> int:
        """The number of rows that occupies all threads, with two batches each."""
        threads = torch.get_num_threads() if self.is_threaded and self.denoiser.device.type == "cpu" else 1
        return 2 * batch * threads

    def run(self, batch: int) -> None:
        """Evaluate that many rows in batches of the given size."""
        rows = self.rows(batch)
        latents_ECHW, timestep, conditioning_E = self.inputs(rows)
        if self.is_threaded:
            request = Request(latents_ECHW, timestep, conditioning_E)
            evaluate(self.denoiser, request, Batching(batch), lambda count: None)
            return
        for start in range(0, rows, batch):
            conditioning_B = {name: value[start : start + batch] for name, value in conditioning_E.items()}
            self.denoiser.predict(latents_ECHW[start : start + batch], timestep, conditioning_B)

    def inputs(self, rows: int) -> tuple[Tensor, Tensor, Conditioning]:
        """Noise, a timestep and the prompt's embeddings, the same for every row."""
        config, device = self.denoiser.unet.config, self.denoiser.device
        shape = (rows, config.in_channels, config.sample_size, config.sample_size)
        latents_ECHW = torch.randn(shape, dtype=self.denoiser.latent_dtype, device=device)
        conditioning = self.denoiser.encode(PROMPT)
        conditioning_E = {name: value.expand(rows, *value.shape) for name, value in conditioning.items()}
        return latents_ECHW, torch.full((), 500, device=device), conditioning_E

    def peak_bytes(self, batch: int) -> int:
        """Peak bytes of tensors in one pass, without weights."""
        predict = partial(self.denoiser.predict, *self.inputs(batch))
        device = self.denoiser.device
        if device.type != "cuda":
            return peak_bytes(predict)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        predict()
        return torch.cuda.max_memory_allocated(device) - before


def measure(
    overrides: Sequence[str], batches: Sequence[int], compiled_batches: Sequence[int], repeats: int
) -> list[Forward]:
    """Measure every way at every batch size.

    Args:
        overrides: words of the command line: model, device.
        batches: sizes.
        compiled_batches: the sizes at which the compiled way is measured too; each compiles again.
        repeats: how often to time each pass; the median is taken.
    """
    plan = planner.plan(compose(f"prompts=[{PROMPT}]", *overrides))
    device = resolve_device(plan.config.engine.device)
    results: list[Forward] = []
    for dtype in ("float16", "bfloat16") if device.type == "cuda" else ("float32",):
        ways = list(_ways(plan, device, dtype))
        attained = _attained_flops(device, getattr(torch, dtype), repeats)
        for batch in batches:
            chosen = [way for way in ways if way.name != COMPILED or batch in compiled_batches]
            results += _measure(chosen, dtype, batch, repeats, attained)
    return results


def _measure(ways: Sequence[Way], dtype: str, batch: int, repeats: int, attained: float) -> Iterator[Forward]:
    device, flops = ways[0].denoiser.device, _flops(ways[0])
    first = {way.name: seconds(partial(way.run, batch), device) for way in ways}
    timings = interleave({way.name: partial(way.run, batch) for way in ways}, repeats, device)
    for way in ways:
        row_seconds = timings[way.name].median / way.rows(batch)
        yield Forward(
            way=way.name,
            dtype=dtype,
            batch=batch,
            milliseconds=1000 * row_seconds,
            peak_mb=way.peak_bytes(batch) / 1e6 if way.name != COMPILED else None,
            utilisation=flops / row_seconds / attained,
            first_seconds=first[way.name],
        )


def _ways(plan: Plan, device: torch.device, dtype: str) -> Iterator[Way]:
    """The steps from diffusers' unmodified network to the engine's, one change at a time."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        one_cell.checkpoint_folder(plan),
        variant=plan.config.model.variant,
        torch_dtype=getattr(torch, dtype),
        use_safetensors=True,
        safety_checker=None,
        requires_safety_checker=False,
    ).to(device)

    def network(
        *, channels_last: bool = True, run: Callable[[Any], Callable[..., Any]] | None = None
    ) -> StableDiffusion:
        unet = copy.deepcopy(pipeline.unet)
        if channels_last:
            unet = unet.to(memory_format=torch.channels_last)
        run_unet = run(unet) if run else None
        return StableDiffusion(
            [pipeline.tokenizer], [pipeline.text_encoder], unet, pipeline.vae, run_unet=run_unet
        )

    yield Way(DIFFUSERS, network(channels_last=False), is_threaded=False)
    yield Way("channels_last", network(), is_threaded=False)
    if device.type == "cpu":
        yield Way("channels_last, a batch a thread", network())
        packed = network()
        onednn.pack_layers(packed.unet)
        yield Way("the same, weights packed for oneDNN", packed)
    else:
        plain = network()
        plain.unet.set_attn_processor(AttnProcessor())
        yield Way("channels_last, without SDPA", plain)
    yield Way(ENGINE, network(run=accelerated))
    yield Way(COMPILED, network(run=partial(accelerated, compile=True)))


def _flops(way: Way) -> float:
    """Floating-point operations of one evaluation, in linear layers, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        way.denoiser.predict(*way.inputs(1))
    return float(counter.get_total_flops())


def _attained_flops(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Floating-point operations a second of a large matrix product or convolution, whichever reaches more."""
    n, channels = (8192, 512) if device.type == "cuda" else (1024, 128)
    square_NN = torch.randn(n, n, dtype=dtype, device=device)
    image_BCHW = torch.randn(32, channels, 32, 32, dtype=dtype, device=device)
    image_BCHW = image_BCHW.to(memory_format=torch.channels_last)
    kernel = torch.randn(channels, channels, 3, 3, dtype=dtype, device=device)
    kernel = kernel.to(memory_format=torch.channels_last)
    flops = {"product": 2 * n**3, "convolution": 2 * 9 * channels * image_BCHW.numel()}
    timings = interleave(
        {
            "product": lambda: square_NN @ square_NN,
            "convolution": lambda: torch.nn.functional.conv2d(image_BCHW, kernel, padding=1),
        },
        max(5, repeats),
        device,
    )
    # The fastest repeat: a peak is wanted, not a typical time.
    return max(flops[name] / min(timing.all) for name, timing in timings.items())

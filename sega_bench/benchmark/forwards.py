"""One evaluation of the UNet: time by batch size and way of running it, memory, share of the peak."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sega_bench.benchmark import one_cell
from sega_bench.benchmark.clock import interleave, seconds
from sega_bench.benchmark.peak import peak_bytes
from sega_bench.config import compose
from sega_bench.planning.planner import Plan, plan
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
        way: in words.
        dtype: of the network.
        batch: evaluations in one pass.
        milliseconds: of one evaluation, while all threads are occupied.
        peak_mb: tensors that live at once in a pass, without weights, in 10**6 bytes; None if not known.
        utilisation: floating-point operations a second, as a share of the most that a large matrix product or
            convolution reaches on the device in this precision.
        first_seconds: of the first pass: of compiling, mostly, where that is part of it.
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
        name: in words.
        denoiser: with the UNet to be run.
        is_apart: whether each thread of a CPU has a batch of its own.
    """

    name: str
    denoiser: StableDiffusion
    is_apart: bool = True

    def rows(self, batch: int) -> int:
        """Enough to occupy all threads."""
        threads = torch.get_num_threads() if self.is_apart and self.denoiser.device.type == "cpu" else 1
        return 2 * batch * threads

    def run(self, batch: int) -> None:
        """Evaluate so many rows."""
        rows = self.rows(batch)
        latents_ECHW, timestep, conditioning_E = self.inputs(rows)
        if self.is_apart:
            request = Request(latents_ECHW, timestep, conditioning_E)
            evaluate(self.denoiser, request, Batching(batch), lambda count: None)
            return
        for start in range(0, rows, batch):
            some = {name: value[start : start + batch] for name, value in conditioning_E.items()}
            self.denoiser.predict(latents_ECHW[start : start + batch], timestep, some)

    def inputs(self, rows: int) -> tuple[Tensor, Tensor, Conditioning]:
        """Noise, a timestep, and what is read of the prompt, once for every row."""
        config, device = self.denoiser.unet.config, self.denoiser.device
        shape = (rows, config.in_channels, config.sample_size, config.sample_size)
        latents_ECHW = torch.randn(shape, dtype=self.denoiser.latent_dtype, device=device)
        texts = self.denoiser.encode(PROMPT)
        conditioning_E = {name: value.expand(rows, *value.shape) for name, value in texts.items()}
        return latents_ECHW, torch.full((), 500, device=device), conditioning_E

    def peak_bytes(self, batch: int) -> int:
        """Tensors that live at once in one pass."""
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
    """Every way at every batch size.

    Args:
        overrides: of the configuration: model, device.
        batches: sizes.
        compiled_batches: those at which the compiled ways are measured too: each is compiled anew.
        repeats: of each; the median counts.
    """
    made = plan(compose(f"prompts=[{PROMPT}]", *overrides))
    device = resolve_device(made.config.engine.device)
    results: list[Forward] = []
    for dtype in ("float16", "bfloat16") if device.type == "cuda" else ("float32",):
        ways = list(_ways(made, device, dtype))
        attained = _attained_flops(device, getattr(torch, dtype), repeats)
        for batch in batches:
            now = [way for way in ways if way.name != COMPILED or batch in compiled_batches]
            results += _measure(now, dtype, batch, repeats, attained)
    return results


def best(forwards: Sequence[Forward], way: str) -> Forward:
    """A way at the batch size at which it is fastest."""
    return min((one for one in forwards if one.way == way), key=lambda one: one.milliseconds)


def _measure(ways: Sequence[Way], dtype: str, batch: int, repeats: int, attained: float) -> Iterator[Forward]:
    device, flops = ways[0].denoiser.device, _flops(ways[0])
    first = {way.name: seconds(partial(way.run, batch), device) for way in ways}
    timings = interleave({way.name: partial(way.run, batch) for way in ways}, repeats, device)
    for way in ways:
        each = timings[way.name].median / way.rows(batch)
        yield Forward(
            way=way.name,
            dtype=dtype,
            batch=batch,
            milliseconds=1000 * each,
            peak_mb=way.peak_bytes(batch) / 1e6 if way.name != COMPILED else None,
            utilisation=flops / each / attained,
            first_seconds=first[way.name],
        )


def _ways(made: Plan, device: torch.device, dtype: str) -> Iterator[Way]:
    """From diffusers' network as it comes to the engine's, one change at a time."""
    pipeline = one_cell.load_pipeline(made, device, dtype)

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

    yield Way(DIFFUSERS, network(channels_last=False), is_apart=False)
    yield Way("channels_last", network(), is_apart=False)
    if device.type == "cpu":
        yield Way("channels_last, a batch a thread", network())
        packed = network()
        onednn.use_for(packed.unet)
        yield Way("the same, weights packed for oneDNN", packed)
    else:
        plain = network()
        plain.unet.set_attn_processor(AttnProcessor())
        yield Way("channels_last, without SDPA", plain)
    yield Way(ENGINE, network(run=accelerated))
    yield Way(COMPILED, network(run=partial(accelerated, compile=True)))


def _flops(way: Way) -> float:
    """Floating-point operations of one evaluation: linear layers, convolutions, attention."""
    with FlopCounterMode(display=False) as counter:
        way.denoiser.predict(*way.inputs(1))
    return float(counter.get_total_flops())


def _attained_flops(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """The most floating-point operations a second in a large matrix product or convolution."""
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
    return max(flops[name] / min(timing.all) for name, timing in timings.items())

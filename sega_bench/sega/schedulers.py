"""Create diffusers schedulers by name, and gather their per-row state when latents are forked.

One scheduler object steps many images as rows of one tensor. A multistep scheduler stores earlier estimates
of every row. When rows are duplicated or dropped this state must be gathered too, or an image silently
continues another image's past. The table below lists each class's state. A class without an entry is refused,
and one with more state than its entry lists raises at the first fork.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import diffusers
import torch
from torch import Tensor

from sega_bench.cell import abbreviated
from sega_bench.errors import UserError, nearest

_ROW_STATE: Mapping[str, tuple[str, ...]] = {
    "DDIMScheduler": (),
    "DDPMScheduler": (),
    "DEISMultistepScheduler": ("model_outputs",),
    "DPMSolverMultistepScheduler": ("model_outputs",),
    "DPMSolverSinglestepScheduler": ("model_outputs", "sample"),
    "EulerAncestralDiscreteScheduler": (),
    "EulerDiscreteScheduler": (),
    "HeunDiscreteScheduler": ("prev_derivative", "sample"),
    "KDPM2AncestralDiscreteScheduler": ("sample",),
    "KDPM2DiscreteScheduler": ("sample",),
    "LCMScheduler": (),
    "LMSDiscreteScheduler": ("derivatives",),
    "PNDMScheduler": ("ets", "cur_sample", "cur_model_output"),
    "UniPCMultistepScheduler": ("model_outputs", "last_sample"),
}

_DEFAULTS: Mapping[str, Any] = {"skip_prk_steps": True, "clip_sample": False}
"""PNDM without Runge-Kutta steps. No clipping at 1, DDIM's default for pixels, because latents exceed it."""


def class_name(name: str) -> str:
    """The diffusers class for a user's name: ``unipc`` and ``UniPCMultistepScheduler`` are the same.

    Raises:
        UserError: no supported scheduler has this name. The message begins with ``scheduler``.
    """
    short = {_short(known): known for known in _ROW_STATE}
    if match := short.get(_short(name)):
        return match
    raise UserError(
        f"scheduler is {abbreviated(name)}, which is none of the schedulers that SEGA can fork: "
        f"{nearest(_short(name), short, short.__getitem__)}known are {', '.join(sorted(_ROW_STATE))}"
    )


def is_known(name: str) -> bool:
    """Whether a diffusers class of this name can be forked."""
    return name in _ROW_STATE


def _short(name: str) -> str:
    """``DPMSolverMultistepScheduler`` -> ``dpmsolver``; the singlestep solvers keep their ``singlestep``."""
    bare = name.lower().replace("_", "").replace("++", "").removesuffix("scheduler")
    return bare.removesuffix("discrete").removesuffix("multistep")


def accepted_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a scheduler configuration, possibly another class's, that class ``name`` accepts.

    Missing values are those of every Stable Diffusion checkpoint, not diffusers' defaults.
    """
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: value for key, value in {**_DEFAULTS, **config}.items() if key in parameters}


def make(name: str, config: str, num_inference_steps: int) -> Any:
    """Create a diffusers scheduler with its timesteps set.

    The timesteps stay on the CPU: the step loop reads each of them, which would synchronise with a GPU.

    Args:
        name: class name.
        config: its configuration as JSON.
        num_inference_steps: as in diffusers.

    Raises:
        ValueError: the configuration or the number of steps is invalid. The message begins with the setting's
            name.
    """
    try:
        scheduler = getattr(diffusers, name).from_config(json.loads(config))
    except Exception as error:  # diffusers raises various types for an invalid configuration
        raise ValueError(
            f"scheduler is {name}, which the checkpoint's configuration prevents ({error})"
        ) from error
    trained = scheduler.config.num_train_timesteps
    requested = f"num_inference_steps is {num_inference_steps}, but {name}"
    if num_inference_steps > trained:
        raise ValueError(f"{requested} was trained with {trained}: use fewer")
    try:
        scheduler.set_timesteps(num_inference_steps)
    except Exception as error:  # each class has limits of its own
        raise ValueError(f"{requested} cannot take so many: use fewer ({error})") from error
    if scheduler.timesteps.max() >= trained:
        raise ValueError(f"{requested} would begin at a timestep that was not trained: use fewer")
    if hasattr(scheduler, "lambda_t") and bool((scheduler.timesteps.diff() == 0).any()):
        # The solver divides by the difference of two steps' log-SNR.
        raise ValueError(f"{requested} would visit a timestep twice, and divide by zero: use fewer")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else it searches its timesteps for the first one
    return scheduler


@lru_cache(maxsize=256)
def count_timesteps(name: str, config: str, num_inference_steps: int) -> int:
    """``len(scheduler.timesteps)``: more than ``num_inference_steps`` for PNDM, Heun and KDPM2."""
    return len(make(name, config, num_inference_steps).timesteps)


def step_arguments(
    scheduler: Any, eta: float, generator: list[torch.Generator] | torch.Generator | None
) -> dict[str, Any]:
    """The optional arguments of ``scheduler.step`` that this class accepts.

    With a list of one generator per row, every row draws the noise that it would draw alone.
    """
    parameters = inspect.signature(scheduler.step).parameters
    arguments: dict[str, Any] = {}
    if "eta" in parameters:
        arguments["eta"] = eta
    if "generator" in parameters:
        arguments["generator"] = generator
    return arguments


def gather(scheduler: Any, index: Tensor, latents_RCHW: Tensor) -> None:
    """Gather a scheduler's per-row state like the rows of the latents, in place.

    Args:
        scheduler: its state is replaced.
        index: for every new row, the old row that it continues.
        latents_RCHW: the latents before they are gathered.

    Raises:
        RuntimeError: the scheduler has per-row state that its entry does not list.
    """
    names = _ROW_STATE[type(scheduler).__name__]
    for name, value in vars(scheduler).items():
        items = [value] if isinstance(value, Tensor) else value if isinstance(value, list) else []
        if name not in names and any(_is_row_state(item, latents_RCHW) for item in items):
            raise RuntimeError(
                f"{type(scheduler).__name__}.{name} stores rows, but is not known to: this version of "
                "diffusers is newer than its entry in sega_bench/sega/schedulers.py"
            )
    for name in names:
        value = getattr(scheduler, name, None)
        if isinstance(value, list):
            setattr(scheduler, name, [_gather_rows(item, index, latents_RCHW) for item in value])
        else:
            setattr(scheduler, name, _gather_rows(value, index, latents_RCHW))


def _is_row_state(value: object, latents_RCHW: Tensor) -> bool:
    # The full shape: timesteps and sigma tables can have as many entries as there are rows.
    return isinstance(value, Tensor) and value.shape == latents_RCHW.shape


def _gather_rows(value: Any, index: Tensor, latents_RCHW: Tensor) -> Any:
    return value[index] if _is_row_state(value, latents_RCHW) else value

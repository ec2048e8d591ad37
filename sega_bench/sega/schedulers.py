"""Diffusers schedulers by name, and the state that a fork of the latents must take along.

Many images are stepped by one scheduler object, row by row of one tensor. A multistep scheduler remembers
earlier estimates of every row: when rows are duplicated or dropped, those memories must follow, or an image
continues from another image's past without any error. What each class remembers is listed here by hand; a
class that is not listed is refused, and one that remembers more than its entry says fails at the first fork.
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

_USUAL: Mapping[str, Any] = {"skip_prk_steps": True, "clip_sample": False}
"""PNDM without Runge-Kutta steps; latents are no pixels, and must not be cut off at 1 as DDIM would."""


def class_name(name: str) -> str:
    """The diffusers class that a user's name means: ``unipc`` and ``UniPCMultistepScheduler`` are one.

    Raises:
        UserError: no scheduler that can be forked has this name; begins with ``scheduler``.
    """
    short = {_short(known): known for known in _ROW_STATE}
    if found := short.get(_short(name)):
        return found
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
    """The part of a scheduler configuration (another class's, say) that class ``name`` understands.

    Where it is silent, what every Stable Diffusion checkpoint says stands in for diffusers' defaults.
    """
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: value for key, value in {**_USUAL, **config}.items() if key in parameters}


def make(name: str, config: str, num_inference_steps: int) -> Any:
    """A diffusers scheduler ready to step.

    Args:
        name: class name.
        config: its configuration as JSON.
        num_inference_steps: as in diffusers.

    Its timesteps stay on the CPU: the step loop reads them one by one, and a GPU would be waited for.

    Raises:
        ValueError: it cannot be made, or not with so many steps; begins with the setting's name.
    """
    try:
        scheduler = getattr(diffusers, name).from_config(json.loads(config))
    except Exception as error:  # whatever the library says to a checkpoint's configuration
        raise ValueError(
            f"scheduler is {name}, which the checkpoint's configuration prevents ({error})"
        ) from error
    trained = scheduler.config.num_train_timesteps
    asked = f"num_inference_steps is {num_inference_steps}, but {name}"
    if num_inference_steps > trained:
        raise ValueError(f"{asked} was trained with {trained}: use fewer")
    try:
        scheduler.set_timesteps(num_inference_steps)
    except Exception as error:  # each class has limits of its own
        raise ValueError(f"{asked} cannot take so many: use fewer ({error})") from error
    if scheduler.timesteps.max() >= trained:
        raise ValueError(f"{asked} would begin at a timestep that was not trained: use fewer")
    if hasattr(scheduler, "lambda_t") and bool((scheduler.timesteps.diff() == 0).any()):
        # It divides by the difference of two steps' log-SNR.
        raise ValueError(f"{asked} would visit a timestep twice, and divide by zero: use fewer")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else it searches its timesteps for the first one
    return scheduler


@lru_cache(maxsize=256)
def count_timesteps(name: str, config: str, num_inference_steps: int) -> int:
    """How many steps the scheduler takes; more than ``num_inference_steps`` for PNDM, Heun and KDPM2."""
    return len(make(name, config, num_inference_steps).timesteps)


def step_arguments(
    scheduler: Any, eta: float, generator: list[torch.Generator] | torch.Generator | None
) -> dict[str, Any]:
    """The optional arguments of ``scheduler.step`` that this class takes.

    A list has a generator for each row, so that every row draws its own noise, as if it ran alone.
    """
    parameters = inspect.signature(scheduler.step).parameters
    arguments: dict[str, Any] = {}
    if "eta" in parameters:
        arguments["eta"] = eta
    if "generator" in parameters:
        arguments["generator"] = generator
    return arguments


def gather(scheduler: Any, index: Tensor, latents_RCHW: Tensor) -> None:
    """Rearrange the scheduler's memories as the rows of the latents are about to be.

    Args:
        scheduler: changed in place.
        index: for every row to come, the row it continues.
        latents_RCHW: the latents before they are rearranged.
    """
    names = _ROW_STATE[type(scheduler).__name__]
    for name, value in vars(scheduler).items():
        remembered = [value] if isinstance(value, Tensor) else value if isinstance(value, list) else []
        if name not in names and any(_is_row_state(item, latents_RCHW) for item in remembered):
            raise RuntimeError(
                f"{type(scheduler).__name__}.{name} remembers rows, but is not known to: this version of "
                "diffusers is newer than its entry in sega_bench/sega/schedulers.py"
            )
    for name in names:
        value = getattr(scheduler, name, None)
        if isinstance(value, list):
            setattr(scheduler, name, [_take(item, index, latents_RCHW) for item in value])
        else:
            setattr(scheduler, name, _take(value, index, latents_RCHW))


def _is_row_state(value: object, latents_RCHW: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == latents_RCHW.shape


def _take(value: Any, index: Tensor, latents_RCHW: Tensor) -> Any:
    return value[index] if _is_row_state(value, latents_RCHW) else value

"""The training loop of all parts: AdamW, cosine decay, averaged weights, resumable checkpoints.

All randomness of a step comes from `(seed, step)`, so that a resumed run computes the same weights as an
uninterrupted one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """Training hyperparameters of one part.

    `ema` is the decay of the averaged weights. `cycles` is the number of learning-rate cycles, each with
    `warmup` steps.
    """

    steps: int
    batch: int
    lr: float
    ema: float = 0.998
    warmup: int = 100
    cycles: int = 1
    weight_decay: float = 0.01
    checkpoint_seconds: float = 60.0

    def scaled(self, scale: float) -> Recipe:
        """The same recipe with `scale` times the steps, at least two a cycle."""
        cycle = max(2, round(self.steps * scale / self.cycles))
        return replace(self, steps=cycle * self.cycles, warmup=min(self.warmup, cycle // 2))

    def lr_at(self, step: int) -> float:
        """The learning rate: in each cycle a linear warm-up, then a cosine decay to a hundredth.

        Cycles are the warm restarts of arXiv 1608.03983.
        """
        cycle = self.steps // self.cycles
        step %= cycle
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, cycle - self.warmup)
        return self.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


Loss = Callable[[np.random.Generator], Tensor]


def fit(name: str, model: nn.Module, loss: Loss, recipe: Recipe, folder: Path, seed: int) -> nn.Module:
    """Minimise `loss` over the trainable parameters of `model`, and load the averaged weights into it.

    `loss` samples its batch with the generator that it receives. The state is saved to
    `folder/name.safetensors` every `checkpoint_seconds` and at the end. If that file exists, training resumes
    from it.
    """
    path = folder / f"{name}.safetensors"
    state = _State(model, recipe)
    start = state.load(path) if path.exists() else 0
    began = saved = time.monotonic()
    model.train()
    for step in range(start, recipe.steps):
        value = state.update(loss, step, seed)
        now = time.monotonic()
        if step + 1 == recipe.steps or now - saved > recipe.checkpoint_seconds:
            state.save(path, step + 1)
            _report(name, step + 1, recipe.steps, value, (step + 1 - start) / (now - began))
            saved = now
    model.load_state_dict(state.average)
    return model.eval()


def averaged_weights(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint of `fit`, finished or not."""
    with safe_open(str(path), framework="pt") as file:
        keys = [key for key in file.keys() if key.startswith("ema/")]  # noqa: SIM118
        return {key.removeprefix("ema/"): file.get_tensor(key) for key in keys}


def progress(path: Path) -> tuple[int, float]:
    """Completed steps and seconds of training of a checkpoint of `fit`."""
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    return int(metadata["step"]), float(metadata["seconds"])


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Replace a safetensors file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, str(temporary), metadata)
    os.replace(temporary, path)


class _State:
    """The state in a checkpoint: model, optimiser, averaged weights and training time."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.model = model
        self.recipe = recipe
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay
        )
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.seconds = 0.0

    def update(self, loss: Loss, step: int, seed: int) -> float:
        began = time.monotonic()
        torch.manual_seed(seed * 1_000_003 + step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(step)
        self.optimizer.zero_grad(set_to_none=True)
        value = loss(np.random.default_rng([seed, step]))
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self._average_in(step)
        self.seconds += time.monotonic() - began
        return float(value.detach())

    @torch.no_grad()
    def _average_in(self, step: int) -> None:
        # The decay starts low, so that the first averages follow the weights.
        decay = min(self.recipe.ema, (step + 1) / (step + 10))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def save(self, path: Path, step: int) -> None:
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"ema/{name}": value for name, value in self.average.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adam/{name}/{key}"] = value
        save_tensors(
            {key: value.clone() for key, value in tensors.items()},
            path,
            {"step": str(step), "seconds": f"{self.seconds:.1f}"},
        )

    def load(self, path: Path) -> int:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.model.load_state_dict({name: tensors[f"model/{name}"] for name in self.average})
        self.average = {name: tensors[f"ema/{name}"] for name in self.average}
        for name, parameter in self.parameters.items():
            keys = ("step", "exp_avg", "exp_avg_sq")
            self.optimizer.state[parameter] = {key: tensors[f"adam/{name}/{key}"] for key in keys}
        self.seconds = float(metadata["seconds"])
        return int(metadata["step"])


def _report(name: str, step: int, steps: int, loss: float, rate: float) -> None:
    left = (steps - step) / rate / 60
    print(f"{name} {step}/{steps} loss {loss:.4f} {rate:.2f} steps/s {left:.1f} min left", flush=True)

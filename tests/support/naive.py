"""SEGA as a plain loop: one cell alone, from its first step to its last, without sharing.

The engine's trunks, forks and batches must give the same result for every scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sega_bench.cell import Cell, Edit
from sega_bench.sega import schedulers
from sega_bench.sega.denoiser import Denoiser


def latents(denoiser: Denoiser, cell: Cell) -> Tensor:
    """The cell's final latents, CHW."""
    if cell.replay is None:
        return _sample(denoiser, cell)[0]
    _, guidance, _ = _sample(denoiser, cell.source())
    return _sample(denoiser, cell.reference(), guidance)[0]


def guided(denoiser: Denoiser, cell: Cell) -> Tensor:
    """Positions HW that the edit acts on at any step: a warm concept passes its threshold in any channel."""
    return _sample(denoiser, cell.source())[2]


def _sample(
    denoiser: Denoiser, cell: Cell, replayed: Sequence[Tensor] = ()
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Final latents, each step's guidance (or ``replayed`` instead), and the positions it acted on."""
    scheduler = schedulers.make(cell.scheduler, cell.scheduler_config, cell.num_inference_steps)
    generator = torch.Generator().manual_seed(cell.seed)
    shape = (1, *denoiser.latent_shape(cell.height, cell.width))
    x = torch.randn(shape, generator=generator, dtype=denoiser.latent_dtype) * scheduler.init_noise_sigma
    nu, applied = torch.zeros_like(x), []
    acted = torch.zeros(shape[-2:], dtype=torch.bool)
    for i, t in enumerate(scheduler.timesteps):
        x_scaled = scheduler.scale_model_input(x, t)

        def predict(text: str, x_scaled: Tensor = x_scaled, t: Tensor = t) -> Tensor:
            conditioning = {name: value[None] for name, value in denoiser.encode(text).items()}
            return denoiser.predict(x_scaled, t, conditioning)

        negative_prompt, prompt = texts_at(cell, i)
        eps_u, eps_t = predict(negative_prompt), predict(prompt)
        eps_c = [predict(edit.concept) for edit in cell.edits]
        if cell.method == "sega":
            added, nu, acted_now = _edit(cell, i, eps_u, eps_c, nu)
            acted |= acted_now
        else:
            added = _composed(cell, i, eps_u, eps_c)
        applied.append(replayed[i] if replayed else added)
        eps = eps_u + cell.guidance_scale * (eps_t - eps_u) + applied[-1]
        arguments = schedulers.step_arguments(scheduler, cell.eta, [generator])
        x = scheduler.step(eps, t, x, return_dict=False, **arguments)[0]
    return x[0], applied, acted


def _edit(
    cell: Cell, i: int, eps_u: Tensor, eps_c: Sequence[Tensor], nu: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Equations 5 to 9 at step i: the guidance, the new momentum, and the positions of warm concepts."""
    edits, weights, warm = [], [], []
    for edit, eps in zip(cell.edits, eps_c, strict=True):
        sign = -1 if edit.reverse_editing_direction else 1
        direction = sign * edit.edit_guidance_scale * (eps - eps_u)
        is_live = edit.edit_cooldown_steps is None or i < edit.edit_cooldown_steps
        q = torch.quantile(direction.abs().flatten(2).float(), edit.edit_threshold, dim=2)[..., None, None]
        keep = direction.abs() >= q.to(direction.dtype)
        edits.append(torch.where(keep, direction, 0.0) * is_live)
        weights.append(edit.edit_weights * is_live)
        warm.append(i >= edit.edit_warmup_steps)
    zero = torch.zeros_like(eps_u)
    added, total = zero, sum(w for w, is_warm in zip(weights, warm, strict=True) if is_warm)
    if total:
        added = sum(
            (w / total * e for w, e, is_warm in zip(weights, edits, warm, strict=True) if is_warm), zero
        )
    v = sum((w * e for w, e in zip(weights, edits, strict=True)), zero) + cell.edit_momentum_scale * nu
    nu = cell.edit_mom_beta * nu + (1 - cell.edit_mom_beta) * v
    positions = torch.zeros(eps_u.shape[-2:], dtype=torch.bool)
    for w, e, is_warm in zip(weights, edits, warm, strict=True):
        if w and is_warm:
            positions |= (e[0] != 0).any(dim=0)
    return (v if warm and all(warm) else added), nu, positions


def texts_at(cell: Cell, i: int) -> tuple[str, str]:
    """Negative prompt and prompt at step i: two methods append concepts while these act."""
    negative_prompt, prompt = cell.negative_prompt, cell.prompt
    for edit in cell.edits:
        if is_live(edit, i) and cell.method == "prompt":
            prompt = f"{prompt}, {edit.concept}" if prompt else edit.concept
        if is_live(edit, i) and cell.method == "negative":
            negative_prompt = f"{negative_prompt}, {edit.concept}" if negative_prompt else edit.concept
    return negative_prompt, prompt


def _composed(cell: Cell, i: int, eps_u: Tensor, eps_c: Sequence[Tensor]) -> Tensor:
    """Composable Diffusion's sum over the concepts that act at step i; nothing for the other methods."""
    added = torch.zeros_like(eps_u)
    for edit, eps in zip(cell.edits, eps_c, strict=True):
        if is_live(edit, i) and cell.method == "composable":
            weight = edit.edit_weights * edit.edit_guidance_scale
            added = added + (-weight if edit.reverse_editing_direction else weight) * (eps - eps_u)
    return added


def is_live(edit: Edit, i: int) -> bool:
    cooldown = edit.edit_cooldown_steps
    return i >= edit.edit_warmup_steps and (cooldown is None or i < cooldown)

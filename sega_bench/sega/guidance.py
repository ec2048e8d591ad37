"""One SEGA step as pure functions of tensors, with a row of settings for every cell.

Shapes: M cells, K concept slots of a cell (cells with fewer concepts leave slots empty), C H W latents.
Source: Brack et al., "SEGA: Instructing Text-to-Image Models using Semantic Guidance" (arXiv 2301.12247),
section 3 and the authors' implementation, diffusers' ``SemanticStableDiffusionPipeline``, with which this
agrees in float64 except where CONTRIBUTING.md ("Where we differ from diffusers") says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sega_bench.cell import Cell, Edit
from sega_bench.sega.steps import needed


@dataclass(frozen=True, slots=True)
class Settings:
    """The edit settings of M cells as tensors; an empty slot is never needed and always warm.

    Args:
        scale_MK: signed guidance scale, negative where the direction is reversed.
        threshold_MK: quantile in [0, 1], float32.
        weight_MK: concept weight, 0 in empty slots.
        warmup_MK, cooldown_MK: first step at which a concept is warm, and first at which it has cooled down.
        start_MK, stop_MK: interval of steps that need its estimate (:func:`sega_bench.sega.steps.needed`).
        momentum_scale_M, mom_beta_M: momentum of the whole edit.
        is_sega_M: whether the method is SEGA; if not, the guidance is Composable Diffusion's sum.
    """

    scale_MK: Tensor
    threshold_MK: Tensor
    weight_MK: Tensor
    warmup_MK: Tensor
    cooldown_MK: Tensor
    start_MK: Tensor
    stop_MK: Tensor
    momentum_scale_M: Tensor
    mom_beta_M: Tensor
    is_sega_M: Tensor

    @classmethod
    def of(cls, cells: Sequence[Cell], n: int, dtype: torch.dtype, device: torch.device) -> Settings:
        """The settings of ``cells`` for a scheduler of ``n`` timesteps."""
        slots = max((len(cell.edits) for cell in cells), default=0)
        never = n + 1

        def table(kind: torch.dtype, empty: float, values: list[list[float]]) -> Tensor:
            padded = [row + [empty] * (slots - len(row)) for row in values]
            return torch.tensor(padded, dtype=kind, device=device).reshape(len(cells), slots)

        spans = [[needed(edit, cell, n) for edit in cell.edits] for cell in cells]
        return cls(
            scale_MK=table(dtype, 0.0, [[_signed_scale(e) for e in c.edits] for c in cells]),
            threshold_MK=table(torch.float32, 0.0, [[e.edit_threshold for e in c.edits] for c in cells]),
            weight_MK=table(dtype, 0.0, [[e.edit_weights for e in c.edits] for c in cells]),
            warmup_MK=table(torch.int64, 0, [[e.edit_warmup_steps for e in c.edits] for c in cells]),
            cooldown_MK=table(torch.int64, never, [[_cooldown(e, never) for e in c.edits] for c in cells]),
            start_MK=table(torch.int64, 0, [[start for start, _ in row] for row in spans]),
            stop_MK=table(torch.int64, 0, [[stop for _, stop in row] for row in spans]),
            momentum_scale_M=torch.tensor([c.edit_momentum_scale for c in cells], dtype=dtype, device=device),
            mom_beta_M=torch.tensor([c.edit_mom_beta for c in cells], dtype=dtype, device=device),
            is_sega_M=torch.tensor([c.method == "sega" for c in cells], dtype=torch.bool, device=device),
        )

    def take(self, index: Tensor) -> Settings:
        """The settings of some of the cells."""
        return Settings(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def semantic_guidance(
    eps_u_MCHW: Tensor, eps_c_MKCHW: Tensor, nu_MCHW: Tensor, settings: Settings, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """SEGA's addition to classifier-free guidance at one step (equations 5 to 9), and the momentum after it.

    The weighted sum of Composable Diffusion (Liu et al. 2022, equation 11) is the same without thresholds and
    momentum, and with weights that are never normalised.

    Args:
        eps_u_MCHW: unconditional estimates.
        eps_c_MKCHW: concept estimates; where one is not needed at this step its value is ignored.
        nu_MCHW: momentum before the step.
        settings: of the same M cells.
        step: index into ``scheduler.timesteps``.

    Returns:
        The semantic guidance, to be added to ``guidance_scale * (eps_t - eps_u)``, and the new momentum, both
        MCHW. Last the positions, bool MHW, that a warm concept acts on: its direction passes the threshold in
        any channel. Positions that only momentum changes do not count.
    """
    s = settings
    is_needed_MK = (s.start_MK <= step) & (step < s.stop_MK)
    is_live_MK = step < s.cooldown_MK
    is_warm_MK = s.warmup_MK <= step

    direction_MKCHW = _over_chw(s.scale_MK) * (eps_c_MKCHW - eps_u_MCHW[:, None])
    edit_MKCHW = keep_above_quantile(direction_MKCHW, s.threshold_MK)
    # A threshold of 0 would not give the sum: rounded to float32, the smallest magnitude may exceed itself.
    edit_MKCHW = torch.where(_over_chw(s.is_sega_M[:, None]), edit_MKCHW, direction_MKCHW)
    edit_MKCHW = torch.where(_over_chw(is_needed_MK), edit_MKCHW, 0.0)

    # While only some concepts are warm, SEGA normalises their weights to a sum of 1 and adds no momentum.
    warm_weight_MK = torch.where(is_warm_MK & is_live_MK, s.weight_MK, 0.0)
    total_M1 = torch.where(s.is_sega_M[:, None], warm_weight_MK.sum(dim=1, keepdim=True), 1.0)
    share_MK = torch.where(total_M1 > 0, warm_weight_MK / total_M1, 0.0)
    some_warm_MCHW = (_over_chw(share_MK) * edit_MKCHW).sum(dim=1)

    # Once all are warm, it uses their full weights and adds the momentum accumulated since the first step.
    weight_MK = torch.where(is_live_MK, s.weight_MK, 0.0)
    v_MCHW = (_over_chw(weight_MK) * edit_MKCHW).sum(dim=1) + _over_chw(s.momentum_scale_M) * nu_MCHW
    beta_M111 = _over_chw(s.mom_beta_M)
    nu_MCHW = beta_M111 * nu_MCHW + (1 - beta_M111) * v_MCHW
    added_MCHW = torch.where(_over_chw(is_warm_MK.all(dim=1)), v_MCHW, some_warm_MCHW)
    is_passed_MKHW = (edit_MKCHW != 0).any(dim=2) & (warm_weight_MK > 0)[..., None, None]
    return added_MCHW, nu_MCHW, is_passed_MKHW.any(dim=1)


def keep_above_quantile(direction_MKCHW: Tensor, threshold_MK: Tensor) -> Tensor:
    """Zero all elements whose magnitude is below the threshold's quantile of their own channel.

    Equals ``torch.quantile`` (linear interpolation, in float32 like diffusers), which takes no quantile per
    row: each channel is sorted once and read at its own rank, so cells of different thresholds share a batch.
    """
    magnitude_MKCHW = direction_MKCHW.abs()
    sorted_MKCN = magnitude_MKCHW.flatten(start_dim=3).float().sort(dim=-1).values
    rank_MK11 = (threshold_MK * (sorted_MKCN.shape[-1] - 1))[:, :, None, None]
    below_MKC1 = rank_MK11.floor().long().expand(*sorted_MKCN.shape[:3], 1)
    above_MKC1 = rank_MK11.ceil().long().expand_as(below_MKC1)
    quantile_MKC1 = torch.lerp(
        sorted_MKCN.gather(-1, below_MKC1), sorted_MKCN.gather(-1, above_MKC1), rank_MK11 - rank_MK11.floor()
    )
    quantile_MKC11 = quantile_MKC1[..., None].to(direction_MKCHW.dtype)
    # "<" keeps a NaN, which fails its cell. With ">=", as in diffusers, it would give an unedited image.
    return torch.where(magnitude_MKCHW < quantile_MKC11, 0.0, direction_MKCHW)


def _over_chw(values: Tensor) -> Tensor:
    return values[..., None, None, None]


def _signed_scale(edit: Edit) -> float:
    return -edit.edit_guidance_scale if edit.reverse_editing_direction else edit.edit_guidance_scale


def _cooldown(edit: Edit, never: int) -> int:
    return never if edit.edit_cooldown_steps is None else edit.edit_cooldown_steps

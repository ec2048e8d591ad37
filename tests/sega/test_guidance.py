"""One step of SEGA agrees with plain loops in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.strategies import STEPS, edits, thresholds
from torch import Tensor

from sega_bench.cell import Cell, Edit
from sega_bench.sega.guidance import Settings, keep_above_quantile, semantic_guidance

C, H, W = 3, 5, 4


def literal_step(
    eps_u: Tensor, eps_c: list[Tensor], nu: Tensor, cell: Cell, i: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The algorithm of the paper for one cell, channel by channel; CHW."""
    edit_parts, weights, warm = [], [], []
    for edit, eps in zip(cell.edits, eps_c, strict=True):
        part, weight = torch.zeros_like(eps_u), 0.0
        if edit.edit_cooldown_steps is None or i < edit.edit_cooldown_steps:
            weight = edit.edit_weights
            sign = -1.0 if edit.reverse_editing_direction else 1.0
            d = sign * edit.edit_guidance_scale * (eps - eps_u)
            for c in range(C):
                q = torch.quantile(d[c].abs().float().flatten(), edit.edit_threshold).double()
                part[c] = torch.where(d[c].abs() >= q, d[c], 0.0)
        edit_parts.append(part)
        weights.append(weight)
        warm.append(i >= edit.edit_warmup_steps)
    added = torch.zeros_like(eps_u)
    total = sum(w for w, is_warm in zip(weights, warm, strict=True) if is_warm)
    if 0 < sum(warm) < len(warm) and total > 0:
        for weight, part, is_warm in zip(weights, edit_parts, warm, strict=True):
            added = added + (weight / total * part if is_warm else 0.0)
    v = sum(w * part for w, part in zip(weights, edit_parts, strict=True)) + cell.edit_momentum_scale * nu
    assert isinstance(v, Tensor)
    nu = cell.edit_mom_beta * nu + (1 - cell.edit_mom_beta) * v
    acts_on = torch.zeros(H, W, dtype=torch.bool)
    for weight, part, is_warm in zip(weights, edit_parts, warm, strict=True):
        acts_on |= (part != 0).any(dim=0) & bool(weight and is_warm)
    return (v if all(warm) else added), nu, acts_on


@given(
    st.lists(edits(), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 0.6]),
    st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_rows_of_different_settings_each_agree_with_the_algorithm(
    rows: list[tuple[Edit, ...]], scale: float, beta: float, seed: int
) -> None:
    cells = [
        Cell("p", 0, row, num_inference_steps=STEPS, edit_momentum_scale=scale, edit_mom_beta=beta)
        for row in rows
    ]
    table = Settings.of(cells, STEPS, torch.float64, torch.device("cpu"))
    slots = table.scale_MK.shape[1]
    random = torch.Generator().manual_seed(seed)
    nu_MCHW = torch.zeros(len(cells), C, H, W, dtype=torch.float64)
    expected_nu = list(nu_MCHW)
    for i in range(STEPS):
        eps_u = torch.randn(len(cells), C, H, W, generator=random, dtype=torch.float64)
        eps_c = torch.randn(len(cells), slots, C, H, W, generator=random, dtype=torch.float64)
        added_MCHW, nu_MCHW, acts_on_MHW = semantic_guidance(eps_u, eps_c, nu_MCHW, table, i)
        for m, cell in enumerate(cells):
            added, expected_nu[m], acts_on = literal_step(
                eps_u[m], list(eps_c[m, : len(cell.edits)]), expected_nu[m], cell, i
            )
            torch.testing.assert_close(added_MCHW[m], added, rtol=1e-12, atol=1e-12)
            assert torch.equal(acts_on_MHW[m], acts_on)


@given(st.lists(thresholds, min_size=1, max_size=4), st.integers(0, 100))
@settings(deadline=None)
def test_quantiles_are_bit_identical_to_torchs(qs: list[float], seed: int) -> None:
    direction = torch.randn(len(qs), 1, C, 9, 7, generator=torch.Generator().manual_seed(seed))
    kept = keep_above_quantile(direction, torch.tensor(qs)[:, None])
    for row, q, result in zip(direction, qs, kept, strict=True):
        magnitude = row.abs()
        quantile = torch.quantile(magnitude.flatten(2), q, dim=2)[..., None, None]
        assert torch.equal(result, torch.where(magnitude >= quantile, row, 0.0))


def test_a_threshold_keeps_its_share_of_the_elements() -> None:
    direction = torch.randn(1, 1, 1, 40, 25)
    for threshold, share in ((0.0, 1.0), (0.9, 0.1), (0.99, 0.01), (1.0, 0.001)):
        kept = keep_above_quantile(direction, torch.tensor([[threshold]]))
        assert kept.count_nonzero() / 1000 == pytest.approx(share, abs=1e-9)


def test_weights_that_sum_to_zero_add_nothing() -> None:
    """One concept has cooled down and the other is not warm: diffusers divides 0 by 0, a black image."""
    cell = Cell("p", 0, (Edit("a", 5, 0.5, 0, 2), Edit("b", 5, 0.5, 5)), edit_momentum_scale=0.0)
    table = Settings.of([cell], 10, torch.float64, torch.device("cpu"))
    eps_u, eps_c = torch.randn(1, C, H, W), torch.randn(1, 2, C, H, W)
    added, *_ = semantic_guidance(eps_u.double(), eps_c.double(), torch.zeros(1, C, H, W).double(), table, 3)
    assert torch.equal(added, torch.zeros_like(added))


def test_estimates_that_are_not_needed_do_not_matter_even_if_they_are_nan() -> None:
    cell = Cell("p", 0, (Edit("a", 5, 0.5, 0), Edit("b", 0.0, 0.5, 0)))
    table = Settings.of([cell], 10, torch.float64, torch.device("cpu"))
    eps_u, eps_c = torch.randn(1, C, H, W).double(), torch.randn(1, 2, C, H, W).double()
    nu = torch.zeros(1, C, H, W).double()
    clean = semantic_guidance(eps_u, eps_c, nu, table, 3)
    eps_c[:, 1] = float("nan")
    for a, b in zip(clean, semantic_guidance(eps_u, eps_c, nu, table, 3), strict=True):
        assert torch.equal(a, b)

"""Route noise estimates: which ones the rows of a wave need, and which results each contributes to.

Routes change only at breakpoints: a fork, or a concept that starts or stops to be needed. They are computed
once for all steps in between, so that no step copies anything to the device.

Shapes: R rows of latents, M edits, A of them active, F rows that follow one, K concepts, E estimates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sega_bench.cell import Cell
from sega_bench.sega.batching import encode
from sega_bench.sega.denoiser import Conditioning, Denoiser
from sega_bench.sega.guidance import Settings
from sega_bench.sega.rows import Row
from sega_bench.sega.schedule import Wave
from sega_bench.sega.steps import base_texts, concept_texts, uses_momentum


@dataclass
class Edits:
    """Settings and momentum of the M cells whose semantic guidance a wave computes."""

    cells: tuple[Cell, ...]
    has_momentum: tuple[bool, ...]
    settings: Settings
    nu_MCHW: Tensor

    @property
    def slots(self) -> int:
        """K, the largest number of concepts of a cell."""
        return self.settings.scale_MK.shape[1]

    @classmethod
    def start(cls, cells: tuple[Cell, ...], n: int, latents_RCHW: Tensor) -> Edits:
        """Edits before the first step, for a scheduler of ``n`` timesteps."""
        return cls(
            cells=cells,
            has_momentum=tuple(uses_momentum(cell, n) for cell in cells),
            settings=Settings.of(cells, n, latents_RCHW.dtype, latents_RCHW.device),
            nu_MCHW=torch.zeros_like(latents_RCHW[:1]).repeat(len(cells), 1, 1, 1),
        )


@dataclass(frozen=True)
class Texts:
    """The distinct texts of a wave, each encoded once."""

    position: dict[str, int]
    conditioning_T: Conditioning

    @classmethod
    def encode(cls, denoiser: Denoiser, wave: Wave) -> Texts:
        """Encode the texts of all cells."""
        texts = list(dict.fromkeys(text for cell in wave.cells for text in cell.texts))
        return cls({text: i for i, text in enumerate(texts)}, encode(denoiser, texts))


@dataclass(frozen=True, slots=True)
class ActiveEdits:
    """The A edits whose guidance is computed, their estimates, and the rows that follow them.

    Args:
        edit_A, row_A: positions among the edits and among the rows.
        slot_AK: positions of their concepts' estimates; arbitrary for a concept that is not needed, whose
            estimate is ignored.
        settings: of these edits.
        row_F, followed_F: rows to which guidance is added, and its position among the A.
    """

    edit_A: Tensor
    row_A: Tensor
    slot_AK: Tensor
    settings: Settings
    row_F: Tensor
    followed_F: Tensor


@dataclass(frozen=True, slots=True)
class Routes:
    """The estimates to evaluate, and the results that each contributes to.

    Args:
        row_E, conditioning_E: the latents and the text of each estimate.
        u_R, t_R: positions of every row's unconditional estimate and its prompt's.
        guidance_scale_R111: of classifier-free guidance.
        active: None if no edit is active.
        billing: evaluations of one step, by the key of the cell that they are billed to.
    """

    row_E: Tensor
    conditioning_E: Conditioning
    u_R: Tensor
    t_R: Tensor
    guidance_scale_R111: Tensor
    active: ActiveEdits | None
    billing: Counter[str]

    @classmethod
    def at(cls, step: int, rows: Sequence[Row], edits: Edits, texts: Texts, n: int) -> Routes:
        """The routes from a breakpoint up to the next one."""
        device, dtype = edits.nu_MCHW.device, edits.nu_MCHW.dtype
        estimates = _list_estimates(rows, edits, step, n)
        base = [base_texts(row.cell, step) for row in rows]
        text_E = torch.tensor([texts.position[text] for _, text in estimates], device=device)
        scale_R = torch.tensor([row.cell.guidance_scale for row in rows], dtype=dtype, device=device)
        return cls(
            row_E=torch.tensor([row for row, _ in estimates], device=device),
            conditioning_E={name: value[text_E] for name, value in texts.conditioning_T.items()},
            u_R=torch.tensor([estimates[r, of_row[0]] for r, of_row in enumerate(base)], device=device),
            t_R=torch.tensor([estimates[r, of_row[-1]] for r, of_row in enumerate(base)], device=device),
            guidance_scale_R111=scale_R[:, None, None, None],
            active=_active_edits(rows, edits, estimates),
            billing=Counter(rows[row].billed_to for row, _ in estimates),
        )


Estimates = dict[tuple[int, str], int]
"""(row, text) of every estimate of a step, with its position among them."""


def _list_estimates(rows: Sequence[Row], edits: Edits, step: int, n: int) -> Estimates:
    """The estimates that the rows need at this step, each once: cells on one trunk share a concept's."""
    estimates: Estimates = {}
    for position, row in enumerate(rows):
        texts = [*base_texts(row.cell, step)]
        for m in row.computed_edits:
            texts += concept_texts(edits.cells[m], step, n)
        for text in texts:
            estimates.setdefault((position, text), len(estimates))
    return estimates


def _active_edits(rows: Sequence[Row], edits: Edits, estimates: Estimates) -> ActiveEdits | None:
    """Edits that a row follows, and those that still build momentum on their trunk."""
    device = edits.nu_MCHW.device
    followed = {row.edit for row in rows}
    active = [
        (m, r)
        for r, row in enumerate(rows)
        for m in row.computed_edits
        if edits.has_momentum[m] or m in followed
    ]
    if not active:
        return None
    edit_A = torch.tensor([m for m, _ in active], device=device)
    position = {m: a for a, (m, _) in enumerate(active)}
    following = [(r, position[row.edit]) for r, row in enumerate(rows) if row.edit in position]
    return ActiveEdits(
        edit_A=edit_A,
        row_A=torch.tensor([r for _, r in active], device=device),
        slot_AK=torch.tensor(
            [_slots(edits.cells[m], r, estimates, edits.slots) for m, r in active], device=device
        ),
        settings=edits.settings.take(edit_A),
        row_F=torch.tensor([r for r, _ in following], dtype=torch.long, device=device),
        followed_F=torch.tensor([a for _, a in following], dtype=torch.long, device=device),
    )


def _slots(cell: Cell, row: int, estimates: Estimates, slots: int) -> list[int]:
    positions = [estimates.get((row, edit.concept), 0) for edit in cell.edits]
    return positions + [0] * (slots - len(positions))

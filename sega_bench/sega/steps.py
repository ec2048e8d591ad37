"""At which step a cell forks from its reference, and which texts it needs at which step: in integers.

Steps are indices into ``scheduler.timesteps``; ``n`` is its length.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from sega_bench.cell import TEXT_METHODS, Cell, Edit

Interval = tuple[int, int]


def uses_momentum(cell: Cell, n: int) -> bool:
    """Whether momentum built during warm-up is ever added: only once every concept is warm."""
    return (
        bool(cell.edits)
        and cell.edit_momentum_scale != 0.0
        and cell.edit_mom_beta < 1.0
        and max(edit.edit_warmup_steps for edit in cell.edits) < n
    )


def needed(edit: Edit, cell: Cell, n: int) -> Interval:
    """Steps ``[start, stop)`` at which this edit's concept is needed; ``(0, 0)`` if it never is.

    A concept is needed as an estimate, or as a part of a prompt. It is needed from its warm-up, or from the
    first step if momentum is built from it, until it cools down.
    """
    if not edit.acts:
        return (0, 0)
    start = 0 if uses_momentum(cell, n) else edit.edit_warmup_steps
    stop = min(n, n if edit.edit_cooldown_steps is None else edit.edit_cooldown_steps)
    return (start, stop) if start < stop else (0, 0)


@lru_cache(maxsize=1 << 14)  # called repeatedly for a cell while its wave is formed and counted
def fork_step(cell: Cell, n: int) -> int:
    """The first step at which the cell's guidance can differ from its reference's; ``n`` if it never does.

    That is the first warm step of a concept that acts and has not cooled down. Momentum alone can change a
    cell too: concepts may cool down before all are warm, and their momentum is added from then on.
    """
    if cell.method in TEXT_METHODS:
        own = cell.reference().reads(0)
        return next((step for step in sorted(breakpoints([cell], n)) if cell.reads(step) != own), n)
    first = n
    for edit in cell.edits:
        _, stop = needed(edit, cell, n)
        if edit.edit_warmup_steps < stop:
            first = min(first, edit.edit_warmup_steps)
    if uses_momentum(cell, n):
        last_warm = max(edit.edit_warmup_steps for edit in cell.edits)
        if last_warm > 0 and any(needed(edit, cell, n) != (0, 0) for edit in cell.edits):
            first = min(first, last_warm)
    return first


def guidance_end(cell: Cell, n: int) -> int:
    """The step from which an edited cell's guidance stays zero; momentum never decays to zero."""
    if uses_momentum(cell, n):
        return n
    return max(needed(edit, cell, n)[1] for edit in cell.edits)


def computes_guidance(cell: Cell) -> bool:
    """Whether guidance is computed from estimates of the cell's concepts, on its own row."""
    return bool(cell.edits) and cell.method not in TEXT_METHODS and cell.replay is None


def image_owner(cell: Cell, n: int) -> Cell:
    """The cell that has this cell's image: its reference if no setting changes anything, else itself."""
    return cell if fork_step(cell, n) < n else cell.reference()


def base_texts(cell: Cell, step: int) -> tuple[str, ...]:
    """The texts that every step evaluates; without classifier-free guidance the prompt alone."""
    negative_prompt, prompt = cell.reads(step)
    return (negative_prompt, prompt) if cell.guidance_scale > 1.0 else (prompt,)


def concept_texts(cell: Cell, step: int, n: int) -> tuple[str, ...]:
    """The concepts whose estimates the cell's guidance needs at a step, on its source's row."""
    if cell.method in TEXT_METHODS:
        return ()
    return tuple(edit.concept for edit in cell.edits if (span := needed(edit, cell, n))[0] <= step < span[1])


def breakpoints(cells: Iterable[Cell], n: int) -> set[int]:
    """The first step, and all at which one of the cells starts or stops to need a concept.

    Between two of them, unchanged rows need the same estimates.
    """
    return {0, *(step for cell in cells for edit in cell.edits for step in needed(edit, cell, n))}

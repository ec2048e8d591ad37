"""Which noise estimates a cell needs, at which step, and what it shares: pure arithmetic, no tensors.

The planner counts with these functions and the engine executes what they say, so the two cannot disagree.
Steps are indices into ``scheduler.timesteps``; ``n`` is its length (PNDM has one more than
``num_inference_steps``, Heun and KDPM2 nearly twice as many).

Why cells share work: until the first step at which its guidance can differ from plain classifier-free
guidance, an edited cell's latents are those of its unedited reference, bit for bit. All cells of one
reference therefore ride on one *trunk* until they *depart*; only their momentum is their own before that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sega_bench.cell import Cell, Edit

Interval = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Trunk:
    """Cells that share a reference, in the order in which they were asked for.

    Args:
        reference: the unedited cell whose steps the others share.
        cells: what is to be made; may or may not contain the reference itself.
    """

    reference: Cell
    cells: tuple[Cell, ...]

    @property
    def edited(self) -> tuple[Cell, ...]:
        """The cells to be made that have concepts."""
        return tuple(cell for cell in self.cells if not cell.is_reference)


def grow_trunks(cells: Iterable[Cell]) -> tuple[Trunk, ...]:
    """Cells grouped by the reference they share, in order of first appearance."""
    groups: dict[Cell, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.reference(), []).append(cell)
    return tuple(Trunk(reference, tuple(group)) for reference, group in groups.items())


def uses_momentum(cell: Cell, n: int) -> bool:
    """Whether momentum built during warm-up is ever added: only once every concept is warm."""
    return (
        bool(cell.edits)
        and cell.edit_momentum_scale != 0.0
        and cell.edit_mom_beta < 1.0
        and max(edit.edit_warmup_steps for edit in cell.edits) < n
    )


def needed(edit: Edit, cell: Cell, n: int) -> Interval:
    """Steps ``[start, stop)`` at which the estimate of this edit's concept is needed; empty is ``(0, 0)``.

    From its warm-up, or from the first step if momentum is built from it, until it cools down.
    """
    if not edit.acts:
        return (0, 0)
    start = 0 if uses_momentum(cell, n) else edit.edit_warmup_steps
    stop = min(n, n if edit.edit_cooldown_steps is None else edit.edit_cooldown_steps)
    return (start, stop) if start < stop else (0, 0)


def departs(cell: Cell, n: int) -> int:
    """The first step at which the cell's guidance can differ from its reference's; ``n`` if it never does.

    That is the first warm step of a concept that acts and has not cooled down. Momentum alone can move a cell
    too: concepts may cool down before all are warm, and what they left is added from then on.
    """
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


def image_owner(cell: Cell, n: int) -> Cell:
    """The cell whose image this one has: its reference if no setting changes anything, else itself."""
    return cell if departs(cell, n) < n else cell.reference()


def departing(trunk: Trunk, n: int) -> tuple[Cell, ...]:
    """The cells of a trunk that become images of their own."""
    return tuple(cell for cell in trunk.edited if departs(cell, n) < n)


def base_texts(cell: Cell) -> tuple[str, ...]:
    """The texts whose estimates every step needs: prompt alone without classifier-free guidance."""
    return (cell.negative_prompt, cell.prompt) if cell.guidance_scale > 1.0 else (cell.prompt,)


def concept_texts(cell: Cell, step: int, n: int) -> tuple[str, ...]:
    """The concepts whose estimates the cell needs at one step."""
    return tuple(edit.concept for edit in cell.edits if (span := needed(edit, cell, n))[0] <= step < span[1])


def breakpoints(cells: Iterable[Cell], n: int) -> set[int]:
    """The first step, and those at which one of the cells departs or begins or ceases to need a concept.

    From one to the next the same estimates are needed, by the same rows.
    """
    points = {0}
    for cell in cells:
        points |= {departs(cell, n), *(step for edit in cell.edits for step in needed(edit, cell, n))}
    return points


def count_evaluations(trunk: Trunk, n: int) -> dict[str, int]:
    """UNet evaluations to make a trunk's cells, by the key of the cell they are booked on.

    A branch's own evaluations are its cell's. The shared ones are booked on the reference if it is made, else
    on the first cell that departs, so that the sum is what is executed.
    """
    bookings = {cell.key: 0 for cell in trunk.cells}
    departures = {cell: departs(cell, n) for cell in trunk.edited}
    base = set(base_texts(trunk.reference))
    for cell, leaves in departures.items():
        if leaves < n:
            own = _concept_spans([cell], n, {cell: (leaves, n)}, base)
            bookings[cell.key] = len(base) * (n - leaves) + own
    shared_until = n if runs_to_the_end(trunk, n) else max(departures.values())
    riding = {cell: (0, leaves) for cell, leaves in departures.items()}
    shared = len(base) * shared_until + _concept_spans(riding, n, riding, base)
    bookings[pays_for_trunk(trunk, n)] += shared
    return bookings


def runs_to_the_end(trunk: Trunk, n: int) -> bool:
    """Whether the reference image itself is needed: asked for, or equal to a cell that is."""
    return any(cell.is_reference or departs(cell, n) == n for cell in trunk.cells)


def pays_for_trunk(trunk: Trunk, n: int) -> str:
    """The key of the cell that a trunk's shared evaluations are booked on.

    The reference if it is made, else the first cell with an image of its own, else (every cell equals a
    reference that is not asked for) the first.
    """
    for cell in trunk.cells:
        if cell.is_reference:
            return cell.key
    return next((cell.key for cell in departing(trunk, n)), trunk.cells[0].key)


def rows(trunk: Trunk, n: int) -> int:
    """The most latents a trunk holds at once: its own and one for each branch."""
    return 1 + len(departing(trunk, n))


@dataclass(frozen=True, slots=True)
class Wave:
    """Trunks that are stepped together: one scheduler, one number of steps, one size.

    Args:
        trunks: whole, or pieces of ones that hold more branches than a wave.
        n: ``len(scheduler.timesteps)``.
    """

    trunks: tuple[Trunk, ...]
    n: int

    @property
    def cells(self) -> tuple[Cell, ...]:
        """What the wave makes."""
        return tuple(cell for trunk in self.trunks for cell in trunk.cells)

    def count_evaluations(self) -> dict[str, int]:
        """UNet evaluations by the key of the cell they are booked on (:func:`count_evaluations`)."""
        return {
            key: count for trunk in self.trunks for key, count in count_evaluations(trunk, self.n).items()
        }


def form_waves(cells: Iterable[Cell], limit: int, timesteps: Callable[[Cell], int]) -> tuple[Wave, ...]:
    """Cells to be made as waves of at most ``limit`` rows, in order of first appearance.

    Args:
        cells: distinct, in any order; their references only where they are to be made too.
        limit: rows of latents in a wave. A trunk with more branches is split, and its shared steps are then
            run, and counted, once a piece.
        timesteps: ``len(scheduler.timesteps)`` for a cell.
    """
    families: dict[tuple[object, ...], list[Trunk]] = {}
    for trunk in grow_trunks(cells):
        families.setdefault(_lock_step(trunk.reference), []).append(trunk)
    waves: list[Wave] = []
    for trunks in families.values():
        n = timesteps(trunks[0].reference)
        waves += [Wave(packed, n) for packed in _pack(trunks, limit, n)]
    return tuple(waves)


def _lock_step(cell: Cell) -> tuple[object, ...]:
    """What rows must agree in to be stepped by one scheduler object in one tensor."""
    return (
        cell.model,
        cell.dtype,
        cell.scheduler,
        cell.scheduler_config,
        cell.num_inference_steps,
        cell.eta,
        cell.height,
        cell.width,
    )


def _pack(trunks: Sequence[Trunk], limit: int, n: int) -> Iterator[tuple[Trunk, ...]]:
    packed: list[Trunk] = []
    filled = 0
    for piece in (piece for trunk in trunks for piece in _split(trunk, limit, n)):
        if packed and filled + rows(piece, n) > limit:
            yield tuple(packed)
            packed, filled = [], 0
        packed.append(piece)
        filled += rows(piece, n)
    if packed:
        yield tuple(packed)


def _split(trunk: Trunk, limit: int, n: int) -> Iterator[Trunk]:
    """A trunk as pieces of at most ``limit`` rows.

    The cells that take no row, the reference and its equals, stay together: every piece that holds one of
    them runs to the end, the others only until their cells depart.
    """
    if rows(trunk, n) <= limit:
        yield trunk
        return
    branches = departing(trunk, n)
    on_the_trunk = tuple(cell for cell in trunk.cells if departs(cell, n) == n)
    step = max(1, limit - 1)
    for start in range(0, len(branches), step):
        more = branches[start : start + step]
        yield Trunk(trunk.reference, more if start else on_the_trunk + more)


def _concept_spans(cells: Iterable[Cell], n: int, windows: dict[Cell, Interval], base: set[str]) -> int:
    """Evaluations of concepts within each cell's window, every text once a step, base texts excepted."""
    spans: dict[str, list[Interval]] = {}
    for cell in cells:
        low, high = windows[cell]
        for edit in cell.edits:
            start, stop = needed(edit, cell, n)
            if edit.concept not in base and max(start, low) < min(stop, high):
                spans.setdefault(edit.concept, []).append((max(start, low), min(stop, high)))
    return sum(_union_length(intervals) for intervals in spans.values())


def _union_length(intervals: list[Interval]) -> int:
    total, reached = 0, 0
    for start, stop in sorted(intervals):
        total += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return total

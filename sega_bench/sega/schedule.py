"""Which noise estimates a cell needs, at which step, and what it shares: pure arithmetic, no tensors.

The planner counts with these functions and the engine executes what they say, so the two cannot disagree.
Steps are indices into ``scheduler.timesteps``; ``n`` is its length (PNDM has one more than
``num_inference_steps``, Heun and KDPM2 nearly twice as many).

Why cells share work: until the first step at which its guidance can differ from plain classifier-free
guidance, an edited cell's latents are those of its unedited reference, bit for bit. All cells of one
reference therefore ride on one *trunk* until they *depart*; only their momentum is their own before that.

A cell that replays another prompt's edit takes its guidance from its *source*, the same edit of that prompt.
Both are stepped in one wave: the source computes the guidance, whoever replays it pays for plain
classifier-free guidance, and nothing is stored. A source that is not asked for itself runs all the same.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from sega_bench.cell import Cell
from sega_bench.sega.steps import (
    Interval,
    base_texts,
    breakpoints,
    computes_guidance,
    departs,
    needed,
    quiets,
)

AT_ONCE = 3
"""Waves under way: one that is served first and two that fill its gaps (:mod:`sega_bench.sega.pooling`)."""


@dataclass(frozen=True, slots=True)
class Source:
    """An edited cell that is not to be made, but runs because others replay its guidance.

    Args:
        cell: the edit.
        pays: key of the first cell that replays it, on which its evaluations are booked.
    """

    cell: Cell
    pays: str


@dataclass(frozen=True, slots=True)
class Trunk:
    """Cells that share a reference, in the order in which they were asked for.

    Args:
        reference: the unedited cell whose steps the others share.
        cells: what is to be made; may or may not contain the reference itself.
        sources: what else runs here.
    """

    reference: Cell
    cells: tuple[Cell, ...]
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Branch:
    """What a cell does after it left its trunk: steps ``[leaves, ends)`` on a row of its own.

    Args:
        cell: whose row it is.
        leaves: :func:`departs`.
        ends: the last step for a cell that is to be made; :func:`quiets` for a source that is not.
        pays: key of the cell that its evaluations are booked on.
    """

    cell: Cell
    leaves: int
    ends: int
    pays: str


def branches(trunk: Trunk, n: int) -> tuple[Branch, ...]:
    """The rows that fork from a trunk, in order of its cells and sources."""
    made = [Branch(cell, departs(cell, n), n, cell.key) for cell in trunk.cells if not cell.is_reference]
    lent = [Branch(s.cell, departs(s.cell, n), quiets(s.cell, n), s.pays) for s in trunk.sources]
    return tuple(branch for branch in (*made, *lent) if branch.leaves < n)


def count_evaluations(trunk: Trunk, n: int) -> dict[str, int]:
    """UNet evaluations of a trunk and its branches, by the key of the cell they are booked on.

    A branch's own evaluations are its cell's. The shared ones are booked on the reference if it is made, else
    on the first cell that departs, so that the sum is what is executed. What runs only to be replayed is
    booked on a cell that replays it, perhaps of another trunk.
    """
    bookings = Counter({cell.key: 0 for cell in trunk.cells})
    forks = branches(trunk, n)
    base = set(base_texts(trunk.reference, 0))
    for branch in forks:
        window = (branch.leaves, branch.ends)
        own = _concept_spans([(branch.cell, window)], n, base)
        bookings[branch.pays] += _base_evaluations(branch.cell, window, n) + own
    riding = [(branch.cell, (0, branch.leaves)) for branch in forks]
    bookings[pays_for_trunk(trunk, n)] += len(base) * ends(trunk, n) + _concept_spans(riding, n, base)
    return dict(bookings)


def _base_evaluations(cell: Cell, window: Interval, n: int) -> int:
    """Evaluations of the prompts that a row reads within a window of steps."""
    low, high = window
    edges = [low, *sorted(step for step in breakpoints([cell], n) if low < step < high), high]
    return sum(len(set(base_texts(cell, a))) * (b - a) for a, b in itertools.pairwise(edges))


def ends(trunk: Trunk, n: int) -> int:
    """The step at which a trunk is no longer needed.

    The last, if its reference's image is: asked for, or equal to a cell that is. Else the last departure.
    """
    if any(cell.is_reference or departs(cell, n) == n for cell in trunk.cells):
        return n
    return max(branch.leaves for branch in branches(trunk, n))


def pays_for_trunk(trunk: Trunk, n: int) -> str:
    """The key of the cell that a trunk's shared evaluations are booked on.

    The reference if it is made, else the first branch's, else (every cell equals a reference that is not
    asked for) the first.
    """
    for cell in trunk.cells:
        if cell.is_reference:
            return cell.key
    first = next(iter(branches(trunk, n)), None)
    return trunk.cells[0].key if first is None else first.pays


@dataclass(frozen=True)
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
        total: Counter[str] = Counter()
        for trunk in self.trunks:
            total.update(count_evaluations(trunk, self.n))
        return dict(total)

    @cached_property
    def unet_evals(self) -> int:
        """All of them; kept, for counting takes seconds where there are a hundred thousand cells."""
        return sum(self.count_evaluations().values())


def wave_of(cells: Sequence[Cell], n: int) -> Wave:
    """The wave that makes exactly these cells, which one scheduler can step, and runs what they replay."""
    groups: dict[Cell, tuple[list[Cell], dict[Cell, str]]] = {}
    for cell in cells:
        groups.setdefault(cell.reference(), ([], {}))[0].append(cell)
    made = set(cells)
    for cell in cells:
        source = cell.source()
        if source not in made and departs(cell, n) < n:
            groups.setdefault(source.reference(), ([], {}))[1].setdefault(source, cell.key)
    return Wave(
        tuple(
            Trunk(reference, tuple(own), tuple(Source(cell, pays) for cell, pays in sources.items()))
            for reference, (own, sources) in groups.items()
        ),
        n,
    )


def form_waves(cells: Iterable[Cell], limit: int, timesteps: Callable[[Cell], int]) -> tuple[Wave, ...]:
    """Cells to be made as waves of at most ``limit`` rows, a few at least, in order of first appearance.

    Args:
        cells: distinct, in any order; their references and sources only where they are to be made too.
        limit: rows of latents in a wave. What shares steps and needs more rows is split, and the shared steps
            are then run, and counted, once a piece. A single cell is never split, and takes up to four: its
            own trunk and branch, and those of its source.
        timesteps: ``len(scheduler.timesteps)`` for a cell.
    """
    families: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        families.setdefault(_lock_step(cell), []).append(cell)
    waves: list[Wave] = []
    for family in families.values():
        n = timesteps(family[0])
        waves += [wave_of(packed, n) for packed in _pack(family, limit, n)]
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


def _pack(cells: Sequence[Cell], limit: int, n: int) -> list[list[Cell]]:
    groups = [(together, _rows(together, n)) for together in _together(cells, limit, n)]
    total = sum(len(rows) for _, rows in groups)
    if total > AT_ONCE * limit or total > len(set().union(*(rows for _, rows in groups))):
        return _packed(groups, limit)  # as few as can be: pieces of a trunk repeat its steps
    # A few smaller waves fill each other's gaps; a single one would have none to fill its own.
    even = math.ceil(total / AT_ONCE)
    tried = (_packed(groups, rows) for rows in range(even, min(limit, total) + 1))
    return next((waves for waves in tried if len(waves) <= AT_ONCE), None) or _packed(groups, even)


def _packed(groups: Iterable[tuple[list[Cell], set[Cell]]], limit: int) -> list[list[Cell]]:
    """Groups in their order, each together with those before it as long as there is room."""
    packed: list[list[Cell]] = []
    rows: set[Cell] = set()
    for together, more in groups:
        if not packed or len(rows | more) > limit:
            packed.append([])
            rows = set()
        packed[-1] += together
        rows |= more
    return packed


def _rows(cells: Iterable[Cell], n: int) -> set[Cell]:
    """The rows of latents that making these cells takes, each by the cell whose image it becomes."""
    rows: set[Cell] = set()
    for cell in cells:
        rows.add(cell.reference())
        if departs(cell, n) < n:
            rows |= {cell, cell.source(), cell.source().reference()}
    return rows


def _together(cells: Sequence[Cell], limit: int, n: int) -> Iterator[list[Cell]]:
    """What should be in one wave: all that shares steps; if that is too much, a source and its replays."""
    for linked in sharing(cells):
        if len(_rows(linked, n)) <= limit:
            yield linked
            continue
        bundles: dict[Cell, list[Cell]] = {}
        for cell in linked:
            # What ends on the trunk itself stays together: every piece that holds one runs the whole of it.
            bundles.setdefault(cell.source() if departs(cell, n) < n else cell.reference(), []).append(cell)
        for bundle in bundles.values():
            if len(_rows(bundle, n)) <= limit:
                yield bundle
            else:
                yield from ([cell] for cell in bundle)


def sharing(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells of one trunk, and of trunks between which guidance is replayed, in order of first appearance."""
    parents: dict[Cell, Cell] = {}

    def root(trunk: Cell) -> Cell:
        while (parent := parents.setdefault(trunk, trunk)) is not trunk:
            parents[trunk] = trunk = parents[parent]
        return trunk

    references = [(cell, cell.reference()) for cell in cells]
    for cell, reference in references:
        if cell.replay is not None:
            parents[root(cell.source().reference())] = root(reference)
    groups: dict[Cell, list[Cell]] = {}
    for cell, reference in references:
        groups.setdefault(root(reference), []).append(cell)
    return list(groups.values())


def _concept_spans(windows: Iterable[tuple[Cell, Interval]], n: int, base: set[str]) -> int:
    """Evaluations of concepts within each cell's window, every text once a step, base texts excepted."""
    spans: dict[str, list[Interval]] = {}
    for cell, (low, high) in windows:
        for edit in cell.edits if computes_guidance(cell) else ():
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

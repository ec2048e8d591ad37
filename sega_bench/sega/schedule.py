"""Plan which noise estimates cells need and share, as integer arithmetic without tensors.

The planner counts with these functions and the engine executes their result, so the two cannot disagree.
Steps are indices into ``scheduler.timesteps``; ``n`` is its length (PNDM has one more than
``num_inference_steps``, Heun and KDPM2 nearly twice as many).

Why cells share work: until the first step at which its guidance can differ from plain classifier-free
guidance, an edited cell's latents are bit-identical to those of its unedited reference. All cells of one
reference therefore share one *trunk* until they *fork*; before that only their momentum is their own.

A cell that replays another prompt's edit takes its guidance from its *source*, the same edit of that prompt.
Both are stepped in one wave: the source computes the guidance, the replay costs plain classifier-free
guidance, and nothing is stored. The source runs even if it was not requested itself.
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
    fork_step,
    guidance_end,
    needed,
)

WAVES_IN_FLIGHT = 3
"""Waves stepped concurrently: one has priority, two fill its batches (:mod:`sega_bench.sega.pooling`)."""


@dataclass(frozen=True, slots=True)
class Source:
    """An edited cell that was not requested, but runs because others replay its guidance.

    Args:
        cell: the edit.
        billed_to: key of the first cell that replays it, which its evaluations are billed to.
    """

    cell: Cell
    billed_to: str


@dataclass(frozen=True, slots=True)
class Trunk:
    """Cells that share a reference, in the order of the request.

    Args:
        reference: the unedited cell whose steps the others share.
        cells: the requested cells, with or without the reference itself.
        sources: cells that run here only to be replayed.
    """

    reference: Cell
    cells: tuple[Cell, ...]
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Branch:
    """A cell after it left its trunk: steps ``[fork_step, end_step)`` on a row of its own.

    Args:
        cell: whose row it is.
        fork_step: :func:`sega_bench.sega.steps.fork_step`.
        end_step: ``n`` for a requested cell, :func:`sega_bench.sega.steps.guidance_end` for a source.
        billed_to: key of the cell that its evaluations are billed to.
    """

    cell: Cell
    fork_step: int
    end_step: int
    billed_to: str


def branches(trunk: Trunk, n: int) -> tuple[Branch, ...]:
    """The rows that fork from a trunk, in order of its cells and sources."""
    own = [Branch(cell, fork_step(cell, n), n, cell.key) for cell in trunk.cells if not cell.is_reference]
    replayed = [
        Branch(source.cell, fork_step(source.cell, n), guidance_end(source.cell, n), source.billed_to)
        for source in trunk.sources
    ]
    return tuple(branch for branch in (*own, *replayed) if branch.fork_step < n)


def count_evaluations(trunk: Trunk, n: int) -> dict[str, int]:
    """UNet evaluations of a trunk and its branches, by the key of the cell they are billed to.

    A branch's own evaluations are billed to its cell. The shared ones are billed to the reference if it was
    requested, else to the first cell that forks, so that the sum is what is executed. A source's evaluations
    are billed to a cell that replays it, possibly of another trunk.
    """
    billing = Counter({cell.key: 0 for cell in trunk.cells})
    forks = branches(trunk, n)
    base = set(base_texts(trunk.reference, 0))
    for branch in forks:
        window = (branch.fork_step, branch.end_step)
        concepts = _concept_evaluations([(branch.cell, window)], n, base)
        billing[branch.billed_to] += _base_evaluations(branch.cell, window, n) + concepts
    on_trunk = [(branch.cell, (0, branch.fork_step)) for branch in forks]
    shared = len(base) * trunk_end(trunk, n) + _concept_evaluations(on_trunk, n, base)
    billing[trunk_billed_to(trunk, n)] += shared
    return dict(billing)


def _base_evaluations(cell: Cell, window: Interval, n: int) -> int:
    """Evaluations of the prompts within a window of steps, which start anew where a method changes them."""
    low, high = window
    edges = [low, *sorted(step for step in breakpoints([cell], n) if low < step < high), high]
    return sum(len(set(base_texts(cell, a))) * (b - a) for a, b in itertools.pairwise(edges))


def trunk_end(trunk: Trunk, n: int) -> int:
    """The step from which a trunk is no longer needed.

    ``n`` if its reference's image is needed: requested, or equal to a requested cell's. Else the last fork.
    """
    if any(cell.is_reference or fork_step(cell, n) == n for cell in trunk.cells):
        return n
    return max(branch.fork_step for branch in branches(trunk, n))


def trunk_billed_to(trunk: Trunk, n: int) -> str:
    """The key of the cell that a trunk's shared evaluations are billed to.

    The reference if it was requested, else the first branch's cell. Without branches every cell equals a
    reference that was not requested; then the first cell.
    """
    for cell in trunk.cells:
        if cell.is_reference:
            return cell.key
    first = next(iter(branches(trunk, n)), None)
    return trunk.cells[0].key if first is None else first.billed_to


@dataclass(frozen=True)
class Wave:
    """Trunks that are stepped together: one scheduler, one number of steps, one size.

    Args:
        trunks: whole ones, or parts of trunks with more branches than a wave has rows.
        n: ``len(scheduler.timesteps)``.
    """

    trunks: tuple[Trunk, ...]
    n: int

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The requested cells."""
        return tuple(cell for trunk in self.trunks for cell in trunk.cells)

    def count_evaluations(self) -> dict[str, int]:
        """UNet evaluations by the key of the cell they are billed to (:func:`count_evaluations`)."""
        total: Counter[str] = Counter()
        for trunk in self.trunks:
            total.update(count_evaluations(trunk, self.n))
        return dict(total)

    @cached_property
    def unet_evals(self) -> int:
        """Total of the UNet evaluations; cached, because counting takes seconds for 100,000 cells."""
        return sum(self.count_evaluations().values())


def wave_of(cells: Sequence[Cell], n: int) -> Wave:
    """The wave of exactly these cells, which one scheduler must be able to step, and of their sources."""
    groups: dict[Cell, tuple[list[Cell], dict[Cell, str]]] = {}
    for cell in cells:
        groups.setdefault(cell.reference(), ([], {}))[0].append(cell)
    requested = set(cells)
    for cell in cells:
        source = cell.source()
        if source not in requested and fork_step(cell, n) < n:
            groups.setdefault(source.reference(), ([], {}))[1].setdefault(source, cell.key)
    return Wave(
        tuple(
            Trunk(reference, tuple(own), tuple(itertools.starmap(Source, sources.items())))
            for reference, (own, sources) in groups.items()
        ),
        n,
    )


def form_waves(cells: Iterable[Cell], limit: int, timesteps: Callable[[Cell], int]) -> tuple[Wave, ...]:
    """Group cells into waves of at most ``limit`` rows, a few waves at least, in order of first appearance.

    Args:
        cells: distinct, in any order; their references and sources only if requested too.
        limit: rows of latents in a wave. Cells that share steps and need more rows are split, and every part
            runs, and counts, the shared steps again. A single cell is never split. It takes up to four rows:
            its trunk, its branch, and those of its source.
        timesteps: ``len(scheduler.timesteps)`` for a cell.
    """
    families: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        families.setdefault(_scheduler_key(cell), []).append(cell)
    waves: list[Wave] = []
    for family in families.values():
        n = timesteps(family[0])
        waves += [wave_of(members, n) for members in _pack(family, limit, n)]
    return tuple(waves)


def _scheduler_key(cell: Cell) -> tuple[object, ...]:
    """The settings that rows must share to be stepped by one scheduler object in one tensor."""
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
    """The cells of each wave."""
    groups = [(group, _rows(group, n)) for group in _inseparable(cells, limit, n)]
    total = sum(len(rows) for _, rows in groups)
    are_disjoint = total == len(set().union(*(rows for _, rows in groups)))
    if total > WAVES_IN_FLIGHT * limit or not are_disjoint:
        return _next_fit(groups, limit)  # as few waves as possible: parts of a trunk repeat its steps
    # A few smaller waves fill each other's batches; a single one would leave its own partly empty.
    even = math.ceil(total / WAVES_IN_FLIGHT)
    candidates = (_next_fit(groups, rows) for rows in range(even, min(limit, total) + 1))
    fitting = (waves for waves in candidates if len(waves) <= WAVES_IN_FLIGHT)
    return next(fitting, None) or _next_fit(groups, even)


def _next_fit(groups: Iterable[tuple[list[Cell], set[Cell]]], limit: int) -> list[list[Cell]]:
    """Fill waves with the groups in their order; a group that does not fit starts the next wave."""
    waves: list[list[Cell]] = []
    rows: set[Cell] = set()
    for group, group_rows in groups:
        if not waves or len(rows | group_rows) > limit:
            waves.append([])
            rows = set()
        waves[-1] += group
        rows |= group_rows
    return waves


def _rows(cells: Iterable[Cell], n: int) -> set[Cell]:
    """The rows of latents that these cells need, each named by the cell whose image it becomes."""
    rows: set[Cell] = set()
    for cell in cells:
        rows.add(cell.reference())
        if fork_step(cell, n) < n:
            rows |= {cell, cell.source(), cell.source().reference()}
    return rows


def _inseparable(cells: Sequence[Cell], limit: int, n: int) -> Iterator[list[Cell]]:
    """Cells to keep in one wave: all that share steps, or if these are too many, a source and its replays."""
    for linked in group_by_trunk(cells):
        if len(_rows(linked, n)) <= limit:
            yield linked
            continue
        bundles: dict[Cell, list[Cell]] = {}
        for cell in linked:
            # Cells equal to their reference stay together: every part that holds one runs the whole trunk.
            bundles.setdefault(cell.source() if fork_step(cell, n) < n else cell.reference(), []).append(cell)
        for bundle in bundles.values():
            if len(_rows(bundle, n)) <= limit:
                yield bundle
            else:
                yield from ([cell] for cell in bundle)


def group_by_trunk(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Group cells by trunk, joined where guidance is replayed, in order of first appearance."""
    parents: dict[Cell, Cell] = {}  # a union-find forest of references

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


def _concept_evaluations(windows: Iterable[tuple[Cell, Interval]], n: int, base: set[str]) -> int:
    """Evaluations of concepts within each cell's window, every text once per step, without base texts."""
    intervals: dict[str, list[Interval]] = {}
    for cell, (low, high) in windows:
        for edit in cell.edits if computes_guidance(cell) else ():
            start, stop = needed(edit, cell, n)
            start, stop = max(start, low), min(stop, high)
            if edit.concept not in base and start < stop:
                intervals.setdefault(edit.concept, []).append((start, stop))
    return sum(map(_union_length, intervals.values()))


def _union_length(intervals: list[Interval]) -> int:
    """Steps that lie in at least one interval."""
    total, reached = 0, 0
    for start, stop in sorted(intervals):
        total += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return total

"""Split cells into shards that take about the same time, as integer arithmetic without tensors.

The cost of a shard is its number of UNet evaluations, as the engine executes them. Cells that share steps
stay together. They are only divided if that shortens the longest shard, although every part then runs, and
counts, the shared steps again.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sega_bench.cell import Cell
from sega_bench.sega.schedule import Wave, form_waves, group_by_trunk
from sega_bench.sega.steps import image_owner

EVEN = 1.02
"""A longest shard of at most this many times the mean is short enough: no trunk is divided to shorten it."""

_LENGTHS = 1000
"""The longest shard's length is searched to this fraction of the mean."""

Cost = Callable[[Sequence[Cell]], int]
"""UNet evaluations of cells that run together."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The cells of one worker.

    Args:
        cells: in the order of the plan.
        unet_evals: UNet evaluations of the cells; an upper bound, because two parts of a trunk in one shard
            share steps.
    """

    cells: tuple[Cell, ...]
    unet_evals: int


@dataclass(frozen=True, slots=True)
class ShardSplit:
    """Cells split into shards, and their cost without the split.

    Args:
        shards: none of them empty.
        trunks: the largest number of shards that repeat none of each other's steps.
        unet_evals: UNet evaluations that a single worker would need.
    """

    shards: tuple[Shard, ...]
    trunks: int
    unet_evals: int


Assignment = list[dict[int, Shard]]
"""The parts of pieces that each worker has, by the piece's number."""


def split_into_shards(
    cells: Sequence[Cell], count: int, limit: int, timesteps: Callable[[Cell], int]
) -> ShardSplit:
    """Split cells into at most ``count`` shards; every cell is in exactly one.

    Whole trunks are assigned first, largest first, each to the shortest shard (Graham 1969). If the longest
    shard then exceeds :data:`EVEN` times the mean, shards are filled one after the other, and a trunk that
    does not fit continues in the next shard (McNaughton 1959), which cuts few trunks. Then single cells move
    between shards that share a trunk. The second split is used if its longest shard is shorter.

    Args:
        cells: distinct; their references and sources only if requested too.
        count: number of workers.
        limit: rows of latents in a wave; larger trunks start out in parts.
        timesteps: ``len(scheduler.timesteps)`` for a cell.
    """
    trunks = group_by_trunk(cells)
    waves = [wave for trunk in trunks for wave in form_waves(trunk, limit, timesteps)]
    assignment = assign_waves(waves, count, limit, timesteps)
    position = {cell: i for i, cell in enumerate(cells)}
    shards = tuple(
        Shard(
            tuple(sorted((cell for part in parts.values() for cell in part.cells), key=position.__getitem__)),
            length,
        )
        for parts, length in zip(assignment, _lengths(assignment), strict=True)
        if length
    )
    return ShardSplit(shards, len(trunks), sum(wave.unet_evals for wave in waves))


def assign_waves(
    waves: Sequence[Wave], count: int, limit: int, timesteps: Callable[[Cell], int]
) -> Assignment:
    """Assign waves to ``count`` shards, some possibly empty, as :func:`split_into_shards` describes.

    Each wave holds one trunk, or a part of one.
    """

    def cost(part: Sequence[Cell]) -> int:
        return sum(wave.unet_evals for wave in form_waves(part, limit, timesteps))

    assignment = _assign_whole([Shard(wave.cells, wave.unet_evals) for wave in waves], count)
    longest = max(_lengths(assignment))
    for order in (_sources_together, _costly_first):
        if not _is_even(assignment):
            pieces = [Shard(order(wave), wave.unet_evals) for wave in waves]
            candidate = _assign_cut(pieces, count, cost, longest) or assignment
            assignment = min(assignment, candidate, key=lambda each: max(_lengths(each)))
    return assignment


def _sources_together(wave: Wave) -> tuple[Cell, ...]:
    """A wave's cells, ordered so that a source and its replays, and cells of one image, are neighbours."""
    return tuple(itertools.chain(*_bundles(wave)))


def _costly_first(wave: Wave) -> tuple[Cell, ...]:
    """The same with costly neighbours first, so that cheap ones remain to even out the shards."""
    billing = wave.count_evaluations()
    return tuple(
        itertools.chain(
            *sorted(_bundles(wave), key=lambda bundle: -sum(billing[cell.key] for cell in bundle))
        )
    )


def _bundles(wave: Wave) -> list[list[Cell]]:
    bundles: dict[Cell, list[Cell]] = {}
    for cell in wave.cells:
        bundles.setdefault(image_owner(cell, wave.n).source(), []).append(cell)
    return list(bundles.values())


def _lengths(assignment: Assignment) -> list[int]:
    return [sum(part.unet_evals for part in parts.values()) for parts in assignment]


def _is_even(assignment: Assignment) -> bool:
    lengths = _lengths(assignment)
    return max(lengths) * len(lengths) <= EVEN * sum(lengths)


def _assign_whole(pieces: Sequence[Shard], count: int) -> Assignment:
    """Assign whole pieces, largest first, each to the shortest shard."""
    assignment: Assignment = [{} for _ in range(count)]
    shortest = [(0, shard) for shard in range(count)]
    for number in sorted(range(len(pieces)), key=lambda number: -pieces[number].unet_evals):
        length, shard = heapq.heappop(shortest)
        assignment[shard][number] = pieces[number]
        heapq.heappush(shortest, (length + pieces[number].unet_evals, shard))
    return assignment


def _assign_cut(pieces: Sequence[Shard], count: int, cost: Cost, longest: int) -> Assignment | None:
    """Assign pieces to shards shorter than ``longest``, cutting some; None if no cut makes them shorter."""
    best: Assignment | None = None

    def fits(length: int) -> bool:
        nonlocal best
        filled = _fill_in_order(pieces, count, cost, length)
        best = filled or best
        return filled is not None

    mean = sum(piece.unet_evals for piece in pieces) // count
    # A binary search for the shortest length that fits; the last one that fitted stays in ``best``.
    bisect_left(range(mean, longest, max(1, mean // _LENGTHS)), True, key=fits)
    while best is not None and not _is_even(best) and _shorten_longest(best, cost):
        pass
    return best


def _fill_in_order(pieces: Sequence[Shard], count: int, cost: Cost, length: int) -> Assignment | None:
    """Fill shards of at most this length one after the other; None if ``count`` shards do not suffice."""
    filled: Assignment = [{}]
    remaining, room = list(enumerate(pieces))[::-1], length
    while remaining:
        number, piece = remaining.pop()
        if piece.unet_evals <= room:
            filled[-1][number] = piece
            room -= piece.unet_evals
            continue
        if prefix := _longest_prefix(piece, room, cost):
            filled[-1][number] = prefix
            rest = piece.cells[len(prefix.cells) :]
            piece = Shard(rest, cost(rest))
        if len(filled) == count or not filled[-1]:
            return None
        filled.append({})
        room = length
        remaining.append((number, piece))
    return filled + [{} for _ in range(count - len(filled))]


def _longest_prefix(piece: Shard, room: int, cost: Cost) -> Shard | None:
    """The longest prefix of a too long piece's cells that fits; None if the first cell does not.

    The cost of a prefix grows monotonically and nearly linearly. The search therefore interpolates, and
    bisects after a step that did not halve the interval.
    """
    best = Shard((), 0)
    low, high, high_evals = 0, len(piece.cells), piece.unet_evals
    interpolates = True
    while high - low > 1:
        width = high - low
        share = (room - best.unet_evals) / (high_evals - best.unet_evals) if interpolates else 0.5
        middle = min(high - 1, max(low + 1, low + round(width * share)))
        candidate = Shard(piece.cells[:middle], cost(piece.cells[:middle]))
        if candidate.unet_evals <= room:
            low, best = middle, candidate
        else:
            high, high_evals = middle, candidate.unet_evals
        interpolates = high - low <= width / 2
    return best if low else None


def _shorten_longest(assignment: Assignment, cost: Cost) -> bool:
    """Move or swap a cell between parts of one trunk, the one that shortens the longest shard most.

    Returns:
        Whether any move shortened it.
    """
    lengths = _lengths(assignment)
    best_length = max(lengths)
    longest = lengths.index(best_length)
    best: tuple[int, int, Shard, Shard] | None = None
    for number, part in assignment[longest].items():
        for shard, other in enumerate(parts.get(number) for parts in assignment):
            if other is None or shard == longest:
                continue
            for smaller, larger in _moves(part, other, cost):
                length = max(
                    lengths[longest] - part.unet_evals + smaller.unet_evals,
                    lengths[shard] - other.unet_evals + larger.unet_evals,
                )
                if length < best_length:
                    best_length, best = length, (number, shard, smaller, larger)
    if best is None:
        return False
    number, shard, assignment[longest][number], assignment[shard][number] = best
    return True


def _moves(part: Shard, other: Shard, cost: Cost) -> Iterator[tuple[Shard, Shard]]:
    """Both parts after a cell moved to the other, possibly in exchange; tries one cell of every cost."""

    def one_per_cost(cells: Sequence[Cell]) -> Iterable[Cell]:
        return {cost([cell]): cell for cell in cells}.values()

    def changed(shard: Shard, lost: Cell | None, gained: Cell | None) -> Shard:
        cells = (*(cell for cell in shard.cells if cell != lost), *((gained,) if gained else ()))
        return Shard(cells, cost(cells))

    for moved in one_per_cost(part.cells) if len(part.cells) > 1 else ():
        for returned in (None, *one_per_cost(other.cells)):
            yield changed(part, moved, returned), changed(other, returned, moved)

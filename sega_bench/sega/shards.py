"""Cells dealt out to workers, so that all of them end at about the same time: arithmetic, no tensors.

Cost is counted in UNet evaluations, as the engine executes them. Cells that share steps stay together, and
are only divided where that shortens the longest shard, although the shared steps are then run, and counted,
once a part.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sega_bench.cell import Cell
from sega_bench.sega.schedule import Wave, form_waves, sharing
from sega_bench.sega.steps import image_owner

EVEN = 1.02
"""A longest shard of so many times the mean is short enough: nothing is divided to shorten it."""

_LENGTHS = 1000
"""A longest shard is looked for to this part of the mean."""

Cost = Callable[[Sequence[Cell]], int]


@dataclass(frozen=True, slots=True)
class Shard:
    """What one worker makes.

    Args:
        cells: in the order of the plan.
        unet_evals: UNet evaluations to make them, an estimate: parts of a trunk that meet again share steps.
    """

    cells: tuple[Cell, ...]
    unet_evals: int


@dataclass(frozen=True, slots=True)
class Shards:
    """Cells in shards, beside what they are without any.

    Args:
        parts: the shards, none of them empty.
        trunks: how many there can be of which none repeats what another does.
        unet_evals: UNet evaluations that one worker alone would make.
    """

    parts: tuple[Shard, ...]
    trunks: int
    unet_evals: int


Dealt = list[dict[int, Shard]]
"""What each worker has so far: parts of pieces, by the number of the piece."""


def shards(cells: Sequence[Cell], count: int, limit: int, timesteps: Callable[[Cell], int]) -> Shards:
    """Cells to be made as at most ``count`` shards; every cell is in one.

    Whole trunks go, largest first, to whoever has least (Graham 1969). If the longest shard is then more than
    :data:`EVEN` times the mean, shards are filled one after the other, and what does not fit goes on in the
    next one (McNaughton 1959), so that few trunks are cut; then single cells move between shards that share a
    trunk. That is taken where it is shorter.

    Args:
        cells: distinct; their references and sources only where they are to be made too.
        count: of workers.
        limit: rows of latents in a wave; a trunk that needs more is in pieces to begin with.
        timesteps: ``len(scheduler.timesteps)`` for a cell.
    """
    trunks = sharing(cells)
    waves = [wave for together in trunks for wave in form_waves(together, limit, timesteps)]
    dealt = deal(waves, count, limit, timesteps)
    place = {cell: i for i, cell in enumerate(cells)}
    parts = tuple(
        Shard(tuple(sorted((cell for part in parts for cell in part.cells), key=place.__getitem__)), length)
        for parts, length in zip((parts.values() for parts in dealt), _lengths(dealt), strict=True)
        if length
    )
    return Shards(parts, len(trunks), sum(wave.unet_evals for wave in waves))


def deal(waves: Sequence[Wave], count: int, limit: int, timesteps: Callable[[Cell], int]) -> Dealt:
    """Waves, each of one trunk or a piece of one, as ``count`` shards, some perhaps empty: :func:`shards`."""

    def cost(part: Sequence[Cell]) -> int:
        return sum(wave.unet_evals for wave in form_waves(part, limit, timesteps))

    dealt = _dealt([Shard(wave.cells, wave.unet_evals) for wave in waves], count)
    longest = max(_lengths(dealt))
    for order in (_sources_together, _costly_first):
        if not _is_even(dealt):
            pieces = [Shard(order(wave), wave.unet_evals) for wave in waves]
            cut = _cut(pieces, count, cost, longest)
            dealt = min(dealt, cut or dealt, key=lambda dealt: max(_lengths(dealt)))
    return dealt


def _sources_together(wave: Wave) -> tuple[Cell, ...]:
    """A wave's cells; a source and its replays, and cells that are equal, are neighbours."""
    return tuple(itertools.chain(*_bundles(wave)))


def _costly_first(wave: Wave) -> tuple[Cell, ...]:
    """The same, so that small ones are left to make up the difference."""
    booked = wave.count_evaluations()
    return tuple(
        itertools.chain(*sorted(_bundles(wave), key=lambda bundle: -sum(booked[cell.key] for cell in bundle)))
    )


def _bundles(wave: Wave) -> list[list[Cell]]:
    bundles: dict[Cell, list[Cell]] = {}
    for cell in wave.cells:
        bundles.setdefault(image_owner(cell, wave.n).source(), []).append(cell)
    return list(bundles.values())


def _lengths(dealt: Dealt) -> list[int]:
    return [sum(part.unet_evals for part in parts.values()) for parts in dealt]


def _is_even(dealt: Dealt) -> bool:
    lengths = _lengths(dealt)
    return max(lengths) * len(lengths) <= EVEN * sum(lengths)


def _dealt(pieces: Sequence[Shard], count: int) -> Dealt:
    """Whole pieces, the largest first, each to the shard that has least."""
    dealt: Dealt = [{} for _ in range(count)]
    least = [(0, number) for number in range(count)]
    for name in sorted(range(len(pieces)), key=lambda name: -pieces[name].unet_evals):
        length, number = heapq.heappop(least)
        dealt[number][name] = pieces[name]
        heapq.heappush(least, (length + pieces[name].unet_evals, number))
    return dealt


def _cut(pieces: Sequence[Shard], count: int, cost: Cost, longest: int) -> Dealt | None:
    """The pieces in shards shorter than ``longest``, some of them cut; None if that makes them no shorter."""
    found: Dealt | None = None

    def fits(length: int) -> bool:
        nonlocal found
        filled = _filled(pieces, count, cost, length)
        found = filled or found
        return filled is not None

    mean = sum(piece.unet_evals for piece in pieces) // count
    bisect_left(range(mean, longest, max(1, mean // _LENGTHS)), True, key=fits)
    while found is not None and not _is_even(found) and _shorten(found, cost):
        pass
    return found


def _filled(pieces: Sequence[Shard], count: int, cost: Cost, length: int) -> Dealt | None:
    """Shards of at most this length, filled one after the other; None if ``count`` do not suffice."""
    filled: Dealt = [{}]
    left, room = list(enumerate(pieces))[::-1], length
    while left:
        name, piece = left.pop()
        if piece.unet_evals <= room:
            filled[-1][name] = piece
            room -= piece.unet_evals
            continue
        if fitting := _fitting(piece, room, cost):
            filled[-1][name] = fitting
            rest = piece.cells[len(fitting.cells) :]
            piece = Shard(rest, cost(rest))
        if len(filled) == count or not filled[-1]:
            return None
        filled.append({})
        room = length
        left.append((name, piece))
    return filled + [{} for _ in range(count - len(filled))]


def _fitting(piece: Shard, room: int, cost: Cost) -> Shard | None:
    """As many of the first cells of a piece that is too long as fit; None if the first does not.

    What more cells cost is never less, and grows nearly evenly: it is looked for in proportion, and in the
    middle where that has not halved what is left to look at.
    """
    most = Shard((), 0)
    low, high, too_much = 0, len(piece.cells), piece.unet_evals
    in_proportion = True
    while high - low > 1:
        width = high - low
        share = (room - most.unet_evals) / (too_much - most.unet_evals) if in_proportion else 0.5
        middle = min(high - 1, max(low + 1, low + round(width * share)))
        tried = Shard(piece.cells[:middle], cost(piece.cells[:middle]))
        if tried.unet_evals <= room:
            low, most = middle, tried
        else:
            high, too_much = middle, tried.unet_evals
        in_proportion = high - low <= width / 2
    return most if low else None


def _shorten(dealt: Dealt, cost: Cost) -> bool:
    """Move or exchange a cell between parts of a trunk, the one that shortens the longest shard most."""
    lengths = _lengths(dealt)
    shortest = max(lengths)
    longest = lengths.index(shortest)
    best: tuple[int, int, Shard, Shard] | None = None
    for name, part in dealt[longest].items():
        for number, other in enumerate(parts.get(name) for parts in dealt):
            if other is None or number == longest:
                continue
            for less, more in _exchanges(part, other, cost):
                now = max(
                    lengths[longest] - part.unet_evals + less.unet_evals,
                    lengths[number] - other.unet_evals + more.unet_evals,
                )
                if now < shortest:
                    shortest, best = now, (name, number, less, more)
    if best is None:
        return False
    name, number, dealt[longest][name], dealt[number][name] = best
    return True


def _exchanges(part: Shard, other: Shard, cost: Cost) -> Iterator[tuple[Shard, Shard]]:
    """Both after a cell has gone to the other one, perhaps for another; one cell of every cost is tried."""

    def kinds(cells: Sequence[Cell]) -> Iterable[Cell]:
        return {cost([cell]): cell for cell in cells}.values()

    def exchanged(shard: Shard, lost: Cell | None, gained: Cell | None) -> Shard:
        cells = (*(cell for cell in shard.cells if cell != lost), *((gained,) if gained else ()))
        return Shard(cells, cost(cells))

    for gone in kinds(part.cells) if len(part.cells) > 1 else ():
        for back in (None, *kinds(other.cells)):
            yield exchanged(part, gone, back), exchanged(other, back, gone)

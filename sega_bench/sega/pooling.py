"""Several waves at once through one UNet, so that its batches are full.

A step of a wave seldom needs a whole number of batches, and the next step cannot begin before the last of
them is done. Waves are therefore coroutines: each asks for the estimates of a step and is resumed with them.
What several ask for goes into the same micro-batches, the oldest wave's first; a younger one takes what would
be padding, and threads that would be idle. Language models are served in this way (continuous batching).
The last ones have none behind them to fill their gaps, so that on several threads they fill each other's to
the end: whichever has the most steps before it comes first.

A batch has one fixed size whoever is in it, so an image does not depend on what is beside it.

Shapes: E estimates of a request, B a micro-batch.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from sega_bench.sega.batching import Batching, executor, padded
from sega_bench.sega.denoiser import Conditioning, Denoiser

READY = 2
"""Batches handed out for each thread: one to work on, and one to go on with."""


class Request(NamedTuple):
    """Estimates that somebody needs before he can go on.

    Args:
        latents_ECHW: scaled for the timestep.
        timestep: without dimensions, on the denoiser's device.
        conditioning_E: of as many texts.
        steps_left: so many requests will come from the same task, this one included.
    """

    latents_ECHW: Tensor
    timestep: Tensor
    conditioning_E: Conditioning
    steps_left: int = 1


_Result = TypeVar("_Result")
Task = Generator[Request, Tensor, _Result]
"""Asks for estimates, is sent them as ECHW, and returns something in the end."""


def run_pooled(
    denoiser: Denoiser,
    tasks: Iterable[Task[_Result]],
    batching: Batching,
    on_evaluations: Callable[[int], None],
    at_once: int = 1,
) -> Iterator[_Result | Exception]:
    """What each task returned or raised, in their order; some of those behind it have begun by then.

    Args:
        denoiser: the model.
        tasks: each is begun, and asked for, when there is room for it.
        batching: its ``micro`` is halved for good when memory runs out. A task has failed when not even one
            of its estimates fits.
        on_evaluations: called with the number of UNet evaluations just made.
        at_once: tasks under way.
    """
    pool = _Pool[_Result](denoiser, batching, on_evaluations)
    coming = iter(tasks)
    try:
        while True:
            pool.begin(coming, at_once)
            if not pool.under_way:
                return
            while not pool.under_way[0].is_over:
                pool.work()
            yield pool.under_way.popleft().outcome()
    finally:
        pool.close()


def evaluate(
    denoiser: Denoiser, request: Request, batching: Batching, on_evaluations: Callable[[int], None]
) -> Tensor:
    """The estimates ECHW of one request.

    Raises:
        torch.OutOfMemoryError: memory does not even suffice for one of them.
    """

    def ask() -> Task[Tensor]:
        return (yield request)

    (estimates_ECHW,) = run_pooled(denoiser, [ask()], batching, on_evaluations)
    if isinstance(estimates_ECHW, Exception):
        raise estimates_ECHW
    return estimates_ECHW


class _UnderWay(Generic[_Result]):
    """A task that waits for estimates, or is over.

    ``is_apart`` says that one of its batches raised: until its request is met it shares none.
    """

    def __init__(self, task: Task[_Result]) -> None:
        self._task = task
        self._outcome: list[_Result | Exception] = []
        self.resume(None)

    @property
    def is_over(self) -> bool:
        return bool(self._outcome)

    def outcome(self) -> _Result | Exception:
        return self._outcome[0]

    def resume(self, eps_ECHW: Tensor | None) -> None:
        """Send it what it waits for (None: begin) and take its next request."""
        self.is_apart = False
        self._made: dict[int, Tensor] = {}
        self._spans: deque[range] = deque()
        try:
            self.request = next(self._task) if eps_ECHW is None else self._task.send(eps_ECHW)
        except StopIteration as stop:
            self._outcome.append(stop.value)
        except Exception as error:
            self._outcome.append(error)
        else:
            self._spans.append(range(len(self.request.latents_ECHW)))

    def fail(self, error: Exception) -> None:
        """End it, whatever is still being made for it."""
        self.close()
        self._spans.clear()
        self._outcome.append(error)

    def close(self) -> None:
        """Let the task clean up after itself where it is."""
        self._task.close()

    @property
    def waiting(self) -> int:
        """Estimates that are in no batch yet."""
        return sum(map(len, self._spans))

    def take(self, most: int) -> Iterator[_Part]:
        """So many of these, or all."""
        while self._spans and most > 0:
            span = self._spans.popleft()
            if len(span) > most:
                self._spans.appendleft(span[most:])
            yield _Part(self, span[:most])
            most -= len(span)

    def put_back(self, span: range) -> None:
        """They were in a batch that came to nothing."""
        if not self.is_over:
            self._spans.append(span)

    def receive(self, span: range, eps_BCHW: Tensor) -> None:
        """Some of its estimates; with the last of them it goes on."""
        if self.is_over:
            return
        self._made[span.start] = eps_BCHW
        if sum(map(len, self._made.values())) == len(self.request.latents_ECHW):
            self.resume(torch.cat([self._made[start] for start in sorted(self._made)]))


class _Part(NamedTuple):
    """Some estimates of one task within a batch."""

    task: _UnderWay[Any]
    span: range

    @property
    def request(self) -> Request:
        whole = self.task.request
        rows = slice(self.span.start, self.span.stop)
        return whole._replace(
            latents_ECHW=whole.latents_ECHW[rows],
            timestep=whole.timestep.float().expand(len(self.span)),  # as the UNet itself reads it
            conditioning_E={name: value_E[rows] for name, value_E in whole.conditioning_E.items()},
        )


class _Pool(Generic[_Result]):
    """Tasks under way, the oldest first, and the batches that are being evaluated for them."""

    def __init__(self, denoiser: Denoiser, batching: Batching, on_evaluations: Callable[[int], None]) -> None:
        self.under_way: deque[_UnderWay[_Result]] = deque()
        self._denoiser, self._batching, self._on_evaluations = denoiser, batching, on_evaluations
        self._executor, self._threads = executor(denoiser.device)
        self._running: dict[Future[Tensor], tuple[int, list[_Part]]] = {}
        self._are_last = False

    def begin(self, coming: Iterator[Task[_Result]], at_once: int) -> None:
        """Take in as many as there is room for; each runs until it first asks for something."""
        self.under_way.extend(map(_UnderWay, itertools.islice(coming, at_once - len(self.under_way))))
        self._are_last = len(self.under_way) < at_once

    def work(self) -> None:
        """Hand out batches, wait for one and give the tasks what is in it."""
        while len(self._running) < READY * self._threads and (parts := self._cut()):
            size = self._batching.micro
            requests = [part.request for part in parts]
            self._running[self._executor.submit(self._predict, requests, size)] = size, parts
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        for future in done:
            size, parts = self._running.pop(future)
            if (error := future.exception()) is None:
                self._deliver(future.result(), parts)
            else:
                self._retreat(error, size, parts)

    def _cut(self) -> list[_Part]:
        """The next batch, of what the first tasks wait for; one that is not full only for an idle thread.

        The first are the oldest, so that a kill costs little. A single thread is always busy; beside the last
        task others would be idle, so that of the last few those that are behind come first: all end together.
        """
        waiting = [task for task in self.under_way if task.waiting]
        if not waiting:
            return []
        if self._are_last and self._threads > 1:
            waiting.sort(key=lambda task: task.request.steps_left, reverse=True)
        first = waiting[0]
        shape = first.request.latents_ECHW.shape[1:]
        together = (
            [first]
            if first.is_apart
            else [
                task for task in waiting if not task.is_apart and task.request.latents_ECHW.shape[1:] == shape
            ]
        )
        size = self._batching.micro
        if sum(task.waiting for task in together) < size and len(self._running) >= self._threads:
            return []
        parts: list[_Part] = []
        for task in together:
            parts += task.take(size - sum(len(part.span) for part in parts))
        return parts

    def _predict(self, requests: Sequence[Request], size: int) -> Tensor:
        """The estimates of some requests in one pass, what was made of padding cut off. Runs on a thread."""
        latents, timesteps, conditionings, _ = zip(*requests, strict=True)
        latents_BCHW = torch.cat(latents)
        conditioning = {
            name: padded(torch.cat([one[name] for one in conditionings]), size) for name in conditionings[0]
        }
        eps_BCHW = self._denoiser.predict(
            padded(latents_BCHW, size), padded(torch.cat(timesteps), size), conditioning
        )
        return eps_BCHW[: len(latents_BCHW)]

    def _deliver(self, eps_BCHW: Tensor, parts: Sequence[_Part]) -> None:
        self._on_evaluations(len(eps_BCHW))
        start = 0
        for task, span in parts:
            task.receive(span, eps_BCHW[start : start + len(span)])
            start += len(span)

    def _retreat(self, error: BaseException, size: int, parts: Sequence[_Part]) -> None:
        """A batch raised: try smaller ones if memory ran out, else each task by itself."""
        if not isinstance(error, Exception):
            raise error
        is_memory = isinstance(error, torch.OutOfMemoryError)
        if is_memory and size > 1:
            error.__traceback__ = None  # it holds the network's tensors
            self._batching.micro = min(self._batching.micro, size // 2)
            if self._denoiser.device.type == "cuda":
                torch.cuda.empty_cache()
        elif all(part.task is parts[0].task for part in parts):
            parts[0].task.fail(error)
            return
        for task, span in parts:
            task.is_apart |= not is_memory
            task.put_back(span)

    def close(self) -> None:
        """Take nothing further in hand."""
        for future in self._running:
            future.cancel()
        for task in self.under_way:
            task.close()

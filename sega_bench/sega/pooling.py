"""Run several waves concurrently through one UNet, so that its batches are full (continuous batching).

A step of a wave seldom needs a whole number of batches, and the next step cannot start before the last batch
is done. Waves are therefore coroutines: each yields a request for the estimates of a step and is resumed with
them. Requests of several waves share micro-batches. The oldest wave has priority; younger ones fill the rows
that would be padding and the threads that would be idle. No wave follows the last ones, so on several threads
these take priority by their remaining steps and end together.

A batch has one fixed size whatever its rows, so an image does not depend on its batch mates.

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

BATCHES_PER_THREAD = 2
"""Batches submitted for each thread: one that runs, and one queued so that the thread never waits."""


class Request(NamedTuple):
    """The estimates that a task needs to continue.

    Args:
        latents_ECHW: scaled for the timestep.
        timestep: without dimensions, on the denoiser's device.
        conditioning_E: of E texts.
        steps_left: number of requests that this task will still make, including this one.
    """

    latents_ECHW: Tensor
    timestep: Tensor
    conditioning_E: Conditioning
    steps_left: int = 1


_Result = TypeVar("_Result")
Task = Generator[Request, Tensor, _Result]
"""A coroutine that yields requests, receives their estimates as ECHW, and returns its result."""


def run_pooled(
    denoiser: Denoiser,
    tasks: Iterable[Task[_Result]],
    batching: Batching,
    on_evaluations: Callable[[int], None],
    tasks_in_flight: int = 1,
) -> Iterator[_Result | Exception]:
    """Run tasks and yield in their order what each returned or raised.

    Args:
        denoiser: the model.
        tasks: taken from the iterable, and started, as soon as fewer than ``tasks_in_flight`` run.
        batching: its ``micro`` is halved permanently when memory runs out. A task fails when not even one of
            its estimates fits.
        on_evaluations: called with the number of UNet evaluations just made.
        tasks_in_flight: number of tasks that run concurrently.
    """
    pool = _Pool[_Result](denoiser, batching, on_evaluations)
    pending = iter(tasks)
    try:
        while True:
            pool.start_tasks(pending, tasks_in_flight)
            if not pool.active:
                return
            while not pool.active[0].is_over:
                pool.run_batch()
            yield pool.active.popleft().result()
    finally:
        pool.close()


def evaluate(
    denoiser: Denoiser, request: Request, batching: Batching, on_evaluations: Callable[[int], None]
) -> Tensor:
    """The estimates ECHW of one request.

    Raises:
        torch.OutOfMemoryError: not even one of them fits into memory.
    """

    def task() -> Task[Tensor]:
        return (yield request)

    (estimates_ECHW,) = run_pooled(denoiser, [task()], batching, on_evaluations)
    if isinstance(estimates_ECHW, Exception):
        raise estimates_ECHW
    return estimates_ECHW


class _ActiveTask(Generic[_Result]):
    """A started task: it waits for the estimates of its request, or is over.

    ``is_isolated`` means that one of its batches raised: until its request is met it shares no batch.
    """

    def __init__(self, task: Task[_Result]) -> None:
        self._task = task
        self._results: list[_Result | Exception] = []  # empty until the task is over: a result may be None
        self.resume(None)

    @property
    def is_over(self) -> bool:
        return bool(self._results)

    def result(self) -> _Result | Exception:
        return self._results[0]

    def resume(self, eps_ECHW: Tensor | None) -> None:
        """Send the task its estimates (None: start it) and take its next request."""
        self.is_isolated = False
        self._received: dict[int, Tensor] = {}
        self._unbatched: deque[range] = deque()
        try:
            self.request = next(self._task) if eps_ECHW is None else self._task.send(eps_ECHW)
        except StopIteration as stop:
            self._results.append(stop.value)
        except Exception as error:
            self._results.append(error)
        else:
            self._unbatched.append(range(len(self.request.latents_ECHW)))

    def fail(self, error: Exception) -> None:
        """End the task; estimates of it that are still running will be ignored."""
        self.close()
        self._unbatched.clear()
        self._results.append(error)

    def close(self) -> None:
        """Let the task run its ``finally`` blocks."""
        self._task.close()

    @property
    def unbatched(self) -> int:
        """Number of estimates that are in no batch yet."""
        return sum(map(len, self._unbatched))

    def take(self, most: int) -> Iterator[_Part]:
        """Take at most this many of them for a batch."""
        while self._unbatched and most > 0:
            span = self._unbatched.popleft()
            if len(span) > most:
                self._unbatched.appendleft(span[most:])
            yield _Part(self, span[:most])
            most -= len(span)

    def put_back(self, span: range) -> None:
        """Return estimates of a failed batch."""
        if not self.is_over:
            self._unbatched.append(span)

    def receive(self, span: range, eps_BCHW: Tensor) -> None:
        """Store some estimates; the last of them resume the task."""
        if self.is_over:  # another of its batches failed while this one ran
            return
        self._received[span.start] = eps_BCHW
        if sum(map(len, self._received.values())) == len(self.request.latents_ECHW):
            # Batches end in any order: concatenate by position, not by arrival.
            self.resume(torch.cat([self._received[start] for start in sorted(self._received)]))


class _Part(NamedTuple):
    """The estimates of one task within a batch."""

    task: _ActiveTask[Any]
    span: range

    @property
    def request(self) -> Request:
        whole = self.task.request
        rows = slice(self.span.start, self.span.stop)
        return whole._replace(
            latents_ECHW=whole.latents_ECHW[rows],
            timestep=whole.timestep.float().expand(len(self.span)),  # the UNet embeds it as float32 too
            conditioning_E={name: value_E[rows] for name, value_E in whole.conditioning_E.items()},
        )


class _Pool(Generic[_Result]):
    """The active tasks, oldest first, and their running batches. Only the caller's thread changes them."""

    def __init__(self, denoiser: Denoiser, batching: Batching, on_evaluations: Callable[[int], None]) -> None:
        self.active: deque[_ActiveTask[_Result]] = deque()
        self._denoiser, self._batching, self._on_evaluations = denoiser, batching, on_evaluations
        self._executor, self._threads = executor(denoiser.device)
        self._running: dict[Future[Tensor], tuple[int, list[_Part]]] = {}
        self._is_draining = False

    def start_tasks(self, pending: Iterator[Task[_Result]], most: int) -> None:
        """Start tasks until ``most`` are active; each runs up to its first request."""
        self.active.extend(map(_ActiveTask, itertools.islice(pending, most - len(self.active))))
        self._is_draining = len(self.active) < most

    def run_batch(self) -> None:
        """Submit batches, wait for one, and deliver its estimates to their tasks."""
        while len(self._running) < BATCHES_PER_THREAD * self._threads and (parts := self._next_batch()):
            size = self._batching.micro
            requests = [part.request for part in parts]
            self._running[self._executor.submit(self._predict, requests, size)] = size, parts
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        for future in done:
            size, parts = self._running.pop(future)
            if (error := future.exception()) is None:
                self._deliver(future.result(), parts)
            else:
                self._recover(error, size, parts)

    def _next_batch(self) -> list[_Part]:
        """The parts of the next batch; empty if it is better to wait for more requests.

        The oldest tasks come first, so that a kill loses little work. A single thread is always busy. Several
        would be idle beside the last task, so among the last tasks those with the most steps left come first.
        """
        waiting = [task for task in self.active if task.unbatched]
        if not waiting:
            return []
        if self._is_draining and self._threads > 1:
            waiting.sort(key=lambda task: task.request.steps_left, reverse=True)
        sharing = _sharing(waiting)
        size = self._batching.micro
        # A partly empty batch is worth its padding only to an idle thread: a busy one may bring new requests.
        if sum(task.unbatched for task in sharing) < size and len(self._running) >= self._threads:
            return []
        parts: list[_Part] = []
        for task in sharing:
            parts += task.take(size - sum(len(part.span) for part in parts))
        return parts

    def _predict(self, requests: Sequence[Request], size: int) -> Tensor:
        """The estimates of some requests in one pass, without those of padding. Runs on the executor."""
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

    def _recover(self, error: BaseException, size: int, parts: Sequence[_Part]) -> None:
        """Retry a failed batch: smaller if memory ran out, else task by task to find the faulty one."""
        if not isinstance(error, Exception):
            raise error  # an interruption is nobody's failure
        is_memory = isinstance(error, torch.OutOfMemoryError)
        if is_memory and size > 1:
            error.__traceback__ = None  # it refers to the network's tensors
            # Other batches of the old size may fail after this one: halve the size that failed, only once.
            self._batching.micro = min(self._batching.micro, size // 2)
            if self._denoiser.device.type == "cuda":
                torch.cuda.empty_cache()
        elif all(part.task is parts[0].task for part in parts):
            parts[0].task.fail(error)
            return
        for task, span in parts:
            task.is_isolated |= not is_memory
            task.put_back(span)

    def close(self) -> None:
        """Cancel queued batches and close all tasks."""
        for future in self._running:
            future.cancel()
        for task in self.active:
            task.close()


def _sharing(waiting: Sequence[_ActiveTask[_Result]]) -> list[_ActiveTask[_Result]]:
    """The first task and those that can share its batch: latents of the same shape, no failed batch."""
    first = waiting[0]
    if first.is_isolated:
        return [first]
    shape = first.request.latents_ECHW.shape[1:]
    return [task for task in waiting if not task.is_isolated and task.request.latents_ECHW.shape[1:] == shape]

"""Tasks that share batches get the estimates that each would get alone, and fail alone."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fakes import FakeDenoiser
from torch import Tensor

from sega_bench.sega import pooling
from sega_bench.sega.batching import Batching
from sega_bench.sega.pooling import Request, Task, run_pooled
from sega_bench.system.threads import threads

MARK = 1e6
"""A latent of this size makes the fake network raise."""


class Fragile(FakeDenoiser):
    """Raises for every batch with a marked row."""

    def __init__(self) -> None:
        super().__init__(before=self.look)
        self.rows: list[list[float]] = []

    def look(self, latents_BCHW: Tensor) -> None:
        self.rows.append(latents_BCHW[:, 0, 0, 0].tolist())
        if (latents_BCHW == MARK).any():
            raise ValueError("the network choked")


def request(denoiser: FakeDenoiser, values: Sequence[float], timestep: float = 3.0, side: int = 4) -> Request:
    """A request of one estimate per value, which fills its latents."""
    latents_ECHW = torch.tensor(values, dtype=torch.float64)[:, None, None, None].expand(-1, 2, side, side)
    pattern = denoiser.encode(str(timestep))["pattern"].expand(len(values), -1, -1, -1)
    return Request(latents_ECHW, torch.tensor(timestep), {"pattern": pattern})


def task(requests: Sequence[Request], on_start: Callable[[], None] = lambda: None) -> Task[list[Tensor]]:
    on_start()
    estimates = []
    for one in requests:
        estimates.append((yield one))
    return estimates


def run(
    denoiser: FakeDenoiser, tasks: Sequence[Task[list[Tensor]]], micro: int
) -> tuple[list[list[Tensor] | Exception], list[int]]:
    counted: list[int] = []
    return list(run_pooled(denoiser, tasks, Batching(micro), counted.append, tasks_in_flight=3)), counted


@st.composite
def plans(draw: st.DrawFn) -> list[list[tuple[list[float], float, int]]]:
    """For each task its requests: values, timestep, and side of the latents."""
    values = st.lists(st.floats(-3, 3), min_size=1, max_size=9)
    side = draw(st.lists(st.sampled_from([2, 4]), min_size=1, max_size=6))
    one = st.tuples(values, st.sampled_from([1.0, 500.0, 981.0]))
    return [[(*draw(one), own) for _ in range(draw(st.integers(0, 4)))] for own in side]


@given(plans(), st.integers(1, 8), st.sampled_from([1, 2]), st.sets(st.integers(0, 5)))
@settings(max_examples=150)
def test_every_task_gets_its_own_estimates_and_fails_alone(
    plan: list[list[tuple[list[float], float, int]]], micro: int, count: int, marked: set[int]
) -> None:
    denoiser, plain = Fragile(), FakeDenoiser()
    bad = {i for i in marked if i < len(plan) and plan[i]}
    for i in bad:
        plan[i][-1][0][-1] = MARK
    requests = [[request(plain, *one) for one in own] for own in plan]
    with threads(count):
        results, counted = run(denoiser, [task(own) for own in requests], micro)
    assert len(results) == len(plan)
    for i, (own, result) in enumerate(zip(requests, results, strict=True)):
        if i in bad:
            assert isinstance(result, ValueError)
            continue
        assert isinstance(result, list)
        for one, eps_ECHW in zip(own, result, strict=True):
            assert torch.equal(eps_ECHW, plain.predict(one.latents_ECHW, one.timestep, one.conditioning_E))
    assert set(denoiser.batches) <= {micro}
    if not bad:
        assert sum(counted) == sum(len(one.latents_ECHW) for own in requests for one in own)


def test_a_younger_task_fills_rows_that_would_be_padding() -> None:
    denoiser = Fragile()
    old = [request(denoiser, [1, 1, 1, 1, 1, 1]), request(denoiser, [2, 2, 2, 2, 2, 2])]
    young = [request(denoiser, [7, 7, 7, 7], timestep=500)]
    with threads(1):
        run(denoiser, [task(old), task(young)], micro=4)
    assert denoiser.rows == [[1, 1, 1, 1], [1, 1, 7, 7], [2, 2, 2, 2], [2, 2, 7, 7]]


@pytest.mark.parametrize(("workers", "batches", "of_old"), [(1, 40, 24), (2, 36, 35)])
def test_the_last_tasks_end_together_only_on_several_threads(
    workers: int, batches: int, of_old: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread gives the older task priority to its end. With two, the second would then be idle."""
    denoiser = Fragile()
    old, young = (
        [request(denoiser, [value] * 6)._replace(steps_left=left) for left in range(12, 0, -1)]
        for value in (1, 7)
    )
    inline, _ = pooling.executor(torch.device("cuda"))  # real threads would vary the order of the batches
    monkeypatch.setattr(pooling, "executor", lambda device: (inline, workers))
    run(denoiser, [task(old), task(young)], micro=4)
    assert len(denoiser.rows) == batches  # 144 / 4, or 24 + 8 x 2 if the younger ends alone
    assert max(i for i, rows in enumerate(denoiser.rows, 1) if 1 in rows) == of_old


def test_the_next_task_starts_when_the_first_of_those_in_flight_is_over() -> None:
    denoiser, started = FakeDenoiser(), []

    def tasks() -> Iterator[Task[list[Tensor]]]:
        for i in range(7):
            yield task([request(denoiser, [i])], lambda i=i: started.append(i))  # type: ignore[misc]

    results = run_pooled(denoiser, tasks(), Batching(4), lambda count: None, tasks_in_flight=3)
    seen = [len(started) for _ in results]
    assert seen == [3, 4, 5, 6, 7, 7, 7]


def test_a_task_that_raises_by_itself_fails_alone() -> None:
    denoiser = FakeDenoiser()

    def broken() -> Task[list[Tensor]]:
        yield request(denoiser, [1, 2])
        raise KeyError("between two steps")

    results, _ = run(denoiser, [task([request(denoiser, [1])]), broken(), task([])], micro=2)
    assert [type(result) for result in results] == [list, KeyError, list]


def test_abandoned_tasks_are_closed() -> None:
    denoiser, closed = FakeDenoiser(), []

    def careful(name: str) -> Task[list[Tensor]]:
        try:
            yield from task([request(denoiser, [1])] * (1 if name == "first" else 9))
        finally:
            closed.append(name)
        return []

    tasks = map(careful, ("first", "second", "third"))
    results = run_pooled(denoiser, tasks, Batching(1), lambda count: None, tasks_in_flight=3)
    assert next(results) == []
    results.close()  # type: ignore[attr-defined]
    assert sorted(closed) == ["first", "second", "third"]  # on a busy machine the first may end last


def test_a_task_fails_when_not_even_one_row_fits_into_memory() -> None:
    class Full(FakeDenoiser):
        def predict(self, latents_BCHW: Tensor, *rest: object) -> Tensor:
            if (latents_BCHW == 5).any():
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().predict(latents_BCHW, *rest)  # type: ignore[arg-type]

    denoiser, batching = Full(), Batching(micro=4)
    tasks = [task([request(denoiser, [value, 1, 2])]) for value in (1, 5)]
    good, bad = run_pooled(denoiser, tasks, batching, lambda count: None, tasks_in_flight=2)
    assert isinstance(good, list)
    assert isinstance(bad, torch.OutOfMemoryError)
    assert batching.micro == 1


def test_an_interruption_is_raised_and_fails_no_task() -> None:
    class Interrupted(FakeDenoiser):
        def predict(self, *arguments: object) -> Tensor:
            raise KeyboardInterrupt

    denoiser = Interrupted()
    for count in (1, 2):
        with threads(count), pytest.raises(KeyboardInterrupt):
            run(denoiser, [task([request(denoiser, [1])])], micro=2)

"""How far a sweep is, told by a clock that the test turns."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from sega_bench.system import progress as module
from sega_bench.system.progress import progress


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_loading_a_model_is_no_part_of_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = Clock(), io.StringIO()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    with progress(Console(file=said, width=100), unet_evals=150, cells=6) as meter:
        clock.now = 100.0  # loaded, and the first evaluations are made
        meter.evaluations(10)
        assert said.getvalue() == ""  # one point in time has no rate
        clock.now = 120.0
        meter.evaluations(40)
    assert said.getvalue() == "33%, 0/6 cells, 2 UNet evaluations/s, 50 s left\n"

"""Progress lines, with a clock that the test controls."""

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


def test_the_rate_excludes_the_time_to_load_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, output = Clock(), io.StringIO()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    with progress(Console(file=output, width=100), unet_evals=150, cells=6) as meter:
        clock.now = 100.0  # the model is loaded, and the first evaluations are done
        meter.evaluations(10)
        assert output.getvalue() == ""  # one point in time gives no rate
        clock.now = 120.0
        meter.evaluations(40)
    assert output.getvalue() == "33%, 0/6 cells, 2 UNet evaluations/s, 50 s left\n"

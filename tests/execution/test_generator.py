"""Failures during generation and scoring: what they lose, and what is logged."""

import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from support.small_sweep import rows, run, small, store

from sega_bench.cell import Cell
from sega_bench.execution import generator, jobs, runner
from sega_bench.planning.planner import plan
from sega_bench.scores.scoring import Features
from sega_bench.sega.batching import Batching
from sega_bench.sega.denoiser import Denoiser
from sega_bench.sega.models import StableDiffusion
from sega_bench.sega.schedule import Wave
from sega_bench.sega.wave import Outcome, run_waves


class FailingScorer:
    """A scorer, ``nose``, that raises on some cells."""

    provenance: Mapping[str, Mapping[str, str]] = {"nose": {"backbone": "none", "weights": "none"}}

    def __init__(self, is_bad: Callable[[Cell], bool]) -> None:
        self.is_bad = is_bad

    def features(self, image_BHWC: torch.Tensor) -> Features:
        return (image_BHWC.float().mean(dim=(1, 2, 3)),)

    def compare(self, cells: Sequence[Cell], edited: Features, reference: Features) -> list[dict[str, float]]:
        if any(self.is_bad(cell) for cell in cells):
            raise RuntimeError("no nose\non this face")
        return [{"nose": value} for value in edited[0][: len(cells)].tolist()]


def add_scorer(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[Cell], bool]) -> None:
    build = runner.scores.build
    monkeypatch.setattr(
        runner.scores, "build", lambda *arguments: (*build(*arguments), FailingScorer(is_bad))
    )


def is_second_edit(cell: Cell) -> bool:
    return cell.seed == 1 and bool(cell.edits) and cell.edits[0].edit_threshold == 0.9


def test_a_scorer_that_raises_on_one_cell_loses_only_its_own_score_of_that_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "sega_bench"):
        add_scorer(patch, is_second_edit)
        records = {record.cell: record for record in run(tmp_path)}
    assert {record.status for record in records.values()} == {"done"}
    assert all((store(tmp_path).root / str(record.image)).exists() for record in records.values())
    for cell, record in records.items():
        assert ("nose" in record.scores) == (not is_second_edit(cell))
        assert "clip_prompt" in record.scores
        assert record.error == ("not scored: nose: RuntimeError: no nose" if is_second_edit(cell) else None)
    (message,) = caplog.messages
    assert message == "1 of 3 cells not scored: nose: RuntimeError: no nose; retry_failed=true tries again"

    add_scorer(monkeypatch, lambda cell: False)
    assert run(tmp_path) == []
    evaluations: list[int] = []
    job = jobs.prepare(plan(small(tmp_path, "retry_failed=true")))
    (again,) = runner.execute(job, evaluations.append)
    assert (evaluations, again.error) == ([], None)
    assert "nose" in again.scores
    assert rows(tmp_path)[again.cell.key]["nose"] == again.scores["nose"]


@pytest.mark.parametrize(
    ("method", "size", "initial"), [("predict", "micro_batch_size", 4), ("decode", "decode_batch_size", 8)]
)
def test_batch_sizes_reduced_by_out_of_memory_are_logged_and_reused_by_a_resume(
    method: str,
    size: str,
    initial: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    original = getattr(StableDiffusion, method)

    def at_most_two(self: StableDiffusion, latents_BCHW: torch.Tensor, *rest: object) -> torch.Tensor:
        if len(latents_BCHW) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        result: torch.Tensor = original(self, latents_BCHW, *rest)
        return result

    monkeypatch.setattr(StableDiffusion, method, at_most_two)
    with caplog.at_level(logging.WARNING, "sega_bench"):
        assert {record.status for record in run(tmp_path)} == {"done"}
    assert caplog.messages == [f"out of memory: {size} is 2 and was {initial}"]
    assert json.loads(store(tmp_path).plan_path.read_text())["engine"][size] == 2
    again = jobs.prepare(plan(small(tmp_path, "seeds=3", "engine.micro_batch_size=null")))
    assert getattr(again.batching, size.partition("_")[0]) == 2


def test_fail_fast_stops_at_a_cell_that_became_nan_and_keeps_its_wave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Wave] = []

    def poisoned(
        denoiser: Denoiser, waves: Iterable[Wave], batching: Batching, on: Callable[[int], None]
    ) -> Iterator[list[Outcome] | Exception]:
        for wave in waves:
            begun.append(wave)
            (outcomes,) = run_waves(denoiser, [wave], batching, on)
            assert not isinstance(outcomes, Exception)
            yield [*outcomes[:-1], Outcome(outcomes[-1].cell, None, 3, "the latents became NaN or infinite")]

    with monkeypatch.context() as patch:
        patch.setattr(generator, "run_waves", poisoned)
        records = run(tmp_path, "engine.wave_rows=3", "fail_fast=true")
    assert (len(begun), [record.status for record in records]) == (1, ["done", "done", "failed"])
    assert list(rows(tmp_path)) == [record.cell.key for record in records]
    assert [record.cell.seed for record in run(tmp_path)] == [1, 1, 1]


def test_equal_cells_of_a_wave_share_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []
    write = generator.Store.write_cell_image

    def logged(self: generator.Store, cell: Cell, *picture: object) -> tuple[str, str]:
        keys.append(cell.key)
        return write(self, cell, *picture)  # type: ignore[arg-type]

    monkeypatch.setattr(generator.Store, "write_cell_image", logged)
    records = run(tmp_path, "seeds=1", "+axes.edit_guidance_scale=[0,5]")
    assert len(records) == 5
    assert len(keys) == len(set(keys)) == 3


def test_a_waves_records_are_yielded_before_the_next_wave_begins(tmp_path: Path) -> None:
    events: list[str] = []
    job = jobs.prepare(plan(small(tmp_path, "engine.wave_rows=3")))
    for record in runner.execute(job, lambda count: events.append("evaluations")):
        assert record.cell.key in rows(tmp_path)
        events.append("cell")
    assert [event for event, _ in itertools.groupby(events)] == ["evaluations", "cell"] * 2

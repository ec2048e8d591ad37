"""A sweep that is killed, signalled or out of space goes on with the same command, up to its views."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pandas as pd
import pytest
from support.command_line import call
from support.small_sweep import overrides, refuse_to_load

from sega_bench.analysis import table_files
from sega_bench.execution import runner
from sega_bench.store import Store
from sega_bench.system.signals import held
from sega_bench.tracking.reporter import Reporter
from sega_bench.views.image_grid import write
from sega_bench.views.report import building as report

KILLED_BEFORE_ITS_VIEWS = """
import os, signal, sys
from sega_bench.cli.main import main
from sega_bench.views import write_all
write_all.write_grids = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = ["sega_bench", *sys.argv[1:]]
main()
"""


def start(*words: str, program: tuple[str, ...] = ("-m", "sega_bench")) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def recorded(folder: Path) -> list[str]:
    """Keys of the whole lines of the record file, one for each time a cell was written."""
    path = folder / "records" / "0.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["key"] for line in lines if line.endswith("}")]


def views(folder: Path) -> dict[str, int]:
    """Every view's file with its time of change."""
    store = Store(folder)
    files = [
        store.results_parquet,
        store.results_csv,
        store.summary_csv,
        store.claims_csv,
        *store.grids_dir.glob("*.png"),
    ]
    files += store.wandb_dir.glob("*/*.wandb")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files if path.exists()}


def test_killed_between_records_and_views_the_same_command_makes_the_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = overrides(tmp_path, "wandb.mode=offline")
    folder = tmp_path / "small-local"
    killed = start(*words, program=("-c", KILLED_BEFORE_ITS_VIEWS))
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert len(recorded(folder)) == 6
    assert not any(name.endswith((".png", ".csv", ".parquet")) for name in views(folder))

    refuse_to_load(monkeypatch)
    assert call(monkeypatch, *words) == 0
    shown = capsys.readouterr().out
    assert "6 of 6 cells are done; updating the views" in shown
    assert "wandb sync" in shown
    assert len(pd.read_parquet(folder / "results.parquet")) == 6
    made = views(folder)
    assert {"results.csv", "summary.csv", "grids/overview.png"} <= set(made)

    assert call(monkeypatch, *words) == 0
    assert "nothing to do: 6 of 6 cells are done" in capsys.readouterr().out
    assert views(folder) == made


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """The command line in this process, for somebody without settings of their own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield lambda *more: call(monkeypatch, *overrides(tmp_path, *more))
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(write, "draw"), (report, "write_report"), (table_files, "write_tables"), (Reporter, "finish")],
)
def test_interrupted_in_its_views_the_same_command_makes_them(
    owner: object,
    name: str,
    tmp_path: Path,
    sweep: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupt)
        assert sweep("wandb.mode=offline") == 130
    assert sweep("wandb.mode=offline") == 0
    assert "updating the views" in capsys.readouterr().out
    assert sweep("wandb.mode=offline") == 0
    assert "nothing to do: 6 of 6 cells are done" in capsys.readouterr().out
    assert {"results.csv", "grids/overview.png"} <= set(views(tmp_path / "small-local"))


def test_views_that_are_behind_are_brought_up_to_date(
    tmp_path: Path, sweep: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "small-local"

    def is_made_by(*more: str) -> bool:
        assert sweep(*more) == 0
        said = capsys.readouterr().out
        assert ("nothing to do" in said) != ("updating the views" in said)
        return "updating the views" in said

    assert sweep() == 0
    capsys.readouterr()
    assert not is_made_by()
    for lost in ("results.csv", "summary.csv", "results.parquet"):
        (folder / lost).unlink()
        assert is_made_by()
        assert (folder / lost).exists()
    for sheet in (folder / "grids").iterdir():
        sheet.unlink()
    assert is_made_by()
    assert (folder / "grids" / "overview.png").exists()
    assert is_made_by("+axes.edit_guidance_scale=[5]")  # the same cells, another plan
    assert "edit_guidance_scale" in pd.read_csv(folder / "summary.csv")
    assert is_made_by("seeds=1")
    assert len(pd.read_csv(folder / "results.csv")) == 3
    assert is_made_by()
    assert is_made_by("wandb.mode=offline")
    assert not is_made_by("wandb.mode=offline")
    assert not is_made_by()


def test_terminated_again_and_again_it_still_exits_130(tmp_path: Path) -> None:
    process = start(*overrides(tmp_path, "seeds=200", "engine.wave_rows=4"))
    while len(recorded(tmp_path / "small-local")) < 6 and process.poll() is None:
        time.sleep(0.05)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert stderr.endswith("interrupted: finished work is kept, and the same command continues it\n")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_that_python_ignores_is_not_lost(
    tmp_path: Path, sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    load = runner.load

    def interrupted(*arguments: Any, **options: Any) -> Any:
        Dying()
        return load(*arguments, **options)

    monkeypatch.setattr(runner, "load", interrupted)
    assert sweep() == 130
    assert recorded(tmp_path / "small-local") == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"no small file system: {error}")
    if mounted.returncode:
        pytest.skip(f"no small file system: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_line_and_costs_nothing_that_was_done(small_disk: Path) -> None:
    words = overrides(small_disk, "seeds=20", "engine.wave_rows=4")
    full = start(*words)
    _, stderr = full.communicate()
    assert full.returncode == 2, stderr
    assert stderr.startswith("error: output_dir: there is no space left for ")
    assert "free some" in stderr
    assert stderr.count("\n") == 1
    folder = small_disk / "small-local"
    kept = recorded(folder)
    assert 0 < len(kept) < 60
    assert not list(folder.rglob("*.tmp"))

    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    freed = start(*words)
    _, stderr = freed.communicate()
    assert freed.returncode == 0, stderr
    assert recorded(folder)[: len(kept)] == kept
    assert len(recorded(folder)) == len(set(recorded(folder))) == 60
    assert os.listdir(small_disk) == ["small-local"]


def test_signals_that_are_held_arrive_afterwards_whichever_thread_takes_them() -> None:
    """The main thread blocks it, so that another one takes it; of what is started meanwhile nobody does."""
    is_over, happened = Event(), []
    other = Thread(target=is_over.wait)
    other.start()
    taken, told = os.pipe()
    os.set_blocking(told, False)
    blocked = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    before, handler = signal.set_wakeup_fd(told), signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt_oneself() -> None:
        with held(signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), signal.SIGINT)
            assert os.read(taken, 1)  # its handler is called at once
            child = subprocess.run(
                [sys.executable, "-c", blocked], capture_output=True, text=True, check=True
            )
            happened.append(child.stdout.strip())

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupt_oneself()
    finally:
        signal.set_wakeup_fd(before)
        restored = signal.signal(signal.SIGINT, handler)
        is_over.set()
        other.join()
    assert happened == ["True"]
    assert restored is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])

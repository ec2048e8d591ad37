"""Kills, signals and full disks: the same command continues the sweep up to its views."""

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
from sega_bench.system.signals import deferred
from sega_bench.tracking.reporter import Reporter
from sega_bench.views.image_grid import write
from sega_bench.views.report import building as report

KILL_BEFORE_VIEWS = """
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
    """Keys of all complete lines of the records file, repeated where a cell was recorded twice."""
    path = folder / "records" / "0.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["key"] for line in lines if line.endswith("}")]


def views(folder: Path) -> dict[str, int]:
    """Modification times of the files of all views."""
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


def test_after_a_kill_between_records_and_views_the_same_command_writes_the_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = overrides(tmp_path, "wandb.mode=offline")
    folder = tmp_path / "small-local"
    killed = start(*words, program=("-c", KILL_BEFORE_VIEWS))
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert len(recorded(folder)) == 6
    assert not any(name.endswith((".png", ".csv", ".parquet")) for name in views(folder))

    refuse_to_load(monkeypatch)
    assert call(monkeypatch, *words) == 0
    stdout = capsys.readouterr().out
    assert "6 of 6 cells are done; updating the views" in stdout
    assert "wandb sync" in stdout
    assert len(pd.read_parquet(folder / "results.parquet")) == 6
    written = views(folder)
    assert {"results.csv", "summary.csv", "grids/overview.png"} <= set(written)

    assert call(monkeypatch, *words) == 0
    assert "nothing to do: 6 of 6 cells are done" in capsys.readouterr().out
    assert views(folder) == written


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Runs the command line in this process, without a user's own W&B settings."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield lambda *more: call(monkeypatch, *overrides(tmp_path, *more))
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(write, "draw"), (report, "write_report"), (table_files, "write_tables"), (Reporter, "finish")],
)
def test_after_an_interruption_in_the_views_the_same_command_writes_them(
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


def test_outdated_views_are_updated(
    tmp_path: Path, sweep: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "small-local"

    def updates_views(*more: str) -> bool:
        assert sweep(*more) == 0
        stdout = capsys.readouterr().out
        assert ("nothing to do" in stdout) != ("updating the views" in stdout)
        return "updating the views" in stdout

    assert sweep() == 0
    capsys.readouterr()
    assert not updates_views()
    for lost in ("results.csv", "summary.csv", "results.parquet"):
        (folder / lost).unlink()
        assert updates_views()
        assert (folder / lost).exists()
    for sheet in (folder / "grids").iterdir():
        sheet.unlink()
    assert updates_views()
    assert (folder / "grids" / "overview.png").exists()
    assert updates_views("+axes.edit_guidance_scale=[5]")  # the same cells, another plan
    assert "edit_guidance_scale" in pd.read_csv(folder / "summary.csv")
    assert updates_views("seeds=1")
    assert len(pd.read_csv(folder / "results.csv")) == 3
    assert updates_views()
    assert updates_views("wandb.mode=offline")
    assert not updates_views("wandb.mode=offline")
    assert not updates_views()


def test_repeated_sigterm_still_exits_130(tmp_path: Path) -> None:
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
def test_an_interruption_that_python_ignores_in_a_destructor_is_not_lost(
    tmp_path: Path, sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class SignalInDestructor:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    load = runner.load

    def interrupted(*arguments: Any, **options: Any) -> Any:
        SignalInDestructor()
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


def test_a_full_disk_is_reported_in_one_line_and_loses_no_finished_cell(small_disk: Path) -> None:
    words = overrides(small_disk, "seeds=20", "engine.wave_rows=4")
    full = start(*words)
    _, stderr = full.communicate()
    assert full.returncode == 2, stderr
    assert stderr.startswith("error: output_dir: there is no space left for ")
    assert "free some" in stderr
    assert stderr.count("\n") == 1
    folder = small_disk / "small-local"
    before = recorded(folder)
    assert 0 < len(before) < 60
    assert not list(folder.rglob("*.tmp"))

    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    freed = start(*words)
    _, stderr = freed.communicate()
    assert freed.returncode == 0, stderr
    assert recorded(folder)[: len(before)] == before
    assert len(recorded(folder)) == len(set(recorded(folder))) == 60
    assert os.listdir(small_disk) == ["small-local"]


def test_held_signals_arrive_afterwards_whichever_thread_receives_them() -> None:
    """The main thread blocks the signal, so another thread receives it; child processes never do."""
    is_over, blocked_in_child = Event(), []
    other = Thread(target=is_over.wait)
    other.start()
    received, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    print_blocked = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    before, handler = signal.set_wakeup_fd(wakeup), signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt_self() -> None:
        with deferred(signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), signal.SIGINT)
            assert os.read(received, 1)  # deferred() has replaced the handler, which is called at once
            child = subprocess.run(
                [sys.executable, "-c", print_blocked], capture_output=True, text=True, check=True
            )
            blocked_in_child.append(child.stdout.strip())

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupt_self()
    finally:
        signal.set_wakeup_fd(before)
        restored = signal.signal(signal.SIGINT, handler)
        is_over.set()
        other.join()
    assert blocked_in_child == ["True"]
    assert restored is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])

"""Two commands never work on one folder, and what the dead hold is taken over."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.command_line import call
from support.small_sweep import overrides, refuse_to_load, small

from sega_bench.errors import UserError
from sega_bench.execution import jobs, runner
from sega_bench.store import Store, lock
from sega_bench.system import signals
from sega_bench.tracking import reporter
from sega_bench.views.image_grid import write


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "sweep")
    made.prepare()
    return made


def gone() -> int:
    """The pid of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left(store: Store, *, age: float = 0.0, **holder: object) -> None:
    """A lock as somebody else left it."""
    known = {"host": "elsewhere", "pid": 7, "launch": "0badcafe", "since": "2026-01-01T00:00:00+00:00"}
    store.lock_path.write_text(json.dumps(known | holder))
    then = time.time() - age
    os.utime(store.lock_path, (then, then))


def taken(store: Store) -> dict[str, object]:
    """What the lock says while it is held."""
    with lock.held(store):
        return dict(json.loads(store.lock_path.read_text()))


def test_a_lock_says_whose_it_is_and_is_given_back(store: Store) -> None:
    said = taken(store)
    assert (said["host"], said["pid"]) == (socket.gethostname(), os.getpid())
    assert taken(store)["launch"] != said["launch"]
    for ending in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(ending), lock.held(store):
            raise ending
        assert not store.lock_path.exists()


def test_a_second_holder_is_refused_in_one_line_and_the_first_keeps_its_lock(store: Store) -> None:
    with lock.held(store) as confirm:
        said = store.lock_path.read_text()
        with pytest.raises(
            UserError, match=rf"in use by process {os.getpid()} on .*: wait .* name=$"
        ) as told:
            taken(store)
        assert "\n" not in str(told.value)
        assert store.lock_path.read_text() == said
        confirm()


def test_of_another_host_a_lock_counts_until_it_is_stale(store: Store) -> None:
    left(store, age=lock.STALE_SECONDS - 30)
    with pytest.raises(UserError, match="in use by process 7 on elsewhere"):
        taken(store)
    left(store, age=lock.STALE_SECONDS + 30)
    assert taken(store)["pid"] == os.getpid()
    assert sorted(os.listdir(store.root)) == ["images", "records"]


@pytest.mark.parametrize("pid", [gone, os.getpid])
def test_of_this_host_the_lock_of_the_dead_is_taken_over_at_once(
    store: Store, pid: Callable[[], int]
) -> None:
    left(store, host=socket.gethostname(), pid=pid())
    assert taken(store)["pid"] == os.getpid()


@pytest.mark.parametrize("said", [b"", b"{", b"[]", b'{"pid": 7}', b"\xff" * 10, b"[" * 100_000])
def test_a_torn_lock_counts_until_it_is_stale(store: Store, said: bytes) -> None:
    store.lock_path.write_bytes(said)
    with pytest.raises(UserError, match="in use by a command that has just begun"):
        taken(store)
    os.utime(store.lock_path, (0, 0))
    assert taken(store)["pid"] == os.getpid()


def test_of_many_that_take_a_stale_lock_over_one_has_it(store: Store) -> None:
    for _ in range(20):
        left(store, age=1000)
        start, tried = threading.Barrier(8), threading.Barrier(8)
        with ThreadPoolExecutor(8) as pool:
            tries = [pool.submit(is_taken, store, start, tried) for _ in range(8)]
        assert sum(one.result() for one in tries) == 1
        assert not store.lock_path.exists()


def is_taken(store: Store, start: threading.Barrier, tried: threading.Barrier) -> bool:
    start.wait()
    with ExitStack() as holding:
        try:
            holding.enter_context(lock.held(store))
        except UserError:
            return False
        finally:
            tried.wait()
        return True


def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        time.sleep(0.005)


def test_a_heartbeat_keeps_it_fresh(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    with lock.held(store):
        os.utime(store.lock_path, (0, 0))
        until(lambda: store.lock_path.stat().st_mtime > 0)


def test_who_was_taken_for_dead_stops_and_leaves_the_others_lock(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    with lock.held(store) as confirm:
        left(store)
        until(lambda: not any(thread.name == "lock" for thread in threading.enumerate()))
        with pytest.raises(UserError, match="was taken over by process 7 on elsewhere"):
            confirm()
    assert json.loads(store.lock_path.read_text())["pid"] == 7


def test_a_full_disk_leaves_no_lock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match="output_dir: there is no space left"):
        taken(store)
    assert not store.lock_path.exists()


def test_who_leaves_at_once_gives_it_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(signals, "_before_leaving", [])
    signals.before_leaving(lock.release_all)
    with lock.held(store):
        signals._leave(signal.SIGINT, None)
        assert not store.lock_path.exists()
    assert codes == [130]


# --- sweeps ---


def test_the_second_command_names_the_first_and_takes_over_when_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "small-local")
    words = overrides(tmp_path, "seeds=200", "engine.wave_rows=4")
    first = subprocess.Popen([sys.executable, "-m", "sega_bench", *words], stderr=subprocess.PIPE, text=True)
    until(lambda: any(store.records_dir.glob("*")) or first.poll() is not None)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        refuse_to_load(patch)
        assert call(patch, *words) == 2
        shown = capsys.readouterr().err
        assert f"in use by process {first.pid} on {socket.gethostname()}" in shown
        assert shown.count("\n") == 1
        assert call(patch, *words, "dry_run=true") == 0
        with pytest.raises(SystemExit) as refused:
            reporter.main([str(store.root)])
        assert refused.value.code == 2
        assert "in use by" in capsys.readouterr().err
    write.main([str(store.root)])  # shows what there is
    first.kill()
    first.communicate()
    assert store.lock_path.exists()
    kept = len(store.rows()[0])
    assert call(monkeypatch, *overrides(tmp_path, "seeds=1")) == 0
    assert len(store.rows()[0]) >= kept
    assert not store.lock_path.exists()


def test_iterating_holds_the_folder_and_closing_gives_it_back(tmp_path: Path) -> None:
    records = runner.run(small(tmp_path))
    next(iter(records))
    with pytest.raises(UserError, match="in use by process"):
        list(runner.run(small(tmp_path)))
    del records
    assert len(list(runner.run(small(tmp_path, "seeds=3")))) >= 3


def test_a_run_that_lost_its_folder_stops_with_what_is_done(tmp_path: Path) -> None:
    with jobs.locked(runner.plan(small(tmp_path, "engine.wave_rows=3"))) as job:

        def lost() -> None:
            raise UserError("taken over")

        object.__setattr__(job, "confirm", lost)
        with pytest.raises(UserError, match="taken over"):
            list(runner.execute(job))
        assert len(job.store.rows()[0]) in (3, 6)

"""Two commands never work on one folder, and the locks of dead processes are taken over."""

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
from support.command_line import call, subcommand
from support.small_sweep import overrides, refuse_to_load, small

from sega_bench.errors import UserError
from sega_bench.execution import jobs, runner
from sega_bench.store import Store, lock
from sega_bench.system import signals


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "sweep")
    store.prepare()
    return store


def dead_pid() -> int:
    """The pid of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave_lock(store: Store, *, age: float = 0.0, **holder: object) -> None:
    """Write a lock of another process, last touched ``age`` seconds ago."""
    defaults = {"host": "elsewhere", "pid": 7, "launch": "0badcafe", "since": "2026-01-01T00:00:00+00:00"}
    store.lock_path.write_text(json.dumps(defaults | holder))
    then = time.time() - age
    os.utime(store.lock_path, (then, then))


def acquire(store: Store) -> dict[str, object]:
    """Acquire the lock, and return the content of its file."""
    with lock.held(store):
        return dict(json.loads(store.lock_path.read_text()))


def test_a_lock_names_its_holder_and_is_released(store: Store) -> None:
    content = acquire(store)
    assert (content["host"], content["pid"]) == (socket.gethostname(), os.getpid())
    assert acquire(store)["launch"] != content["launch"]
    for exception in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(exception), lock.held(store):
            raise exception
        assert not store.lock_path.exists()


def test_a_second_holder_is_refused_in_one_line_and_the_first_keeps_its_lock(store: Store) -> None:
    with lock.held(store) as confirm:
        content = store.lock_path.read_text()
        with pytest.raises(
            UserError, match=rf"in use by process {os.getpid()} on .*: wait .* name=$"
        ) as error:
            acquire(store)
        assert "\n" not in str(error.value)
        assert store.lock_path.read_text() == content
        confirm()


def test_another_hosts_lock_holds_until_it_is_stale(store: Store) -> None:
    leave_lock(store, age=lock.STALE_SECONDS - 30)
    with pytest.raises(UserError, match="in use by process 7 on elsewhere"):
        acquire(store)
    leave_lock(store, age=lock.STALE_SECONDS + 30)
    assert acquire(store)["pid"] == os.getpid()
    assert sorted(os.listdir(store.root)) == ["images", "records"]


@pytest.mark.parametrize("pid", [dead_pid, os.getpid])
def test_a_dead_processs_lock_on_this_host_is_taken_over_at_once(
    store: Store, pid: Callable[[], int]
) -> None:
    leave_lock(store, host=socket.gethostname(), pid=pid())
    assert acquire(store)["pid"] == os.getpid()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 7}', b"\xff" * 10, b"[" * 100_000])
def test_a_torn_lock_holds_until_it_is_stale(store: Store, content: bytes) -> None:
    store.lock_path.write_bytes(content)
    with pytest.raises(UserError, match="in use by a command that has just begun"):
        acquire(store)
    os.utime(store.lock_path, (0, 0))
    assert acquire(store)["pid"] == os.getpid()


def test_only_one_of_many_takes_a_stale_lock_over(store: Store) -> None:
    for _ in range(20):
        leave_lock(store, age=1000)
        start, end = threading.Barrier(8), threading.Barrier(8)
        with ThreadPoolExecutor(8) as pool:
            attempts = [pool.submit(can_acquire, store, start, end) for _ in range(8)]
        assert sum(attempt.result() for attempt in attempts) == 1
        assert not store.lock_path.exists()


def can_acquire(store: Store, start: threading.Barrier, end: threading.Barrier) -> bool:
    """Whether this thread acquires the lock; it holds it until all threads have tried."""
    start.wait()
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.held(store))
        except UserError:
            return False
        finally:
            end.wait()
        return True


def wait_until(predicate: Callable[[], bool]) -> None:
    while not predicate():
        time.sleep(0.005)


def test_a_heartbeat_refreshes_the_lock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.01)
    with lock.held(store):
        os.utime(store.lock_path, (0, 0))
        wait_until(lambda: store.lock_path.stat().st_mtime > 0)


def test_a_command_that_lost_its_lock_stops_and_leaves_the_new_holders_lock(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.01)
    with lock.held(store) as confirm:
        leave_lock(store)
        wait_until(lambda: not any(thread.name == "lock" for thread in threading.enumerate()))
        with pytest.raises(UserError, match="was taken over by process 7 on elsewhere"):
            confirm()
    assert json.loads(store.lock_path.read_text())["pid"] == 7


def test_a_full_disk_leaves_no_lock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match="output_dir: there is no space left"):
        acquire(store)
    assert not store.lock_path.exists()


def test_an_immediate_exit_releases_the_lock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(signals, "_before_immediate_exit", [])
    signals.before_immediate_exit(lock.release_all)
    with lock.held(store):
        signals._exit_immediately(signal.SIGINT, None)
        assert not store.lock_path.exists()
    assert codes == [130]


# --- sweeps ---


def test_a_second_command_names_the_first_and_takes_over_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "small-local")
    words = overrides(tmp_path, "seeds=200", "engine.wave_rows=4")
    first = subprocess.Popen([sys.executable, "-m", "sega_bench", *words], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: any(store.records_dir.glob("*")) or first.poll() is not None)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        refuse_to_load(patch)
        assert call(patch, *words) == 2
        message = capsys.readouterr().err
        assert f"in use by process {first.pid} on {socket.gethostname()}" in message
        assert message.count("\n") == 1
        assert call(patch, *words, "dry_run=true") == 0
        assert subcommand("wandb", store.root) == 2
        assert "in use by" in capsys.readouterr().err
    assert subcommand("grids", store.root) == 0  # views need no lock
    first.kill()
    first.communicate()
    assert store.lock_path.exists()
    rows_before = len(store.rows()[0])
    assert call(monkeypatch, *overrides(tmp_path, "seeds=1")) == 0
    assert len(store.rows()[0]) >= rows_before
    assert not store.lock_path.exists()


def test_iterating_holds_the_lock_and_closing_releases_it(tmp_path: Path) -> None:
    records = runner.run(small(tmp_path))
    next(iter(records))
    with pytest.raises(UserError, match="in use by process"):
        list(runner.run(small(tmp_path)))
    del records
    assert len(list(runner.run(small(tmp_path, "seeds=3")))) >= 3


def test_a_run_that_lost_its_lock_stops_and_keeps_its_records(tmp_path: Path) -> None:
    with jobs.locked(runner.plan(small(tmp_path, "engine.wave_rows=3"))) as job:

        def lost() -> None:
            raise UserError("taken over")

        object.__setattr__(job, "confirm", lost)
        with pytest.raises(UserError, match="taken over"):
            list(runner.execute(job))
        assert len(job.store.rows()[0]) in (3, 6)

"""Test settings: no network access, no deadlines, and shared fixtures."""

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, for loaded machines

from collections.abc import Iterator

import pytest
from hypothesis import settings
from support.slurm_cluster import Cluster, cluster, without_slurm

from sega_bench.system.threads import threads

# A shell ignores SIGINT for background jobs, and the commands that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("ours", deadline=None)
settings.load_profile("ours")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Run torch on one thread: on tiny networks, more threads only compete."""
    with threads(1):
        yield


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture
def slurm(_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """An idle Slurm cluster that this process's Slurm commands use; skips if none can run."""
    for name in os.environ.keys() - without_slurm(os.environ).keys():
        monkeypatch.delenv(name)
    for name, value in _cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield _cluster
    _cluster.cancel_all()

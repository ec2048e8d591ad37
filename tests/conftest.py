"""No test reaches a network, and none is judged by how long it takes."""

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, for machines with other work

from collections.abc import Iterator

import pytest
from hypothesis import settings
from support.slurm_cluster import Cluster, cluster, without_slurm

from sega_bench.system.threads import threads

# A shell starts what runs in its background deaf to Ctrl-C, and so would be every command of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("ours", deadline=None)
settings.load_profile("ours")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several threads only get in each other's way on networks as small as these tests have."""
    with threads(1):
        yield


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Cluster]:
    with cluster() as made:
        yield made


@pytest.fixture
def slurm(_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A Slurm cluster without jobs, the one this process speaks with; skips where there can be none."""
    for name in os.environ.keys() - without_slurm(os.environ).keys():
        monkeypatch.delenv(name)
    for name, value in _cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield _cluster
    _cluster.cancel_all()

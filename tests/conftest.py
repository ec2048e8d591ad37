"""No test reaches a network, and none is judged by how long it takes."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, for machines with other work

from collections.abc import Iterator

import pytest
from hypothesis import settings

from sega_bench.threads import threads

settings.register_profile("ours", deadline=None)
settings.load_profile("ours")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several threads only get in each other's way on networks as small as these tests have."""
    with threads(1):
        yield

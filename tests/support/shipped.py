"""The sweeps in conf/sweep, with the overrides that some of them need."""

from __future__ import annotations

from sega_bench.config import compose, options
from sega_bench.planning.planner import Plan, plan
from support import tiny_sd

SWEEPS = options("sweep")
_REQUIRED = {"i2p": ["prompts=[a castle]", "model.safety_checker=false"]}


def expand(sweep: str, *overrides: str) -> Plan:
    """Plan a shipped sweep for random tiny networks."""
    required = [f"+sweep={sweep}", *_REQUIRED.get(sweep, []), f"model.path={tiny_sd.folder()}", *overrides]
    return plan(compose(*required))

"""The shipped sweeps, with what a user must give to some of them."""

from __future__ import annotations

from sega_bench.config import compose, options
from sega_bench.planning.planner import Plan, plan
from support import tiny_sd

SWEEPS = options("sweep")
_NEEDS = {"i2p": ["prompts=[a castle]", "model.safety_checker=false"]}


def expand(sweep: str, *more: str) -> Plan:
    """A shipped sweep as it would be run on random tiny networks."""
    words = [f"+sweep={sweep}", *_NEEDS.get(sweep, []), f"model.path={tiny_sd.folder()}", *more]
    return plan(compose(*words))

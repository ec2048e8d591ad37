"""sega_bench: sweep the settings of SEGA, score every image, see which setting to use and why.

>>> import sega_bench
>>> config = sega_bench.compose("+sweep=thresholds", "seeds=2")
>>> made = sega_bench.plan(config)                    # every cell, nothing run
>>> records = list(sega_bench.run(config))            # made, scored, stored; only what is missing
>>> frame = sega_bench.load("outputs/thresholds")     # a pandas DataFrame, one row a cell
>>> sega_bench.grid(frame, x="edit_threshold")        # its pictures, in a notebook
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sega_bench.version import __version__

if TYPE_CHECKING:
    from sega_bench.analysis.frames import load
    from sega_bench.analysis.results import Results
    from sega_bench.cell import Cell, Edit
    from sega_bench.config import compose
    from sega_bench.errors import UserError
    from sega_bench.execution.runner import run
    from sega_bench.planning.planner import plan
    from sega_bench.views.image_grid.write import grid

__all__ = ["Cell", "Edit", "Results", "UserError", "__version__", "compose", "grid", "load", "plan", "run"]

_HOME = {
    "Cell": "cell",
    "Edit": "cell",
    "Results": "analysis.results",
    "UserError": "errors",
    "compose": "config",
    "grid": "views.image_grid.write",
    "load": "analysis.frames",
    "plan": "planning.planner",
    "run": "execution.runner",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and diffusers take seconds."""
    if name not in _HOME:
        raise AttributeError(f"module 'sega_bench' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"sega_bench.{_HOME[name]}"), name)

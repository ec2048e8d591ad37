"""Diffusers without its deprecated SEGA pipeline, as a later version will be.

``pytest -p support.without_oracle`` removes the pipeline before any test module is imported.
"""

from __future__ import annotations

from typing import Any

import diffusers
import pytest


def pytest_configure() -> None:
    """Remove the pipeline for the whole test run."""
    remove_pipeline(pytest.MonkeyPatch())


def remove_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a look-up of the pipeline in diffusers fail until the test ends."""
    lazy_module: Any = type(diffusers)
    look_up = lazy_module.__getattr__

    def look_up_another(module: Any, name: str) -> Any:
        if name == "SemanticStableDiffusionPipeline":
            raise AttributeError(f"module {module.__name__} has no attribute {name}")
        return look_up(module, name)

    monkeypatch.setattr(lazy_module, "__getattr__", look_up_another)
    monkeypatch.delitem(
        vars(diffusers), "SemanticStableDiffusionPipeline", raising=False
    )  # an earlier look-up

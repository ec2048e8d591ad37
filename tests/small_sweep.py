"""A sweep on random tiny networks, real in every part, that takes a second."""

from __future__ import annotations

from pathlib import Path

import tiny_sd
from tiny_clip import clip_folder

from sega_bench.config import Config, compose


def overrides(output_dir: Path, *more: str) -> list[str]:
    """Words of a command line: two thresholds of one concept on two seeds, six cells."""
    return [
        "model=local",
        f"model.path={tiny_sd.folder()}",
        "scores=faces",
        f"scores.clip_model=local-dir:{clip_folder('vit')}",
        "name=small",
        f"output_dir={output_dir}",
        "prompts=[a face]",
        "concepts=[glasses]",
        "seeds=2",
        "sampling.num_inference_steps=4",
        "edit.edit_warmup_steps=1",
        "+axes.edit_threshold=[0.5,0.9]",
        "engine.micro_batch_size=4",
        "wandb.mode=disabled",
        *more,
    ]


def small(output_dir: Path, *more: str) -> Config:
    """That sweep, composed."""
    return compose(*overrides(output_dir, *more))

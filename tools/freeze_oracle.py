"""Freeze latents of diffusers' deprecated SEGA pipeline: ``PYTHONPATH=tests python -m tools.freeze_oracle``.

The parity tests compare the engine with the frozen latents, which outlive the pipeline. The command needs a
diffusers that still has the pipeline (0.42.1 does) and the development requirements. It reads the cells and
the checkpoint's weights from ``tests/fixtures/oracle``, runs the pipeline in float64 on one thread, and
writes the latents and the versions of the libraries there.

With ``--draw`` it first chooses the cells: the settings and schedulers of ``tests/support/parity.py``, and
100 random sweeps of three cells from hypothesis. It also copies the weights of the tests' random checkpoint.
Do this only when those change. Images are 16 pixels wide and latents 8: all files stay under 1.5 MB.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from support import frozen_oracle, live_oracle, parity, tiny_sd
from support.frozen_oracle import Case

from sega_bench.benchmark import oracle
from sega_bench.errors import exit_on_user_error
from sega_bench.system.threads import threads

SIZE = {"height": 16, "width": 16}
SWEEPS = 100
LIBRARIES = ("diffusers", "numpy", "torch", "transformers")


def main() -> None:
    """Freeze the latents that diffusers' deprecated SEGA pipeline makes."""
    parser = argparse.ArgumentParser(prog="python -m tools.freeze_oracle", description=main.__doc__)
    parser.add_argument("--draw", action="store_true", help="choose the cells and the weights anew")
    args = parser.parse_args()
    with exit_on_user_error(), threads(1):
        freeze(draw=args.draw)


def freeze(*, draw: bool) -> None:
    """Write the fixtures.

    Args:
        draw: choose the cells and the checkpoint's weights anew.

    Raises:
        UserError: the installed diffusers has no such pipeline.
    """
    if draw:
        copy_weights()
    cases = dict(chosen_cases()) if draw else frozen_oracle.cases()
    latents = {
        name: torch.stack([live_oracle.latents(pipeline(case.prediction_type), cell) for cell in case.cells])
        for name, case in cases.items()
    }
    frozen_oracle.write(cases, latents, {library: version(library) for library in LIBRARIES})


def chosen_cases() -> Iterator[tuple[str, Case]]:
    """The cases to freeze, with their names."""
    for name, values in parity.SETTINGS.items():
        cell = tiny_sd.cell(**SIZE, **values)
        yield f"settings/{name}", Case("epsilon", (cell.reference(), cell) if cell.edits else (cell,))
        if cell.edits:
            yield f"replay/{name}", Case("epsilon", (parity.replaying(cell),))
    weighted = parity.SETTINGS["two, staggered, weighted"]
    v_prediction = tiny_sd.cell(prediction_type="v_prediction", **SIZE, **weighted)
    yield "settings/v-prediction", Case("v_prediction", (v_prediction,))
    for name in parity.SCHEDULERS:
        cell = parity.sampled(name, **SIZE, **parity.FOR_SCHEDULERS)
        yield f"schedulers/{name}", Case("epsilon", (cell,))
        if name in parity.REPLAY_SCHEDULERS:
            yield f"replay/{name}", Case("epsilon", (parity.replaying(cell),))
    for number, case in enumerate(random_cases()):
        yield f"random/{number:02}", case


def random_cases() -> list[Case]:
    """Sweeps from hypothesis, whose generator is seeded."""
    cases: list[Case] = []

    @seed(0)
    @settings(
        max_examples=SWEEPS,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(parity.sweeps(SIZE))
    def collect(sweep: Any) -> None:
        cells, prediction_type = sweep
        cases.append(Case(prediction_type, tuple(cells)))

    collect()
    return cases


def copy_weights() -> None:
    """Freeze the weights of the tests' random checkpoint."""
    for network, file in frozen_oracle.WEIGHTS.items():
        shutil.copyfile(tiny_sd.folder() / network / file, frozen_oracle.FOLDER / f"{network}.safetensors")


@cache
def pipeline(prediction_type: str) -> Any:
    """Diffusers' pipeline on the frozen checkpoint."""
    return oracle.make_pipeline(frozen_oracle.loaded(prediction_type))


if __name__ == "__main__":
    main()

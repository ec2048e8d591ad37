"""What is left to do of a plan, in its folder: the plan minus the store, and how it will be computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sega_bench.config import Config
from sega_bench.errors import UserError
from sega_bench.execution import resume
from sega_bench.planning import manifest
from sega_bench.planning.launch_options import device_of
from sega_bench.planning.planner import Plan
from sega_bench.sega import compiling, memory
from sega_bench.sega.batching import Batching
from sega_bench.sega.schedule import AT_ONCE, Wave, form_waves
from sega_bench.sega.wave import count_timesteps
from sega_bench.store import DamagedPlanError, Record, Store, lock


def at_ease() -> None:
    """Nobody can take over the folder of a job that holds no lock."""


EXACT = ("micro_batch_size", "decode_batch_size", "threads", "compile")
"""What an image's last bit depends on beside its cell: recorded, and reused by a resume."""


@dataclass(frozen=True)
class Job:
    """What is left to do of a plan.

    Args:
        plan: the whole.
        store: where it goes.
        waves: the cells to be made, as the engine will run them.
        unscored: records of cells that lack nothing but scores.
        done: cells of the plan that lack nothing.
        batching: sizes of the batches, those of an earlier run of the same sweep if there was one.
        threads: of torch on the CPU, likewise; None is torch's own choice.
        compile: whether the UNet is compiled, likewise.
        stored: plan.json as it was found, if there was one.
        confirm: raises a UserError if another command has taken the folder over.
    """

    plan: Plan
    store: Store
    waves: tuple[Wave, ...]
    unscored: tuple[Record, ...]
    done: int
    batching: Batching
    threads: int | None
    compile: bool
    stored: Mapping[str, Any] | None
    confirm: Callable[[], None] = at_ease

    @property
    def is_news(self) -> bool:
        """Whether the folder does not hold this plan yet."""
        return bool(self.missing) or self.stored is None or manifest.is_behind(self.plan, self.stored)

    @property
    def missing(self) -> int:
        """Cells to make or score."""
        return sum(len(wave.cells) for wave in self.waves) + len(self.unscored)

    @property
    def unet_evals(self) -> int:
        """UNet evaluations to make them."""
        return sum(wave.unet_evals for wave in self.waves)


@dataclass(frozen=True)
class Processes:
    """What a job is made on.

    Args:
        count: so many processes at once.
        threads: of each, where neither the command nor the folder says; None is torch's own choice.
        are_elsewhere: on machines that can't be asked what they have.
    """

    count: int = 1
    threads: int | None = None
    are_elsewhere: bool = False


THIS_ONE = Processes()


@contextmanager
def locked(made: Plan, processes: Processes = THIS_ONE) -> Iterator[Job]:
    """:func:`prepare`, in a folder that no other command works on until this is left.

    Raises:
        UserError: what :func:`prepare` raises; this machine lacks what was asked for, the folder cannot be
            written, or another command works on it.
    """
    device_of(made.config)
    if made.config.engine.compile and not processes.are_elsewhere:
        compiling.check()
    store = _store(made)
    store.prepare()
    with lock.held(store, attaches=processes.are_elsewhere) as confirm:
        yield replace(prepare(made, processes), confirm=confirm)


def _store(made: Plan) -> Store:
    return Store(Path(made.config.output_dir) / made.name)


def prepare(made: Plan, processes: Processes = THIS_ONE) -> Job:
    """Compare a plan with its folder; nothing is loaded and nothing is written.

    Args:
        made: the plan.
        processes: what it will be made on.

    Raises:
        UserError: the folder holds another sweep.
    """
    config, store = made.config, _store(made)
    _refuse_half_scored(store)
    stored = _stored_plan(store)
    if stored is not None:
        manifest.check_same_sweep(made, stored)
    remaining = resume.compare(made.cells, store, retry_failed=config.retry_failed)
    if remaining.cells == made.cells:
        waves = made.waves  # which the plan has counted
    else:
        waves = form_waves(remaining.cells, config.engine.wave_rows, count_timesteps)
    sizes = _sizes(config, stored)
    sizes["threads"] = sizes["threads"] or processes.threads
    return Job(
        plan=made,
        store=store,
        waves=waves,
        unscored=remaining.unscored,
        done=remaining.done,
        batching=batching_for(made, waves, sizes, processes),
        threads=sizes["threads"],
        compile=bool(sizes["compile"]),
        stored=stored,
    )


def _stored_plan(store: Store) -> dict[str, Any] | None:
    """plan.json; a damaged one is as good as lost: what is done is known by its keys."""
    try:
        return store.read_plan()
    except DamagedPlanError:
        return None


def _sizes(config: Config, stored: Mapping[str, Any] | None) -> dict[str, int | None]:
    """Each as asked for; else as the sweep began, since images are exact for one size; else None."""
    before = (stored or {}).get("engine", {})
    return {name: getattr(config.engine, name) or before.get(name) for name in EXACT}


def batching_for(
    made: Plan, waves: Sequence[Wave], sizes: Mapping[str, int | None], processes: Processes = THIS_ONE
) -> Batching:
    """Batch sizes for these waves: those that are given, else what they fill and memory holds.

    Args:
        made: the plan.
        waves: of its cells.
        sizes: ``micro_batch_size``, ``decode_batch_size`` and ``threads``, None where they are to be found.
        processes: share a machine's memory; a GPU is one's own.
    """
    config, checkpoint = made.config, made.model.checkpoint
    micro, decode = sizes["micro_batch_size"], sizes["decode_batch_size"]
    if micro is None or decode is None:
        fitting = memory.fitting(
            device_of(config),
            pixels=max(cell.height * cell.width for cell in made.cells),
            itemsize=getattr(torch, made.cells[0].dtype).itemsize,
            weights=checkpoint.weights_bytes if checkpoint is not None else 0,
            threads=sizes["threads"] or torch.get_num_threads(),
            processes=1 if processes.are_elsewhere else processes.count,
            estimates=min(AT_ONCE, len(waves))
            * sum(wave.unet_evals for wave in waves)
            / max(1, sum(wave.n for wave in waves)),
        )
        micro, decode = micro or fitting.micro, decode or fitting.decode
    return Batching(micro, decode, config.engine.wave_rows)


def _refuse_half_scored(store: Store) -> None:
    if store.rescoring_path.exists():
        raise UserError(
            f"name: scoring {store.root} again was interrupted, so its scores are of two kinds: "
            f"first continue with python -m sega_bench score {store.root}, with the scores.... it was given"
        )

"""A job: the part of a plan that its folder lacks, and the batch sizes it will be computed with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sega_bench.cell import Cell
from sega_bench.config import Config
from sega_bench.errors import UserError
from sega_bench.execution import resume
from sega_bench.planning import manifest
from sega_bench.planning.launch_options import device_of
from sega_bench.planning.planner import Plan
from sega_bench.sega import compiling, memory
from sega_bench.sega.batching import Batching
from sega_bench.sega.schedule import WAVES_IN_FLIGHT, Wave, form_waves
from sega_bench.sega.wave import count_timesteps
from sega_bench.store import DamagedPlanError, Record, Store, lock


def no_lock() -> None:
    """``Job.confirm`` of a job that holds no lock: there is none to lose."""


BIT_EXACT_SETTINGS = ("micro_batch_size", "decode_batch_size", "threads", "compile")
"""Engine settings that change an image's last bits. plan.json records them and a resume reuses them."""


@dataclass(frozen=True)
class Job:
    """The missing part of a plan.

    Args:
        plan: the whole plan.
        store: its folder.
        waves: the cells to generate, as the engine will run them.
        unscored: records, without scores, of cells whose image is stored.
        done: number of cells that need nothing.
        batching: batch sizes; those of an earlier run of the same sweep, if there was one.
        threads: torch's CPU thread count, from the earlier run too; None is torch's default.
        compile: whether the UNet is compiled, from the earlier run too.
        stored: the folder's plan.json, if there is one.
        confirm: raises a UserError if another command has taken over the folder.
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
    confirm: Callable[[], None] = no_lock

    @property
    def cells(self) -> list[Cell]:
        """The cells to generate."""
        return [cell for wave in self.waves for cell in wave.cells]

    @property
    def needs_update(self) -> bool:
        """Whether the folder lacks cells of this plan, or its plan.json differs from it."""
        return bool(self.missing) or self.stored is None or manifest.is_outdated(self.plan, self.stored)

    @property
    def missing(self) -> int:
        """Number of cells to generate or score."""
        return sum(len(wave.cells) for wave in self.waves) + len(self.unscored)

    @property
    def unet_evals(self) -> int:
        """UNet evaluations that the job takes."""
        return sum(wave.unet_evals for wave in self.waves)


@dataclass(frozen=True)
class Processes:
    """The processes that execute a job.

    Args:
        count: number of processes.
        threads: of each, unless the command or the folder sets them; None is torch's default.
        are_remote: whether they run on cluster nodes, whose hardware cannot be inspected from here.
    """

    count: int = 1
    threads: int | None = None
    are_remote: bool = False


THIS_PROCESS = Processes()


@contextmanager
def locked(plan: Plan, processes: Processes = THIS_PROCESS) -> Iterator[Job]:
    """:func:`prepare` a plan's job and hold the lock of its folder inside the block.

    Raises:
        UserError: as :func:`prepare` does; or the device is missing, the folder cannot be written, or another
            command holds the lock.
    """
    device_of(plan.config)  # a missing device is reported before a folder is made
    if plan.config.engine.compile and not processes.are_remote:
        compiling.require_compiler()
    store = _store(plan)
    store.prepare()
    with lock.held(store, attach_workers=processes.are_remote) as confirm:
        yield replace(prepare(plan, processes), confirm=confirm)


def _store(plan: Plan) -> Store:
    return Store(Path(plan.config.output_dir) / plan.name)


def prepare(plan: Plan, processes: Processes = THIS_PROCESS) -> Job:
    """Compare a plan with its folder. Loads no model and writes nothing.

    Args:
        plan: the plan.
        processes: that will execute the job.

    Raises:
        UserError: the folder holds another sweep.
    """
    config, store = plan.config, _store(plan)
    _check_not_rescoring(store)
    stored = _stored_plan(store)
    if stored is not None:
        manifest.check_same_sweep(plan, stored)
    remaining = resume.compare(plan.cells, store, retry_failed=config.retry_failed)
    if remaining.cells == plan.cells:
        waves = plan.waves  # cached: forming the waves of 100,000 cells takes seconds
    else:
        waves = form_waves(remaining.cells, config.engine.wave_rows, count_timesteps)
    sizes = _sizes(config, stored)
    sizes["threads"] = sizes["threads"] or processes.threads
    return Job(
        plan=plan,
        store=store,
        waves=waves,
        unscored=remaining.unscored,
        done=remaining.done,
        batching=batching_for(plan, waves, sizes, processes),
        threads=sizes["threads"],
        compile=bool(sizes["compile"]),
        stored=stored,
    )


def _stored_plan(store: Store) -> dict[str, Any] | None:
    """plan.json; None if it is missing or damaged, since cells are recognised by their keys without it."""
    try:
        return store.read_plan()
    except DamagedPlanError:
        return None


def _sizes(config: Config, stored: Mapping[str, Any] | None) -> dict[str, int | None]:
    """Each of :data:`BIT_EXACT_SETTINGS` from the configuration, else from plan.json, else None."""
    recorded = (stored or {}).get("engine", {})
    # ``compile=false`` counts as unset too: a resume of a compiled sweep compiles.
    return {name: getattr(config.engine, name) or recorded.get(name) for name in BIT_EXACT_SETTINGS}


def batching_for(
    plan: Plan, waves: Sequence[Wave], sizes: Mapping[str, int | None], processes: Processes = THIS_PROCESS
) -> Batching:
    """Batch sizes for waves: those that are set, else what the waves fill and memory holds.

    Args:
        plan: the plan.
        waves: of its cells.
        sizes: ``micro_batch_size``, ``decode_batch_size`` and ``threads``, None where they are not set.
        processes: that share this machine's memory; each has a GPU of its own.
    """
    config, checkpoint = plan.config, plan.model.checkpoint
    micro, decode = sizes["micro_batch_size"], sizes["decode_batch_size"]
    if micro is None or decode is None:
        fitting = memory.fit_batching(
            device_of(config),
            pixels=max(cell.height * cell.width for cell in plan.cells),
            itemsize=getattr(torch, plan.cells[0].dtype).itemsize,
            weights=checkpoint.weights_bytes if checkpoint is not None else 0,
            threads=sizes["threads"] or torch.get_num_threads(),
            processes=1 if processes.are_remote else processes.count,
            # The mean number of estimates that are ready at once: those of one step of the waves in flight.
            estimates=min(WAVES_IN_FLIGHT, len(waves))
            * sum(wave.unet_evals for wave in waves)
            / max(1, sum(wave.n for wave in waves)),
        )
        micro, decode = micro or fitting.micro, decode or fitting.decode
    return Batching(micro, decode, config.engine.wave_rows)


def _check_not_rescoring(store: Store) -> None:
    if store.rescoring_path.exists():
        raise UserError(
            f"name: scoring {store.root} again was interrupted, so its scores are of two kinds: "
            f"first continue with python -m sega_bench score {store.root}, with the scores.... it was given"
        )

"""Sweeps run the fewest possible evaluations: executed, counted and minimal numbers are equal.

The minimum is computed from the algorithm's definition (CONTRIBUTING.md, "What sharing rests on") without the
package's schedule: an evaluation is a text at a step for some latents, and equal evaluations count once.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import naive
from support.fakes import FakeDenoiser
from support.shipped import SWEEPS, expand
from support.strategies import METHODS, STEPS, with_method

from sega_bench.cell import Cell, Edit
from sega_bench.sega.batching import Batching
from sega_bench.sega.schedule import Wave, form_waves
from sega_bench.sega.wave import count_timesteps, run_waves


def acts(edit: Edit, i: int) -> bool:
    is_live = edit.edit_cooldown_steps is None or i < edit.edit_cooldown_steps
    return edit.edit_weights > 0 and edit.edit_guidance_scale != 0 and is_live


def adding(cell: Cell, n: int) -> list[int]:
    """The steps at which the algorithm adds guidance, by tracking which of its terms are zero."""
    if cell.method != "sega":
        return [i for i in range(n) if deviates(cell, i)]
    nu, steps = False, []
    for i in range(n):
        warm = [i >= edit.edit_warmup_steps for edit in cell.edits]
        v = any(acts(edit, i) for edit in cell.edits) or (cell.edit_momentum_scale != 0 and nu)
        some = any(is_warm and acts(edit, i) for is_warm, edit in zip(warm, cell.edits, strict=True))
        if v if warm and all(warm) else some:
            steps.append(i)
        nu = (cell.edit_mom_beta > 0 and nu) or (cell.edit_mom_beta < 1 and v)
    return steps


def deviates(cell: Cell, i: int) -> bool:
    """Whether a method other than SEGA differs from the reference at a step, by a term or a text."""
    if cell.method == "composable":
        return any(acts(edit, i) and i >= edit.edit_warmup_steps for edit in cell.edits)
    return naive.texts_at(cell, i) != (cell.negative_prompt, cell.prompt)


def needed(edit: Edit, cell: Cell, i: int, n: int) -> bool:
    if cell.method in ("prompt", "negative"):
        return False
    last_warm = max(one.edit_warmup_steps for one in cell.edits)
    builds = cell.edit_momentum_scale != 0 and cell.edit_mom_beta < 1 and last_warm < n
    return acts(edit, i) and (i >= edit.edit_warmup_steps or builds)


def minimum(cells: Sequence[Cell]) -> int:
    """The smallest number of evaluations of these cells, with one level of sharing."""
    evaluations: set[tuple[str, int, str]] = set()
    for cell in cells:
        n = count_timesteps(cell)
        steps = adding(cell, n)
        evaluations.update(run(cell, n, steps, range(n)))
        if steps and cell.replay is not None:  # the edit of the other prompt, until its last addition
            source = replace(cell, prompt=cell.replay, replay=None)
            evaluations.update(run(source, n, steps, range(steps[-1] + 1)))
    return len(evaluations)


def run(cell: Cell, n: int, steps: Sequence[int], needed_at: range) -> Iterator[tuple[str, int, str]]:
    """Latents, step and text of every evaluation that one cell needs."""
    for i in needed_at:
        latents = cell.key if steps and i >= steps[0] else cell.reference().key
        negative_prompt, prompt = naive.texts_at(cell, i)
        texts = {prompt} | ({negative_prompt} if cell.guidance_scale > 1 else set())
        if steps and cell.replay is None:
            texts |= {edit.concept for edit in cell.edits if needed(edit, cell, i, n)}
        yield from ((latents, i, text) for text in texts)


def executed(waves: Sequence[Wave]) -> int:
    """UNet evaluations counted by the network, one at a time."""
    denoiser = FakeDenoiser()
    for wave, outcomes in zip(waves, run_waves(denoiser, waves, Batching(micro=1)), strict=True):
        assert not isinstance(outcomes, Exception)
        assert {o.cell.key: o.unet_evals for o in outcomes} == wave.count_evaluations()
    assert set(denoiser.batches) <= {1}
    return len(denoiser.batches)


def counted(waves: Sequence[Wave]) -> int:
    return sum(sum(wave.count_evaluations().values()) for wave in waves)


edits = st.builds(
    Edit,
    concept=st.sampled_from(["glasses", "smile", "a face"]),
    edit_guidance_scale=st.sampled_from([0.0, 3.0, 8.0]),
    edit_threshold=st.sampled_from([0.203, 0.903]),
    edit_warmup_steps=st.integers(0, STEPS),
    edit_cooldown_steps=st.one_of(st.none(), st.integers(0, STEPS + 1)),
    edit_weights=st.sampled_from([0.0, 0.5, 1.0]),
    reverse_editing_direction=st.booleans(),
)
samplings = st.fixed_dictionaries(
    {
        "scheduler": st.sampled_from(["DDIMScheduler", "PNDMScheduler"]),
        "guidance_scale": st.sampled_from([3.0, 5.5]),
        "negative_prompt": st.sampled_from(["", "smile", "a face"]),
    }
)
momenta = st.fixed_dictionaries(
    {
        "edit_momentum_scale": st.sampled_from([0.0, 0.3]),
        "edit_mom_beta": st.sampled_from([0.0, 0.4, 1.0]),
    }
)


@st.composite
def sweeps(draw: st.DrawFn) -> list[Cell]:
    """A small sweep over prompts, seeds, samplings, concept sets, momenta, replays and methods."""
    crossed = itertools.product(
        draw(st.lists(st.sampled_from(["a face", "a cat", "glasses"]), min_size=1, max_size=2, unique=True)),
        draw(st.lists(st.integers(0, 9), min_size=1, max_size=2, unique=True)),
        draw(st.lists(samplings, min_size=1, max_size=2)),
        draw(st.lists(st.lists(edits, max_size=3).map(tuple), min_size=1, max_size=4)),
        draw(st.lists(momenta, min_size=1, max_size=2)),
        draw(st.lists(st.sampled_from([None, "a face", "a house"]), min_size=1, max_size=2, unique=True)),
        draw(st.lists(st.sampled_from(METHODS), min_size=1, max_size=3, unique=True)),
    )
    common = {"num_inference_steps": STEPS, "height": 32, "width": 32}
    cells = [
        with_method(
            Cell(
                prompt, seed, together, replay=replay if together else None, **common, **sampling, **momentum
            ),
            method,
        )
        for prompt, seed, sampling, together, momentum, replay, method in crossed
    ]
    with_references = draw(st.booleans())
    requested = [one for cell in cells for one in ((cell.reference(), cell) if with_references else (cell,))]
    unguided = draw(
        st.lists(st.just(Cell("a cat", 3, guidance_scale=1.0, num_inference_steps=STEPS)), max_size=1)
    )
    return draw(st.permutations(list(dict.fromkeys(requested + unguided))))


@given(sweeps())
@settings(max_examples=200)
def test_a_sweep_takes_the_fewest_evaluations(cells: list[Cell]) -> None:
    waves = form_waves(cells, 1000, count_timesteps)
    assert executed(waves) == counted(waves) == minimum(cells)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_shipped_sweep_takes_the_fewest_evaluations(sweep: str) -> None:
    made = expand(sweep)
    assert executed(made.waves) == made.counts()["unet_evals"] == minimum(made.cells)

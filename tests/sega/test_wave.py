"""The engine on a denoiser that is exact under any batching, so every difference is the engine's fault."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import naive
from support.fakes import FakeDenoiser
from support.strategies import METHODS, cells

from sega_bench.cell import Cell, Edit
from sega_bench.sega import schedulers
from sega_bench.sega.batching import Batching
from sega_bench.sega.denoiser import Conditioning
from sega_bench.sega.schedule import form_waves, wave_of
from sega_bench.sega.steps import image_owner
from sega_bench.sega.wave import Outcome, count_timesteps, denoise, generate

SCHEDULERS = ("DDIMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerAncestralDiscreteScheduler")
ROUND_TO_FLOAT32 = (
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "HeunDiscreteScheduler",
)
methods = st.sampled_from(METHODS)
STOCHASTIC = ("EulerAncestralDiscreteScheduler", "DDPMScheduler", "LCMScheduler")


def make(requested: Iterable[Cell], **sizes: int) -> dict[Cell, Outcome]:
    return {outcome.cell: outcome for outcome in generate(FakeDenoiser(), requested, Batching(**sizes))}


def image(outcome: Outcome) -> bytes:
    assert outcome.image_HWC is not None
    return outcome.image_HWC.tobytes()


def tiny_cell(prompt: str, seed: int = 0) -> Cell:
    return Cell(prompt, seed, (Edit("c", 6, 0.5, 3),), num_inference_steps=8, height=32, width=32)


@given(
    st.lists(
        cells(scheduler=st.sampled_from(SCHEDULERS), method=methods), min_size=1, max_size=7, unique=True
    ),
    st.integers(2, 8),
)
@settings(max_examples=200, deadline=None)
def test_executed_evaluations_equal_planned_ones(requested: list[Cell], rows: int) -> None:
    denoiser, counted = FakeDenoiser(), []
    outcomes = list(generate(denoiser, requested, Batching(micro=5, wave_rows=rows), counted.append))
    planned: dict[str, int] = {}
    for wave in form_waves(requested, rows, count_timesteps):
        planned |= wave.count_evaluations()
    assert {outcome.cell.key: outcome.unet_evals for outcome in outcomes} == planned
    assert sum(counted) == sum(planned.values())
    assert set(denoiser.batches) <= {5}  # padded: every pass has the same size


@given(
    st.lists(
        cells(scheduler=st.sampled_from(SCHEDULERS), method=methods), min_size=2, max_size=6, unique=True
    )
)
@settings(max_examples=60, deadline=None)
def test_an_image_does_not_depend_on_other_cells(requested: list[Cell]) -> None:
    together = make(requested, micro=4)
    split = make(reversed(requested), micro=3, wave_rows=2)
    for cell in requested:
        alone = make([cell], micro=1)[cell]
        assert image(together[cell]) == image(alone) == image(split[cell])


@pytest.mark.parametrize("scheduler", sorted(schedulers._ROW_STATE))
@given(data=st.data())
@settings(max_examples=12)
def test_shared_and_forked_cells_equal_the_plain_loop(scheduler: str, data: st.DataObject) -> None:
    """Includes Heun and KDPM2, whose 2n-1 steps exceed the buffers of diffusers' pipeline."""
    eta = data.draw(st.sampled_from([0.0, 0.7])) if scheduler == "DDIMScheduler" else 0.0
    one = cells(scheduler=scheduler, eta=eta, method=methods, scheduler_config='{"num_train_timesteps":250}')
    requested = data.draw(st.lists(one, min_size=2, max_size=4, unique=True))
    denoiser = FakeDenoiser()
    latents = denoise(denoiser, wave_of(requested, count_timesteps(requested[0])), Batching(micro=4)).latents
    tolerance = 1e-5 if scheduler in ROUND_TO_FLOAT32 else 1e-9
    for cell, ours in latents.items():
        expected = naive.latents(denoiser, cell)
        assert (ours - expected).abs().max() <= tolerance * expected.abs().max()


@given(
    st.lists(cells(scheduler=st.sampled_from(SCHEDULERS)), min_size=1, max_size=6, unique=True),
    st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_the_positions_an_edit_acted_on_equal_those_of_the_cell_alone(
    requested: list[Cell], micro: int
) -> None:
    """For shared trunks, replays and batches of any size; a cell equal to its reference has none."""
    made = make(requested, micro=micro, wave_rows=5)
    for cell in requested:
        is_guided_HW = made[cell].is_guided_HW
        if image_owner(cell, count_timesteps(cell)).is_reference:
            assert is_guided_HW is None
            continue
        assert is_guided_HW is not None
        assert (is_guided_HW == naive.guided(FakeDenoiser(), cell).numpy()).all()


def test_composable_acts_everywhere_and_a_changed_prompt_has_no_positions() -> None:
    cell = tiny_cell("p")
    composed, appended = replace(cell, method="composable"), replace(cell, method="prompt")
    made = make([composed, appended])
    everywhere = made[composed].is_guided_HW
    assert everywhere is not None
    assert everywhere.shape == (4, 4)
    assert everywhere.ravel()[1:].all()  # the fake model ignores texts at the first position
    assert made[appended].is_guided_HW is None


def test_a_replay_is_its_sources_guidance_on_another_prompt() -> None:
    source, other = tiny_cell("p"), tiny_cell("q")
    replay = replace(source, prompt="q", replay="p")
    made = make([source, other, replay, replay.reference()])
    assert len({image(outcome) for outcome in made.values()}) == 4
    assert image(make([replay])[replay]) == image(made[replay])
    assert image(make([replace(source, replay="p")])[source]) == image(made[source])


@pytest.mark.parametrize("scheduler", STOCHASTIC)
def test_every_cell_draws_its_own_seeds_noise(scheduler: str) -> None:
    def cell(seed: int, *edits: Edit) -> Cell:
        return Cell("p", seed, edits, scheduler=scheduler, num_inference_steps=8, height=32, width=32)

    edit = Edit("c", 6, 0.5, 3)
    requested = [cell(0), cell(0, edit), cell(1), cell(1, edit), cell(0, Edit("c", 0, 0.5, 3))]
    made = make(requested)
    for one in requested:
        assert image(made[one]) == image(make([one])[one])
    assert len({image(made[one]) for one in requested}) == 4  # scale 0 is the reference


@pytest.mark.parametrize("scheduler", [*STOCHASTIC, "KDPM2AncestralDiscreteScheduler", "DDIMScheduler"])
def test_branches_draw_the_noise_of_their_trunk(scheduler: str) -> None:
    """A model that ignores texts ignores edits: a branch could differ from its trunk only by its noise."""

    class Illiterate(FakeDenoiser):
        def encode(self, text: str) -> Conditioning:
            return super().encode("")

    def cell(seed: int, *edits: Edit, replay: str | None = None) -> Cell:
        how = {"scheduler": scheduler, "eta": 1.0, "num_inference_steps": 8, "height": 32, "width": 32}
        return Cell("p", seed, edits, replay=replay, **how)

    edits = [Edit("c", 6, 0.5, warmup) for warmup in (0, 3, 7)] + [Edit("d", 2, 0.5, 3)]
    forks = [cell(0), *(cell(0, edit) for edit in edits), cell(0, edits[1], replay="q")]
    requested = [cell(1), *forks, cell(1, Edit("c", 6, 0.5, 3))]
    latents = denoise(
        Illiterate(), wave_of(requested, count_timesteps(requested[0])), Batching(micro=4)
    ).latents
    assert len(latents) == len(requested) == 8
    assert all(torch.equal(latents[fork], latents[cell(0)]) for fork in forks)
    assert torch.equal(latents[requested[0]], latents[requested[-1]])
    assert not torch.equal(latents[cell(0)], latents[cell(1)])


def test_ddim_with_eta_draws_noise() -> None:
    quiet, noisy = (Cell("p", 0, eta=eta, num_inference_steps=8, height=32, width=32) for eta in (0.0, 1.0))
    made = make([quiet, noisy])
    assert image(made[quiet]) != image(made[noisy])


def test_cells_equal_to_their_reference_are_its_image_at_no_cost() -> None:
    base = {"prompt": "p", "seed": 0, "num_inference_steps": 8, "height": 32, "width": 32}
    late, none = Cell(**base, edits=(Edit("c", 5, 0.5, 8),)), Cell(**base, edits=(Edit("c", 0, 0.5, 0),))
    reference = late.reference()
    made = make([reference, late, none])
    assert image(made[reference]) == image(made[late]) == image(made[none])
    assert (made[late].unet_evals, made[none].unet_evals) == (0, 0)
    assert image(make([none])[none]) == image(made[reference])


def test_every_text_is_encoded_once_a_wave() -> None:
    denoiser = FakeDenoiser()
    requested = [
        Cell("p", s, (Edit("c", 5, q, 2),), height=32, width=32) for s in range(3) for q in (0.1, 0.8)
    ]
    denoise(denoiser, wave_of(requested, count_timesteps(requested[0])), Batching())
    assert sorted(denoiser.encoded) == ["", "c", "p"]


def test_without_guidance_only_the_prompt_is_evaluated() -> None:
    cell = Cell("p", 0, guidance_scale=1.0, num_inference_steps=8, height=32, width=32)
    assert make([cell])[cell].unet_evals == 8


def test_out_of_memory_halves_the_batch_and_goes_on() -> None:
    def refuse_more_than_three(latents: torch.Tensor) -> None:
        if len(latents) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    requested = [Cell("p", s, (Edit("c", 5, 0.5, 2),), height=32, width=32) for s in range(4)]
    batching, counted = Batching(micro=16), []
    outcomes = list(generate(FakeDenoiser(refuse_more_than_three), requested, batching, counted.append))
    assert batching.micro == 2
    expected = make(requested)
    assert all(image(outcome) == image(expected[outcome.cell]) for outcome in outcomes)
    assert sum(counted) == sum(outcome.unet_evals for outcome in outcomes)


class SmallDecoder(FakeDenoiser):
    """Runs out of memory when it decodes more than ``most`` latents at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.decoded = most, []

    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        if len(latents_BCHW) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.decoded.append(len(latents_BCHW))
        return super().decode(latents_BCHW)


def test_out_of_memory_in_the_decoder_halves_its_batch_and_goes_on() -> None:
    requested = [Cell("p", s, (Edit("c", 5, 0.5, 2),), height=32, width=32) for s in range(7)]
    batching, denoiser = Batching(micro=16, decode=8), SmallDecoder(3)
    outcomes = list(generate(denoiser, requested, batching))
    assert (batching.decode, batching.micro) == (2, 16)
    assert denoiser.decoded == [2] * (2 + 2 + 1)  # waves of 3, 3 and 1
    expected = make(requested)
    assert all(image(outcome) == image(expected[outcome.cell]) for outcome in outcomes)


def test_out_of_memory_for_a_single_row_is_an_error() -> None:
    def refuse(latents: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for denoiser in (FakeDenoiser(refuse), SmallDecoder(0)):
        with pytest.raises(torch.OutOfMemoryError):
            list(generate(denoiser, [Cell("p", 0, height=32, width=32)]))


def test_nan_fails_only_its_own_cell() -> None:
    class Poisoned(FakeDenoiser):
        def encode(self, text: str) -> dict[str, torch.Tensor]:
            pattern = super().encode(text)["pattern"]
            return {"pattern": pattern * float("nan") if text == "poison" else pattern}

    base = {"prompt": "p", "seed": 0, "num_inference_steps": 8, "height": 32, "width": 32}
    good, bad = Cell(**base, edits=(Edit("c"),)), Cell(**base, edits=(Edit("poison", 5, 0.5, 2),))
    made = {o.cell: o for o in generate(Poisoned(), [good.reference(), good, bad])}
    assert made[bad].image_HWC is None
    assert made[bad].error == "the latents became NaN or infinite"
    assert image(made[good]) == image(make([good])[good])
    assert made[good.reference()].error is None


def test_images_are_uint8_of_the_requested_size() -> None:
    cell = Cell("p", 0, height=40, width=64, num_inference_steps=4)
    made = make([cell])[cell].image_HWC
    assert made is not None
    assert (made.shape, made.dtype) == ((40, 64, 3), np.uint8)

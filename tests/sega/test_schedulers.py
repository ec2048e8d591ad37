"""Rows stepped together, forked and dropped equal rows stepped alone, bit for bit, for every scheduler."""

import json

import diffusers
import pytest
import torch
from torch import Tensor

from sega_bench.errors import UserError
from sega_bench.sega import schedulers

KNOWN = sorted(schedulers._ROW_STATE)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
N = 7


def make(name: str, **config: object) -> object:
    accepted = schedulers.accepted_config(name, BETAS | config)
    return schedulers.make(name, json.dumps(accepted), N)


def estimate(latents: Tensor, branch: Tensor, step: int) -> Tensor:
    """A contractive estimate that depends on the row's own branch number; elementwise."""
    return 0.3 * latents + torch.sin(latents + branch.reshape(-1, 1, 1, 1) + 0.1 * step)


def start(seeds: list[int]) -> tuple[Tensor, list[torch.Generator]]:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.cat([torch.randn(1, 4, 4, 4, generator=g) for g in generators]), generators


def alone(name: str, seed: int, branch: float, fork: int, **config: object) -> Tensor:
    """One row whose branch number changes from 0 at step ``fork``."""
    scheduler = make(name, **config)
    latents, generators = start([seed])
    for i, t in enumerate(scheduler.timesteps):
        eps = estimate(
            scheduler.scale_model_input(latents, t), torch.tensor([branch if i >= fork else 0.0]), i
        )
        latents = scheduler.step(
            eps, t, latents, return_dict=False, **schedulers.step_arguments(scheduler, 0.0, generators)
        )[0]
    return latents[0]


@pytest.mark.parametrize("fork", range(N))
@pytest.mark.parametrize("name", KNOWN)
def test_a_fork_keeps_the_state_of_its_row(name: str, fork: int) -> None:
    """One of three rows is dropped and one doubled: a forgotten gather would raise no error."""
    scheduler = make(name)
    latents, generators = start([0, 1, 2])
    branch = torch.zeros(3)
    for i, t in enumerate(scheduler.timesteps):
        if i == fork:
            index = torch.tensor([1, 1, 2])
            schedulers.gather(scheduler, index, latents)
            latents = latents[index]
            generators = [generators[j].clone_state() for j in index]
            branch = torch.tensor([1.0, 2.0, 0.0])
        eps = estimate(scheduler.scale_model_input(latents, t), branch, i)
        latents = scheduler.step(
            eps, t, latents, return_dict=False, **schedulers.step_arguments(scheduler, 0.0, generators)
        )[0]
    expected = [alone(name, seed, number, fork) for seed, number in ((1, 1.0), (1, 2.0), (2, 0.0))]
    for row, other in zip(latents, expected, strict=True):
        assert torch.equal(row, other)


@pytest.mark.parametrize("name", [name for name in KNOWN if schedulers._ROW_STATE[name]])
def test_the_listed_state_is_the_actual_state(name: str) -> None:
    """The listed attributes are exactly those that ever hold a tensor of the latents' full shape."""
    scheduler = make(name)
    latents, generators = start([0, 1])
    seen = set()
    for i, t in enumerate(scheduler.timesteps):
        eps = estimate(scheduler.scale_model_input(latents, t), torch.zeros(2), i)
        latents = scheduler.step(
            eps, t, latents, return_dict=False, **schedulers.step_arguments(scheduler, 0.0, generators)
        )[0]
        for key, value in vars(scheduler).items():
            items = value if isinstance(value, list) else [value]
            if any(isinstance(item, Tensor) and item.shape == latents.shape for item in items):
                seen.add(key)
    assert seen == set(schedulers._ROW_STATE[name]) - _only_with_runge_kutta(name)


def _only_with_runge_kutta(name: str) -> set[str]:
    return {"cur_model_output"} if name == "PNDMScheduler" else set()


def test_state_that_is_not_listed_raises() -> None:
    scheduler = make("DDIMScheduler")
    latents, _ = start([0, 1])
    scheduler.history = [latents]  # as a later version of the library might
    with pytest.raises(RuntimeError, match=r"DDIMScheduler\.history"):
        schedulers.gather(scheduler, torch.tensor([0]), latents)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddim", "DDIMScheduler"),
        ("DDIMScheduler", "DDIMScheduler"),
        ("UniPC", "UniPCMultistepScheduler"),
        ("euler_ancestral", "EulerAncestralDiscreteScheduler"),
        ("DPMSolver++", "DPMSolverMultistepScheduler"),
        ("dpmsolversinglestep", "DPMSolverSinglestepScheduler"),
    ],
)
def test_names_people_use(name: str, expected: str) -> None:
    assert schedulers.class_name(name) == expected


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean EulerDiscreteScheduler"):
        schedulers.class_name("Eulre")
    with pytest.raises(UserError, match="DPMSolverSDEScheduler"):
        schedulers.class_name("DPMSolverSDEScheduler")  # its Brownian trees cannot be forked


@pytest.mark.parametrize(
    ("name", "steps"), [("DDIMScheduler", 7), ("PNDMScheduler", 8), ("HeunDiscreteScheduler", 13)]
)
def test_timesteps_are_counted_like_the_schedulers_own(name: str, steps: int) -> None:
    config = json.dumps(schedulers.accepted_config(name, BETAS))
    assert schedulers.count_timesteps(name, config, N) == steps


@pytest.mark.parametrize("name", KNOWN)
def test_a_scheduler_refuses_more_steps_than_were_trained(name: str) -> None:
    config = json.dumps(schedulers.accepted_config(name, BETAS | {"num_train_timesteps": 60}))
    assert schedulers.count_timesteps(name, config, 50) >= 50
    for steps in (61, 10**9):
        with pytest.raises(
            ValueError, match=rf"^num_inference_steps is {steps}, but {name} was trained with 60"
        ):
            schedulers.make(name, config, steps)


def test_an_error_of_a_scheduler_names_the_setting() -> None:
    config = json.dumps(schedulers.accepted_config("LCMScheduler", BETAS))
    with pytest.raises(ValueError, match=r"^num_inference_steps is 51, but LCMScheduler cannot take so many"):
        schedulers.make("LCMScheduler", config, 51)
    leading = json.dumps(BETAS | {"timestep_spacing": "leading", "steps_offset": 1})
    with pytest.raises(ValueError, match=r"^num_inference_steps is 1000, but DDIMScheduler would begin at"):
        schedulers.make("DDIMScheduler", leading, 1000)
    with pytest.raises(
        ValueError, match=r"^scheduler is DDIMScheduler, which the checkpoint's configuration"
    ):
        schedulers.make("DDIMScheduler", json.dumps({"beta_schedule": "steep"}), 10)


def test_all_known_are_diffusers_classes() -> None:
    assert all(hasattr(diffusers, name) for name in KNOWN)


@pytest.mark.parametrize("name", sorted(schedulers._ROW_STATE))
def test_steps_at_which_a_solver_would_divide_by_zero_are_refused(name: str) -> None:
    config = json.dumps(schedulers.accepted_config(name, BETAS))
    if name.startswith(("DPMSolver", "DEIS", "UniPC")):
        with pytest.raises(ValueError, match=rf"^num_inference_steps is 1000, but {name} would visit"):
            schedulers.make(name, config, 1000)
        assert len(schedulers.make(name, config, 999).timesteps) == 999
    elif name != "LCMScheduler":  # takes 50 at most
        assert len(schedulers.make(name, config, 1000).timesteps) >= 1000

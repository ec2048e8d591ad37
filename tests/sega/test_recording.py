"""Replayed networks return the same bits as the networks themselves."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from support import tiny_sd, tiny_xl
from torch import Tensor, nn

from sega_bench.benchmark.peak import peak_bytes
from sega_bench.sega import recording
from sega_bench.sega.models import StableDiffusion, accelerated
from sega_bench.sega.recording import SHAPES, Recorded, record


@pytest.fixture(autouse=True)
def _inference() -> Any:
    with torch.inference_mode():
        yield


def batch(model: StableDiffusion, size: int, seed: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Latents, a timestep for each, and as many texts."""
    generator = torch.Generator().manual_seed(seed)
    latents_BCHW = torch.randn(size, *model.latent_shape(16, 16), generator=generator).to(model.latent_dtype)
    timestep_B = torch.randint(1000, (size,), generator=generator).float()
    texts = [model.encode(f"text {seed} {i}") for i in range(size)]
    return latents_BCHW, timestep_B, {name: torch.stack([one[name] for one in texts]) for name in texts[0]}


@pytest.mark.parametrize("load", [tiny_sd.loaded, tiny_xl.loaded])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_replayed_unet_returns_its_own_bits(load: Callable[[str], Any], dtype: str) -> None:
    recorded = load(dtype)
    assert isinstance(recorded._run_unet, Recorded)
    plain = StableDiffusion(recorded.tokenizers, recorded.text_encoders, recorded.unet, recorded.vae)
    for size, seed in ((3, 0), (3, 1), (2, 2), (3, 3), (2, 4)):
        inputs = batch(recorded, size, seed)
        assert torch.equal(recorded.predict(*inputs), plain.predict(*inputs))
    assert {replay.__name__ for replay in recorded._run_unet._replays.values()} == {"replay"}


def test_a_replay_takes_no_more_memory_than_the_network() -> None:
    model = tiny_sd.loaded("float32")
    latents_BCHW, timestep_B, texts = batch(model, 4, 0)
    arguments = latents_BCHW, timestep_B, texts["encoder_hidden_states"]

    def network(*args: Any) -> Any:
        return model.unet(*args, return_dict=False)

    peak = peak_bytes(lambda: network(*arguments))
    assert peak_bytes(lambda: record(network, arguments, {})) <= 1.01 * peak
    _, replay = record(network, arguments, {})
    assert replay is not None
    assert peak_bytes(lambda: replay(*arguments)) <= 1.01 * peak


class Nested(nn.Module):
    """Operators with lists, in place, without tensors, of weights alone; nested results."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 6))

    def forward(self, x: Tensor, y: dict[str, Tensor], scale: float = 1.0) -> dict[str, Any]:
        left, right = torch.cat([x, y["y"]], dim=-1).chunk(2, dim=-1)
        ramp = torch.arange(6, dtype=x.dtype)
        ramp.mul_(left.mean())
        highest, where = (right * scale + ramp * self.weight.exp()).max(dim=-1)
        return {"values": [highest, where], "same": x, "weight": self.weight * 2, "scale": scale}


def test_nested_inputs_and_results() -> None:
    network = Nested()
    recorded = Recorded(network)
    for seed, scale in ((0, 1.0), (1, 1.0), (2, 3.0), (3, 1.0), (4, 3.0)):
        torch.manual_seed(seed)
        x, y = torch.randn(2, 6), torch.randn(2, 6)
        replayed, expected = recorded(x, {"y": y}, scale=scale), network(x, {"y": y}, scale=scale)
        assert replayed["scale"] == scale
        assert torch.equal(replayed["same"], x)
        for one, other in zip(replayed["values"], expected["values"], strict=True):
            assert torch.equal(one, other)
        assert torch.equal(replayed["weight"], expected["weight"])


def test_only_the_records_of_recent_shapes_are_kept() -> None:
    recorded = Recorded(torch.neg)
    for _ in range(2):
        for size in range(1, SHAPES + 3):
            assert recorded(torch.ones(size)).sum() == -size
            assert len(recorded._replays) <= SHAPES


def test_the_same_tensors_under_other_argument_names_are_another_record() -> None:
    network = Recorded(lambda *, left, right=None, other=None: left - (right if other is None else 2 * other))
    left, other = torch.ones(2), torch.full((2,), 3.0)
    assert torch.equal(network(left=left, right=other), torch.full((2,), -2.0))
    assert torch.equal(network(left=left, other=other), torch.full((2,), -5.0))


def test_a_tensor_passed_twice_is_recorded_as_two_arguments() -> None:
    recorded = Recorded(torch.sub)
    x, y = torch.ones(3), torch.zeros(3)
    assert recorded(x, x).tolist() == [0, 0, 0]
    assert recorded(x, y).tolist() == [1, 1, 1]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    "is_positive",
    [
        lambda x: bool(x.sum() > 0),
        lambda x: x.sum().item() > 0,
        lambda x: torch.equal(x, x.abs()),
        lambda x: len(x[x > 0]) > 0,
    ],
)
def test_a_network_that_branches_on_values_is_called_itself(
    is_positive: Callable[[Tensor], bool], caplog: pytest.LogCaptureFixture
) -> None:
    def network(x: Tensor) -> Tensor:
        return x + 1 if is_positive(x) else x - 1

    recorded = Recorded(network)
    assert [recorded(torch.tensor([value])).item() for value in (1.0, -1.0, 2.0)] == [2, -2, 3]
    (warning,) = warnings(caplog)
    assert "reads a tensor's values" in warning


def test_a_network_that_changes_a_tensor_of_its_own_is_called_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = torch.zeros(())

    def network(x: Tensor) -> Tensor:
        return x + calls.add_(1)

    recorded = Recorded(network)
    assert [recorded(torch.zeros(1)).item() for _ in range(3)] == [1, 2, 3]
    (warning,) = warnings(caplog)
    assert "changes a tensor of the network" in warning


def test_a_network_that_fails_while_it_is_recorded_is_called_itself(caplog: pytest.LogCaptureFixture) -> None:
    def network(x: Tensor) -> Tensor:
        if torch._C._len_torch_dispatch_stack():
            raise TypeError("cannot be traced")
        return x + 1

    recorded = Recorded(network)
    assert [recorded(torch.full((size,), 2.0)).sum().item() for size in (1, 2, 3, 1)] == [3, 6, 9, 3]
    (warning,) = warnings(caplog)
    assert "TypeError: cannot be traced" in warning


def test_a_failure_of_the_recorder_itself_leaves_the_output(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(recorder: object, output: object) -> None:
        raise SyntaxError("no such line")

    monkeypatch.setattr(recording._Recorder, "replay", broken)
    recorded = Recorded(torch.neg)
    assert [recorded(torch.tensor([value])).item() for value in (1.0, -1.0)] == [-1, 1]
    (warning,) = warnings(caplog)
    assert "no such line" in warning


def test_threads_that_call_a_new_shape_at_once() -> None:
    model = tiny_sd.loaded("float64")
    recorded, inputs = accelerated(model.unet), [batch(model, 2, seed) for seed in range(4)]
    start = Barrier(4)

    def run(latents_BCHW: Tensor, timestep_B: Tensor, texts: dict[str, Tensor]) -> list[Tensor]:
        start.wait()
        with torch.inference_mode():
            return [
                recorded(latents_BCHW, timestep_B, texts["encoder_hidden_states"], return_dict=False)[0]
                for _ in range(3)
            ]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, *zip(*inputs, strict=True)))
    for outputs, (latents_BCHW, timestep_B, texts) in zip(results, inputs, strict=True):
        (expected,) = model.unet(latents_BCHW, timestep_B, texts["encoder_hidden_states"], return_dict=False)
        assert all(torch.equal(output, expected) for output in outputs)


def test_an_error_of_the_network_is_raised() -> None:
    def network(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    recorded = Recorded(network)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError, match="no memory"):
            recorded(torch.zeros(1))

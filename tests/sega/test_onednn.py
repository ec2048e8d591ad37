"""Layers packed for oneDNN compute what PyTorch's do, and a PyTorch without the operators is enough."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from support import tiny_sd
from torch import Tensor

from sega_bench.sega import onednn
from sega_bench.sega.models import accelerated


@pytest.mark.parametrize("pack", [onednn.pack_layers, onednn.pack_layers_to_compile])
def test_packed_layers_compute_the_same_as_before(pack: Callable[[torch.nn.Module], None]) -> None:
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(4, 6, 3, stride=2, padding=1),
        torch.nn.Conv2d(6, 10, 1, groups=2, bias=False),
        torch.nn.Flatten(2),
        torch.nn.Linear(16, 7),
        torch.nn.Linear(7, 3, bias=False),
    )
    inputs = [torch.randn(size, 4, 8, 8) for size in (2, 3, 2)]  # each size needs its own weight layout
    expected = [layers(x) for x in inputs]
    layers_before = len(onednn._layers)
    pack(layers)
    for x, y in zip(inputs, expected, strict=True):
        torch.testing.assert_close(layers(x), y)
        torch.testing.assert_close(layers(x.to(memory_format=torch.channels_last)), y)
    assert len(onednn._layers) == layers_before + 2 * (pack is onednn.pack_layers_to_compile)
    del layers
    assert len(onednn._layers) == layers_before  # packed weights do not outlive their layers


OPERATORS = ["_kernels.mkldnn_reorder_conv2d_weight", "_onednn._linear_pointwise"]


class Lacking:
    """A namespace of operators without one of them."""

    def __init__(self, namespace: object, name: str) -> None:
        self._namespace, self._name = namespace, name

    def __getattr__(self, name: str) -> object:
        if name == self._name:
            raise AttributeError(name)
        return getattr(self._namespace, name)


@pytest.mark.parametrize("operator", OPERATORS)
@torch.inference_mode()
def test_without_a_private_operator_a_network_runs_unpacked(
    operator: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_sd.loaded("float32")
    arguments = torch.randn(2, 4, 16, 16), torch.tensor([3.0, 500.0]), _states(model)
    (packed_BCHW,) = model.unet(*arguments, return_dict=False)
    unpacked = _unpacked(model.unet)
    (plain_BCHW,) = unpacked(*arguments, return_dict=False)
    torch.testing.assert_close(packed_BCHW, plain_BCHW)

    namespace, name = operator.split(".")
    monkeypatch.setattr(onednn, namespace, Lacking(getattr(onednn, namespace), name))
    network = accelerated(unpacked)
    for _ in range(2):  # recorded, then replayed
        assert torch.equal(network(*arguments, return_dict=False)[0], plain_BCHW)
    (warning,) = caplog.records
    assert f"has no {name}: " in warning.getMessage()


def _unpacked(unet: torch.nn.Module) -> torch.nn.Module:
    """A copy of a UNet whose layers run as PyTorch defines them."""
    fresh = type(unet).from_config(unet.config).eval()  # type: ignore[attr-defined, operator]
    fresh.load_state_dict(unet.state_dict())
    return fresh.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def _states(model: object) -> Tensor:
    encode = model.encode  # type: ignore[attr-defined]
    return torch.stack([encode(text)["encoder_hidden_states"] for text in ("a face", "smile")])


def test_without_the_private_operators_the_package_is_imported() -> None:
    remove = "import torch; del torch._C._nn.mkldnn_reorder_conv2d_weight; torch.ops.mkldnn = object(); "
    subprocess.run([sys.executable, "-c", remove + "import sega_bench.sega.models"], check=True)

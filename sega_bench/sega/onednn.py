"""Linear layers and convolutions through oneDNN, their weights packed once, on a CPU in float32.

PyTorch sends float32 matrix products to MKL, which uses AVX2 on AMD's processors where oneDNN uses AVX-512;
and convolutions to oneDNN, but brings their weights into its order anew in every call. Nothing is computed in
less than float32.
"""

from __future__ import annotations

import itertools
import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_onednn: Any = torch.ops.mkldnn
_reorder_conv2d_weight: Any = torch._C._nn.mkldnn_reorder_conv2d_weight


def use_for(network: nn.Module) -> None:
    """Give every such layer of a float32 network on a CPU oneDNN's operator, where PyTorch has it."""
    if not _is_there():
        return
    for module in network.modules():
        if type(module) is nn.Linear:
            module.forward = _Linear(module)  # type: ignore[method-assign, assignment]
        elif (
            type(module) is nn.Conv2d and isinstance(module.padding, tuple) and module.padding_mode == "zeros"
        ):
            module.forward = _Convolution(module, module.padding)  # type: ignore[method-assign, assignment]


def use_for_compiled(network: nn.Module) -> None:
    """The same for ``torch.compile``, which sees to convolutions itself and can't trace a packed tensor.

    It can trace an operator of ours that is given a number.
    """
    if not _is_there():
        return
    for module in network.modules():
        if type(module) is nn.Linear:
            handle = next(_handles)
            _layers[handle] = _Linear(module)
            weakref.finalize(module, _layers.pop, handle)
            packed_linear = partial(torch.ops.sega_bench.packed_linear, handle, module.out_features)
            module.forward = packed_linear  # type: ignore[method-assign]


def _is_there() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class _Linear:
    def __init__(self, module: nn.Linear) -> None:
        self._weight = _onednn._reorder_linear_weight(module.weight.detach(), None)
        self._bias = module.bias

    def __call__(self, x: Tensor) -> Tensor:
        return _onednn._linear_pointwise(x, self._weight, self._bias, "none", [], "")  # type: ignore[no-any-return]


class _Convolution:
    """Of channels_last, whatever order its input is in; the best order of its weights depends on the size."""

    def __init__(self, module: nn.Conv2d, padding: tuple[int, ...]) -> None:
        self._weight, self._bias = module.weight.detach(), module.bias
        self._how = padding, module.stride, module.dilation, module.groups
        self._recent: tuple[torch.Size, Tensor] | None = None

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        weight = self._packed_for(x_BCHW.shape)
        return _onednn._convolution_pointwise(x_BCHW, weight, self._bias, *self._how, "none", [], "")  # type: ignore[no-any-return]

    def _packed_for(self, shape: torch.Size) -> Tensor:
        recent = self._recent  # another thread may be at another size
        if recent is None or recent[0] != shape:
            dense = self._weight.contiguous().to_mkldnn()
            self._recent = recent = shape, _reorder_conv2d_weight(dense, *self._how, shape)
        return recent[1]


_layers: dict[int, _Linear] = {}
_handles = itertools.count()


def _packed_linear(handle: int, out_features: int, x: Tensor) -> Tensor:
    return _layers[handle](x)


def _packed_linear_shape(handle: int, out_features: int, x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


_library: Any = torch.library
_operators = _library.Library("sega_bench", "DEF")
_operators.define("packed_linear(int handle, int out_features, Tensor x) -> Tensor")
_operators.impl("packed_linear", _packed_linear, "CPU")
_library.register_fake("sega_bench::packed_linear", _packed_linear_shape, lib=_operators)

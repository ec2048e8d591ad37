"""Run linear layers and convolutions through oneDNN with weights packed once, on a CPU in float32.

PyTorch sends float32 matrix products to MKL, which uses AVX2 on AMD processors where oneDNN uses AVX-512. It
sends convolutions to oneDNN, but packs their weights again in every call. All arithmetic stays in float32.

oneDNN's operators are private to PyTorch. If a version lacks one, layers keep PyTorch's own path.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

# Looked up at every use, because PyTorch may lack them: importing this module must not fail.
_onednn: Any = torch.ops.mkldnn
_kernels: Any = torch._C._nn


def pack_layers(network: nn.Module) -> None:
    """Let all linear layers and convolutions of a float32 network on a CPU run through oneDNN."""
    if not _is_available():
        return
    for module in network.modules():
        if type(module) is nn.Linear:
            module.forward = _Linear(module)  # type: ignore[method-assign, assignment]
        elif (
            type(module) is nn.Conv2d and isinstance(module.padding, tuple) and module.padding_mode == "zeros"
        ):
            module.forward = _Convolution(module, module.padding)  # type: ignore[method-assign, assignment]


def pack_layers_to_compile(network: nn.Module) -> None:
    """Let all linear layers run through oneDNN, in a form that ``torch.compile`` can trace.

    It cannot trace a packed weight, so the operator of this module takes the number of a layer. Convolutions
    are left alone: ``torch.compile`` packs their weights itself.
    """
    if not _is_available():
        return
    for module in network.modules():
        if type(module) is nn.Linear:
            handle = next(_handles)
            _layers[handle] = _Linear(module)
            weakref.finalize(module, _layers.pop, handle)
            packed_linear = partial(torch.ops.sega_bench.packed_linear, handle, module.out_features)
            module.forward = packed_linear  # type: ignore[method-assign]


def _is_available() -> bool:
    """Whether PyTorch was built with oneDNN and has the private operators; a warning if only these lack."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    needed = {
        _onednn: ("_reorder_linear_weight", "_linear_pointwise", "_convolution_pointwise"),
        _kernels: ("mkldnn_reorder_conv2d_weight",),
    }
    missing = [name for home, names in needed.items() for name in names if not hasattr(home, name)]
    if missing:
        log.warning(
            "PyTorch %s has no %s: layers run without packed weights, which is slower",
            torch.__version__,
            ", ".join(missing),
        )
    return not missing


class _Linear:
    """A linear layer whose weight is packed once."""

    def __init__(self, module: nn.Linear) -> None:
        self._weight = _onednn._reorder_linear_weight(module.weight.detach(), None)
        self._bias = module.bias

    def __call__(self, x: Tensor) -> Tensor:
        return _onednn._linear_pointwise(x, self._weight, self._bias, "none", [], "")  # type: ignore[no-any-return]


class _Convolution:
    """A convolution in channels_last whose weight is packed once for each input shape.

    The input may have any memory format. oneDNN's best layout of the weight depends on the input's size.
    """

    def __init__(self, module: nn.Conv2d, padding: tuple[int, ...]) -> None:
        self._weight, self._bias = module.weight.detach(), module.bias
        self._geometry = padding, module.stride, module.dilation, module.groups
        self._recent: tuple[torch.Size, Tensor] | None = None

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        weight = self._packed_for(x_BCHW.shape)
        return _onednn._convolution_pointwise(  # type: ignore[no-any-return]
            x_BCHW, weight, self._bias, *self._geometry, "none", [], ""
        )

    def _packed_for(self, shape: torch.Size) -> Tensor:
        # Read once: another thread may replace it by the weight for another shape at any time.
        recent = self._recent
        if recent is None or recent[0] != shape:
            dense = self._weight.contiguous().to_mkldnn()
            packed = _kernels.mkldnn_reorder_conv2d_weight(dense, *self._geometry, shape)
            self._recent = recent = shape, packed
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

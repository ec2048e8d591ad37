"""Linear layers through oneDNN, on a CPU in float32.

PyTorch sends convolutions to oneDNN but float32 matrix products to MKL, which uses AVX2 on AMD's processors
where oneDNN uses AVX-512. Nothing is computed in less than float32, and weights are packed once instead of in
every call. One operator of our own stands for the packed product, so that ``torch.compile`` can take it into
its graph.
"""

from __future__ import annotations

import itertools
import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_onednn: Any = torch.ops.mkldnn
_packed: dict[int, tuple[Tensor, Tensor | None]] = {}
"""Packed weights and biases by handle: the compiler cannot trace a packed tensor, but it can a number."""
_handles = itertools.count()


def use_for(network: nn.Module) -> None:
    """Give every linear layer of a float32 network on a CPU oneDNN's product, where PyTorch has it."""
    if not hasattr(_onednn, "_linear_pointwise"):
        return
    for module in network.modules():
        if type(module) is nn.Linear:
            handle = next(_handles)
            weight = _onednn._reorder_linear_weight(module.weight.detach(), None)
            _packed[handle] = weight, module.bias
            weakref.finalize(module, _packed.pop, handle)
            packed_linear = partial(torch.ops.sega_bench.packed_linear, handle, module.out_features)
            module.forward = packed_linear  # type: ignore[method-assign]


def _packed_linear(handle: int, out_features: int, x: Tensor) -> Tensor:
    weight, bias = _packed[handle]
    return _onednn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def _packed_linear_shape(handle: int, out_features: int, x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


_library: Any = torch.library
_operators = _library.Library("sega_bench", "DEF")
_operators.define("packed_linear(int handle, int out_features, Tensor x) -> Tensor")
_operators.impl("packed_linear", _packed_linear, "CPU")
_library.register_fake("sega_bench::packed_linear", _packed_linear_shape, lib=_operators)

"""Count the peak memory of a network's tensors, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors created inside the block that are alive, and their peak.

    The scratch memory that a kernel allocates and frees itself is not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak: int = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count the storages of its results."""
        result = func(*args, **(kwargs or {}))
        inputs = {_storage(tensor)._cdata for tensor in tree_leaves((args, kwargs)) if _is_tensor(tensor)}
        for tensor in filter(_is_tensor, tree_leaves(result)):
            storage = _storage(tensor)
            # Views and in-place results share a storage that is counted already, or that came from outside.
            if storage._cdata not in inputs and storage._cdata not in self._live:
                self._live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._live.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self._live.values()))
        return result


def _is_tensor(value: object) -> bool:
    """Whether the value has a storage to count; oneDNN's packed weights have none."""
    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def _storage(tensor: torch.Tensor) -> Any:
    return tensor.untyped_storage()


def peak_bytes(function: Callable[[], object]) -> int:
    """Peak bytes of the tensors that a function creates."""
    counter = PeakBytes()
    with torch.inference_mode(), counter:
        function()
    return counter.peak

"""A network as the flat list of tensor operations that it comes to.

Between two operations a module spends its time in Python: it looks up attributes, inspects signatures, asks
for hooks. That is a tenth of a small network's time, and while one thread is in Python no other is, so that
threads with batches of their own wait for each other. What runs at the first batch of a shape is therefore
written down, operator by operator, and at all others those are called in that order, with the same kernels:
the result is what the network itself returns, bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

SHAPES = 3
"""Records that are kept: each has weights packed for its shape, and so many waves are under way at once."""


class Recorded:
    """Called as the network is, by any number of threads, for inference.

    Args:
        network: has no state that a call changes, draws no random numbers, and returns tensors in any nest of
            lists, tuples and dictionaries.
    """

    def __init__(self, network: Callable[..., Any]) -> None:
        self._network = network
        self._at_work = Lock()
        self._replays: dict[tuple[object, ...], Callable[..., Any]] = {}

    def __call__(self, *args: Any, **named: Any) -> Any:
        """What the network returns."""
        leaves, nest = tree_flatten((args, named))
        key = nest, *((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        if (replay := self._replays.get(key)) is None:
            with self._at_work:  # others would write down the same, and pack weights of their own for it
                if (replay := self._replays.get(key)) is None:
                    output, self._replays[key] = record(self._network, args, named)
                    for oldest in list(self._replays)[:-SHAPES]:
                        del self._replays[oldest]
                    return output
        return replay(*leaves)


def record(
    network: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any]
) -> tuple[Any, Callable[..., Any]]:
    """What a network returns, and a function that makes it of other tensors of the same shapes and types.

    The function takes the leaves of the arguments. It is the network itself where that reads a value of a
    tensor, for with other values it may do something else, or changes a tensor of its own.
    """
    leaves, nest = tree_flatten((args, named))
    # Aliases, so that a tensor that was given twice does not count as one.
    leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def call(*leaves: Any) -> Any:
        args, named = tree_unflatten(leaves, nest)
        return network(*args, **named)

    recorder = _Recorder(leaves)
    with recorder:
        output = call(*leaves)
    return output, recorder.function(output) if recorder.is_fixed else call


class _Line(NamedTuple):
    """An assignment, and the names of the tensors on both sides of it."""

    text: str
    names: frozenset[str]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes a Python function of what its thread computes.

    A tensor has a name once it was given, or returned by what was given one. Any other, such as a weight or
    what is computed of nothing but weights, is the same at every call.

    Args:
        leaves: what the function is given.
    """

    def __init__(self, leaves: Sequence[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_fixed = True
        self._names: Any = WeakTensorKeyDictionary()  # results die as early as without a recorder
        self._numbers = itertools.count()
        self._objects: dict[str, Any] = {}
        self._lines: list[_Line] = []
        self._parameters = [self._target(leaf) for leaf in leaves]

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if self._is_constant(operator, args, named):
            return operator(*args, **named)
        given = [self._source(arg) for arg in args]
        given += [f"{name}={self._source(value)}" for name, value in named.items()]
        output = operator(*args, **named)
        self.is_fixed &= torch.Tag.dynamic_output_shape not in operator.tags and _is_of_tensors(output)
        text = f"{self._target(output)} = {self._source(operator)}({', '.join(given)})"
        self._lines.append(_Line(text, self._names_in((args, named, output))))
        return output

    def _is_constant(self, operator: Any, args: Sequence[Any], named: Mapping[str, Any]) -> bool:
        """Whether it returns the same at every call, for it is given nothing else."""
        tensors = [leaf for leaf in tree_flatten((args, named))[0] if isinstance(leaf, Tensor)]
        are_same = [tensor not in self._names for tensor in tensors]
        self.is_fixed &= not (operator._schema.is_mutable and any(are_same))
        return bool(tensors) and all(are_same)

    def function(self, output: Any) -> Callable[..., Any]:
        """What makes this output of other leaves."""
        leaves, nest = tree_flatten(output)
        made = ", ".join(map(self._source, leaves))
        self._objects |= {"tree_unflatten": tree_unflatten, "nest": nest}
        lines = [
            f"def replay({', '.join(self._parameters)}):",
            *self._body(self._names_in(leaves)),
            f"return tree_unflatten([{made}], nest)",
        ]
        exec("\n    ".join(lines), self._objects)
        return self._objects["replay"]  # type: ignore[no-any-return]

    def _body(self, returned: frozenset[str]) -> Iterator[str]:
        """The lines; a tensor is let go of after its last one."""
        last = {name: line for line in self._lines for name in line.names - returned}
        for line in self._lines:
            yield line.text
            if over := sorted(name for name in line.names if last.get(name) is line):
                yield f"{' = '.join(over)} = None"

    def _names_in(self, values: Any) -> frozenset[str]:
        tensors = (leaf for leaf in tree_flatten(values)[0] if isinstance(leaf, Tensor))
        return frozenset(self._names[tensor] for tensor in tensors if tensor in self._names)

    def _target(self, value: Any) -> str:
        """What stands left of the sign of equality."""
        if isinstance(value, Tensor):
            return str(self._names.setdefault(value, self._new("tensor")))
        if isinstance(value, list | tuple) and value:
            return f"[{', '.join(map(self._target, value))}]"
        return self._new("unused")

    def _source(self, value: Any) -> str:
        """What stands for a value on the right."""
        if isinstance(value, Tensor) and value in self._names:
            return str(self._names[value])
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(self._source, value))}]"
        if value is None or isinstance(value, bool | int):
            return repr(value)
        name = self._new("object")
        self._objects[name] = value
        return name

    def _new(self, kind: str) -> str:
        return f"{kind}_{next(self._numbers)}"


def _is_of_tensors(output: Any) -> bool:
    """A number or a truth, which the network may act on, is none."""
    return all(leaf is None or isinstance(leaf, Tensor) for leaf in tree_flatten(output)[0])

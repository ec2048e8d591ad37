"""Record the tensor operators that a network calls, and replay them without its Python code.

Between two operators a module spends time in Python: attribute look-ups, signatures, hooks. That is a tenth
of a small network's time, and the interpreter lock blocks the threads that evaluate other batches meanwhile.
The first batch of a shape is therefore recorded, operator by operator. Later batches of that shape call the
same operators in the same order, so their output is bit-identical to the network's own.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

SHAPES = 3
"""Records kept per network: as many shapes as waves in flight can have. Each holds weights packed for it."""

log = logging.getLogger(__name__)

Replay = Callable[..., Any]
"""Takes the flattened arguments of a network and returns its output."""


class Recorded:
    """A network that is recorded at its first batch of a shape, and replayed afterwards.

    Any number of threads may call it, for inference. A network that cannot be recorded is called itself.

    Args:
        network: must draw no random numbers. It returns tensors in any nesting of lists, tuples and dicts.
    """

    def __init__(self, network: Callable[..., Any]) -> None:
        self._network = network
        self._is_recordable = True
        self._recording = Lock()
        self._replays: dict[tuple[object, ...], Replay] = {}

    def __call__(self, *args: Any, **named: Any) -> Any:
        """The network's output."""
        if not self._is_recordable:
            return self._network(*args, **named)
        leaves, nesting = tree_flatten((args, named))
        key = nesting, *((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        # Without the lock, because one dict operation is atomic: replays must not wait for a recording.
        if (replay := self._replays.get(key)) is None:
            with self._recording:  # threads that wait here would record the same, and pack its weights again
                if (replay := self._replays.get(key)) is None:
                    return self._record(key, args, named)
        return replay(*leaves)

    def _record(self, key: tuple[object, ...], args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        output, replay = record(self._network, args, named)
        if replay is None:
            self._is_recordable = False
            return output
        self._replays[key] = replay
        for oldest in list(self._replays)[:-SHAPES]:
            del self._replays[oldest]
        return output


def record(
    network: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any]
) -> tuple[Any, Replay | None]:
    """Call a network and record it.

    Returns:
        Its output, and a function that computes the output for other tensors of the same shapes and types.
        None and a line in the log if there can be no such function: the network reads a tensor's value, on
        which it may branch, or changes a tensor of its own, or fails only while it is recorded.
    """
    leaves, nesting = tree_flatten((args, named))
    # Aliases give every argument an identity of its own, even if the caller passes one tensor twice.
    recorder = _Recorder([leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves])
    recorded_args, recorded_named = tree_unflatten(recorder.leaves, nesting)
    try:
        with recorder:
            output = network(*recorded_args, **recorded_named)
    except torch.OutOfMemoryError:
        raise  # a second call would need the same memory: the caller retries with a smaller batch
    except Exception as error:
        obstacle = f"{type(error).__name__}: {error}"
    else:
        try:
            return output, recorder.replay(output)
        except Exception as error:
            log.warning("the network cannot be recorded and runs slower without (%s)", error)
            return output, None
    output = network(*args, **named)  # raises again if the network is at fault, not its recording
    log.warning("the network cannot be recorded and runs slower without (%s)", obstacle)
    return output, None


class _Line(NamedTuple):
    """An assignment, and the names of the tensors on both sides of it."""

    text: str
    names: frozenset[str]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes every operator that its own thread calls as a line of a Python function.

    The source is compiled with ``exec`` rather than by ``torch.fx``: a ``GraphModule`` looks up operators and
    weights as attributes at every call, which made batches of 1 and 2 of the embedded model 7 % slower and of
    16 more than 1 %. ``make_fx`` is as slow, and patches ``nn.Module`` for all threads while it traces.

    A tensor has a name if it is an argument or was computed from one. Any other, such as a weight or what is
    computed from weights alone, is a constant of the function.

    Args:
        leaves: the flattened arguments.
    """

    def __init__(self, leaves: Sequence[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.leaves = leaves
        self._obstacle: str | None = None
        # Weak, so that recording takes no more memory than the network: activations die as early as without.
        self._names: Any = WeakTensorKeyDictionary()
        self._numbers = itertools.count()
        self._globals: dict[str, Any] = {}
        self._lines: list[_Line] = []
        self._parameters = [self._target(leaf) for leaf in leaves]

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        output = operator(*args, **named)
        tensors = [leaf for leaf in tree_leaves((args, named)) if isinstance(leaf, Tensor)]
        is_constant = [tensor not in self._names for tensor in tensors]
        if operator._schema.is_mutable and any(is_constant):
            self._obstacle = f"{operator} changes a tensor of the network"
        # An operator without tensors is recorded, because its result may be changed in place later.
        if tensors and all(is_constant):
            return output
        if torch.Tag.dynamic_output_shape in operator.tags or not _is_of_tensors(output):
            self._obstacle = f"{operator} reads a tensor's values"
        sources = [self._source(arg) for arg in args]
        sources += [f"{name}={self._source(value)}" for name, value in named.items()]
        text = f"{self._target(output)} = {self._source(operator)}({', '.join(sources)})"
        self._lines.append(_Line(text, self._names_in((args, named, output))))
        return output

    def replay(self, output: Any) -> Replay:
        """Compile the lines to a function that computes this output for other leaves.

        Raises:
            ValueError: another call of the network may take other operators than those recorded.
        """
        if self._obstacle is not None:
            raise ValueError(self._obstacle)
        leaves, nesting = tree_flatten(output)
        returned = ", ".join(map(self._source, leaves))
        self._globals |= {"tree_unflatten": tree_unflatten, "nesting": nesting}
        lines = [
            f"def replay({', '.join(self._parameters)}):",
            *self._body(self._names_in(leaves)),
            f"return tree_unflatten([{returned}], nesting)",
        ]
        exec("\n    ".join(lines), self._globals)
        return self._globals["replay"]  # type: ignore[no-any-return]

    def _body(self, returned: frozenset[str]) -> Iterator[str]:
        """The lines. A tensor is released after its last one, as in the network, so the peak is the same."""
        last = {name: line for line in self._lines for name in line.names - returned}
        for line in self._lines:
            yield line.text
            if released := sorted(name for name in line.names if last.get(name) is line):
                yield f"{' = '.join(released)} = None"

    def _names_in(self, values: Any) -> frozenset[str]:
        tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
        return frozenset(self._names[tensor] for tensor in tensors if tensor in self._names)

    def _target(self, value: Any) -> str:
        """The left side of an assignment; an operator in place returns a tensor that has a name already."""
        if isinstance(value, Tensor):
            return str(self._names.setdefault(value, self._new("tensor")))
        if isinstance(value, list | tuple) and value:
            return f"[{', '.join(map(self._target, value))}]"
        return self._new("unused")

    def _source(self, value: Any) -> str:
        """The expression for a value; constants and whatever has no exact literal become globals."""
        if isinstance(value, Tensor) and value in self._names:
            return str(self._names[value])
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(self._source, value))}]"
        if value is None or isinstance(value, bool | int):
            return repr(value)
        name = self._new("constant")
        self._globals[name] = value
        return name

    def _new(self, kind: str) -> str:
        return f"{kind}_{next(self._numbers)}"


def _is_of_tensors(output: Any) -> bool:
    """Whether it holds tensors only: the network may branch on a number or a truth value."""
    return all(leaf is None or isinstance(leaf, Tensor) for leaf in tree_leaves(output))

"""Collectives by the Flight Recorder's names: in words, and what must be the same on all ranks.

Pure. For `--check`, `checks` says the same of the dispatcher's names and of all their arguments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ddp_magic.wire.collectives import Operation

# Operations whose inputs, or whose outputs, have the same size and type on all ranks.
_SAME_INPUTS = frozenset(
    [
        "all_reduce", "allreduce_coalesced", "reduce", "broadcast", "all_gather", "gather",
        "all_gather_into_tensor", "reduce_scatter", "reduce_scatter_tensor",
    ]
)  # fmt: skip
_SAME_OUTPUTS = frozenset(["scatter"])
_EXCHANGE = "all_to_all"  # each rank receives parts of other sizes, from each what that sends to it
_MAX_TENSORS = 3
_DTYPES = {
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "Bool": "bool",
}  # fmt: skip


def short(operation: Operation) -> str:
    """Return `all_reduce #20`."""
    return f"{operation.name} #{operation.number}"


def describe(operation: Operation) -> str:
    """Return an operation with what goes in: `all_reduce of float32 [3, 2]`.

    What comes out is named too where only that may be wrong: `scatter into [2]`.
    """
    dtypes = [_DTYPES.get(dtype, dtype) for dtype in operation.dtypes]
    words = operation.name + of_tensors(dtypes, operation.inputs)
    if operation.name in _SAME_OUTPUTS or operation.name == _EXCHANGE:
        words += "".join(f" into {list(shape)}" for shape in operation.outputs[:_MAX_TENSORS])
    return words


def of_tensors(dtypes: Iterable[str], shapes: Iterable[tuple[int, ...]]) -> str:
    """Return ` of float32 [3, 2], int64 [4]`, for the name of a collective; empty for none."""
    tensors = [f"{dtype} {list(shape)}" for dtype, shape in zip(dtypes, shapes, strict=False)]
    more = ", ..." if len(tensors) > _MAX_TENSORS else ""
    return f" of {', '.join(tensors[:_MAX_TENSORS])}{more}" if tensors else ""


def differ(operations: Iterable[Operation], *, of_all: bool) -> bool:
    """Return whether what ranks called as one collective is not the same.

    A tensor may be flat, or have dimensions of size 1, on some ranks only: elements are counted.

    Args:
        operations: What ranks of a group called.
        of_all: Whether these are all its ranks.
    """
    called = list(operations)
    operations = [operation for operation in called if operation.is_recorded]
    if len({operation.name for operation in called}) > 1:
        return True
    if len({_signature(operation) for operation in operations}) > 1:
        return True
    of_all = of_all and len(operations) == len(called)
    if of_all and all(o.name == _EXCHANGE and o.inputs and o.outputs for o in operations):
        sent = sum(math.prod(shape) for o in operations for shape in o.inputs)
        return sent != sum(math.prod(shape) for o in operations for shape in o.outputs)
    tensors = zip(*map(_same_tensors, operations), strict=True)
    return any(len({s for s in map(_squeezed, t) if len(s) > 1}) > 1 for t in tensors)


def rule(name: str) -> str:
    """Return what must be the same on all ranks, for the end of a sentence on a collective."""
    order = "ranks must call the same collectives in the same order"
    if name == _EXCHANGE:
        return f"{order}, and each must receive as many elements as the others send to it"
    return f"{order}, with the same shapes and dtypes"


def _signature(operation: Operation) -> tuple[object, ...]:
    """Return what must be the same on all ranks."""
    sizes = tuple(map(math.prod, _same_tensors(operation)))
    same_dtypes = operation.name in _SAME_INPUTS or operation.name == _EXCHANGE
    dtypes = operation.dtypes if same_dtypes else ()
    return operation.name, dtypes, sizes


def _same_tensors(operation: Operation) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the tensors that must be the same on all ranks."""
    if operation.name in _SAME_INPUTS:
        return operation.inputs
    return operation.outputs if operation.name in _SAME_OUTPUTS else ()


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)

"""Collectives in words, and what must be the same of one on all ranks. Pure."""

from __future__ import annotations

import math

from ddp_magic.wire.collectives import Operation

# Operations whose inputs, or whose outputs, have the same size and type on all ranks.
_SAME_INPUTS = frozenset(
    [
        "all_reduce", "allreduce_coalesced", "reduce", "broadcast", "all_gather", "gather",
        "all_gather_into_tensor", "reduce_scatter", "reduce_scatter_tensor",
    ]
)  # fmt: skip
_SAME_OUTPUTS = frozenset(["scatter"])
_DTYPES = {
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "Bool": "bool",
}  # fmt: skip


def short(operation: Operation) -> str:
    """Return `all_reduce #20`."""
    return f"{operation.name} #{operation.number}"


def describe(operation: Operation) -> str:
    """Return an operation with what goes in: `all_reduce of float32 [3, 2]`."""
    tensors = [
        f"{_DTYPES.get(dtype, dtype)} {list(shape)}"
        for dtype, shape in zip(operation.dtypes, operation.inputs, strict=False)
    ]
    shown = ", ".join(tensors[:3]) + (", ..." if len(tensors) > 3 else "")
    return f"{operation.name} of {shown}" if shown else operation.name


def signature(operation: Operation) -> tuple[object, ...]:
    """Return what must be the same on all ranks."""
    if operation.name in _SAME_INPUTS:
        return (operation.name, operation.dtypes, tuple(map(math.prod, operation.inputs)))
    if operation.name in _SAME_OUTPUTS:
        return (operation.name, tuple(map(math.prod, operation.outputs)))
    return (operation.name,)

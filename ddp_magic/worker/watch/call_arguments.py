"""The arguments of the collectives of torch's dispatcher, `c10d::allreduce_` and so on.

The names are known to work in torch 2.6 and 2.13; tests/unit/worker/watch/test_checked_calls.py
fails where one changes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import FrameType
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

# By torch's name of the operator: what a user calls it, and its arguments that go in and come out.
OPERATORS = {
    "allreduce_": ("all_reduce", "tensors", ""),
    "allreduce_coalesced_": ("all_reduce_coalesced", "tensors", ""),
    "broadcast_": ("broadcast", "tensors", ""),
    "reduce_": ("reduce", "tensors", ""),
    "allgather_": ("all_gather", "input_tensors", "output_tensors"),
    "_allgather_base_": ("all_gather_into_tensor", "input_tensor", "output_tensor"),
    "allgather_coalesced_": ("all_gather_coalesced", "input_list", ""),
    "allgather_into_tensor_coalesced_": ("all_gather_into_tensor_coalesced", "inputs", ""),
    "reduce_scatter_": ("reduce_scatter", "input_tensors", "output_tensors"),
    "_reduce_scatter_base_": ("reduce_scatter_tensor", "input_tensor", "output_tensor"),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter_tensor_coalesced", "inputs", ""),
    "gather_": ("gather", "input_tensors", "output_tensors"),
    "scatter_": ("scatter", "input_tensors", "output_tensors"),
    "alltoall_": ("all_to_all", "input_tensors", "output_tensors"),
    "alltoall_base_": ("all_to_all_single", "input", "output"),
    "barrier": ("barrier", "", ""),
    "monitored_barrier_": ("monitored_barrier", "", ""),
}
# Sends and receives concern two ranks, and are not collectives.
POINT_TO_POINT = frozenset(["send", "recv_", "recv_any_source_"])
_NO_PEER = -1
_REDUCTIONS = {kind.value: name for name, kind in dist.ReduceOp.RedOpType.__members__.items()}
_SPLITS = ("input_split_sizes", "output_split_sizes")  # of all_to_all_single
_C10D = os.path.join("torch", "distributed", "distributed_c10d.py")  # noqa: PTH118 -- a suffix

Arguments: TypeAlias = Mapping[str, Any]


def tensors(value: Any) -> list[torch.Tensor]:  # noqa: ANN401 -- a tensor, or lists of lists of them
    """Return the tensors of an argument in one list."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value or () for tensor in tensors(part)]


def device_type(arguments: Arguments) -> str:
    """Return the type of the device of the first tensor."""
    for value in arguments.values():
        if isinstance(value, (list, torch.Tensor)):
            for tensor in tensors(value if isinstance(value, torch.Tensor) else value[:1]):
                return tensor.device.type
    return "cpu"


def reduction(arguments: Arguments, caller: FrameType | None) -> str:
    """Return the name of the reduction; empty if there is none, or torch does not tell.

    Args:
        arguments: The arguments.
        caller: The Python frame that has called the operator, or C++ code that has.
    """
    found = arguments.get("reduce_op")
    if found is None:
        return ""
    is_torch = caller is not None and caller.f_code.co_filename.endswith(_C10D)
    if caller is not None and is_torch and "op" in caller.f_locals:
        # As Python has called it: torch 2.6 does not tell, and later it takes 20 us to ask.
        kind = caller.f_locals["op"]
        return str(getattr(kind, "op", kind)).rpartition(".")[2]
    return _REDUCTIONS.get(found.op(), "") if hasattr(found, "op") else ""


def splits(arguments: Arguments) -> tuple[tuple[int, ...], ...]:
    """Return how `all_to_all_single` splits its input and its output."""
    return tuple(tuple(arguments[name]) for name in _SPLITS if name in arguments)


def exchange(
    name: str,
    here: int,
    size: int,
    root: int | None,
    given: list[torch.Tensor],
    taken: list[torch.Tensor],
    parts: tuple[tuple[int, ...], ...],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return how many elements go to each rank of the group, and how many are expected from each.

    Args:
        name: The collective.
        here: This rank, in the group.
        size: Number of ranks of the group.
        root: The source or the destination, by its rank in the group.
        given: The inputs.
        taken: The outputs.
        parts: From `splits`.
    """
    to_all, from_all = (tuple(t.numel() for t in tensors) for tensors in (given, taken))
    match name:
        case "all_gather" if len(to_all) == 1:
            return to_all * size, from_all
        case "gather" if root is not None and len(to_all) == 1:
            sends = tuple(to_all[0] if r == root else _NO_PEER for r in range(size))
            return sends, from_all if here == root else ()
        case "scatter" if root is not None and len(from_all) == 1:
            receives = tuple(from_all[0] if r == root else _NO_PEER for r in range(size))
            return to_all if here == root else (), receives
        case "all_to_all":
            return to_all, from_all
        case "all_to_all_single":
            return _split(given[0], parts[0], size), _split(taken[0], parts[1], size)
    return (), ()


def _split(tensor: torch.Tensor, sizes: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Return the number of elements of each part of a tensor that is split along its first axis."""
    rows = tensor.shape[0] if tensor.dim() else 1
    row = tensor.numel() // rows if rows else 0
    return tuple(n * row for n in sizes) or (tensor.numel() // size,) * size

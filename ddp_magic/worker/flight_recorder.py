"""What torch's Flight Recorder knows of this rank's collectives: the one adapter to it.

torch records every collective that a process group is asked for, with gloo since 2.9 and with NCCL
since 2.5, also those that C++ calls, as DDP's. The records can be read from another thread while
the main thread waits in one of them, and while it runs. An older torch, or one built without it,
has no records: `groups` returns none, and what a rank waits for is told from its stack.

Facts that this file relies on, measured on torch 2.11 (NCCL) and 2.13 (gloo): gloo's `state` stays
`scheduled`, so `retired` tells what has completed; NCCL's watchdog sets `retired` within 0.1 s. A
record of 64 operations costs under 2 ms, the numbers alone 0.1 ms.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from torch._C import _distributed_c10d as c10d
from torch.distributed import distributed_c10d

from ddp_magic.wire.collectives import GroupRecord, Operation

# In torch's names of an operation, those that are not what a user calls.
_NAMES = {
    "_all_gather_base": "all_gather_into_tensor",
    "_allgather_base": "all_gather_into_tensor",
    "_reduce_scatter_base": "reduce_scatter_tensor",
    "all_to_all_base": "all_to_all_single",
    "alltoall_base": "all_to_all_single",
}


# The last collective enqueued and completed, by `GroupRecord.key`.
Numbers: TypeAlias = Mapping[str, tuple[int, int]]
_NONE: Numbers = MappingProxyType({})


def numbers() -> Numbers:
    """Return the numbers of the last collective enqueued and completed, by `GroupRecord.key`."""
    return {
        f"{backend}:{name}": _status(status)
        for backend, read in _readers()
        for name, status in _read(read, operations=False).get("pg_status", {}).items()
    }


def groups(before: Numbers = _NONE, *, operations: bool = True) -> tuple[GroupRecord, ...]:
    """Return the records of this rank's process groups.

    Args:
        before: The numbers before the cell: what was called earlier is left out. A group that was
            aborted keeps collectives that never complete.
        operations: Whether to return operations at all; the numbers alone cost next to nothing.
    """
    found = []
    members = _members()
    for backend, read in _readers():
        record = _read(read, operations=operations)
        called: dict[str, list[Operation]] = {}
        titles: dict[str, str] = {}
        for entry in record.get("entries", []):
            name, title = map(str, entry["process_group"])
            titles[name] = title
            if int(entry["collective_seq_id"]) > _last(before, backend, name):
                called.setdefault(name, []).append(_operation(entry))
        for name, status in record.get("pg_status", {}).items():
            enqueued, completed = _status(status)
            found.append(
                GroupRecord(
                    name=name,
                    backend=backend,
                    title=titles.get(name, ""),
                    ranks=members.get(name, ()),
                    enqueued=enqueued,
                    completed=completed,
                    before=_last(before, backend, name),
                    operations=tuple(called.get(name, ())),
                )
            )
    return tuple(found)


def _last(numbers: Numbers, backend: str, name: str) -> int:
    return numbers.get(f"{backend}:{name}", (0, 0))[0]


def _readers() -> list[tuple[str, Callable[[bool, bool], bytes | str]]]:
    """Return (backend, function of torch) for each recorder that this torch has."""
    names = {"gloo": "_dump_fr_trace_json", "nccl": "_dump_nccl_trace_json"}
    return [(key, getattr(c10d, name)) for key, name in names.items() if hasattr(c10d, name)]


def _read(read: Callable[[bool, bool], bytes | str], *, operations: bool) -> dict[str, Any]:
    try:
        record = json.loads(read(operations, False))
    except (RuntimeError, ValueError, TypeError):  # torch's own; no JSON; other arguments
        return {}
    return record if isinstance(record, dict) else {}


def _status(status: Mapping[str, Any]) -> tuple[int, int]:
    """Return the numbers of the last collective enqueued and completed; torch's -1 becomes 0."""
    names = ("last_enqueued_collective", "last_completed_collective")
    enqueued, completed = (max(0, int(status[name])) for name in names)
    return enqueued, completed


def _operation(entry: Mapping[str, Any]) -> Operation:
    """Read one operation of a record."""
    point_to_point = bool(entry["is_p2p"])
    name = str(entry["profiling_name"]).partition(":")[2]
    return Operation(
        number=int(entry["p2p_seq_id" if point_to_point else "collective_seq_id"]),
        name=_NAMES.get(name, name),
        created=int(entry["time_created_ns"]) / 1e9,
        done=bool(entry["retired"]) or entry["state"] == "completed",
        inputs=_sizes(entry["input_sizes"]),
        outputs=_sizes(entry["output_sizes"]),
        dtypes=tuple(map(str, entry["input_dtypes"])),
        point_to_point=point_to_point,
    )


def _sizes(sizes: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(max(0, int(n)) for n in size) for size in sizes)


def _members() -> dict[str, tuple[int, ...]]:
    """Return the members of each process group, by the group's name."""
    try:
        ranks: dict[Any, Any] = dict(distributed_c10d._world.pg_group_ranks)
    except RuntimeError:  # the main thread creates a group at this moment
        return {}
    # A group that the rank is no member of is a number.
    return {
        str(group.group_name): tuple(sorted(members))
        for group, members in ranks.items()
        if isinstance(group, distributed_c10d.ProcessGroup)
    }

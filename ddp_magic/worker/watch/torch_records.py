"""torch's Flight Recorder and its table of groups, as they are read: all private names.

A thread may read a record while the main thread waits in a collective, but not while torch adds a
group to it: `count_groups` and `MainThreadState.may_call_torch` tell when.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from json import loads as from_json  # bound here: a cell may replace the module's
from pickle import UnpicklingError
from pickle import loads as from_pickle
from sys import _current_frames
from time import monotonic
from typing import Any

from torch._C import _distributed_c10d as c10d
from torch.distributed import distributed_c10d

from ddp_magic.wire.collectives import Operation

# In torch's names of an operation, those that are not what a user calls.
_NAMES = {
    "_all_gather_base": "all_gather_into_tensor",
    "_allgather_base": "all_gather_into_tensor",
    "_reduce_scatter_base": "reduce_scatter_tensor",
    "all_to_all_base": "all_to_all_single",
    "alltoall_base": "all_to_all_single",
}


# torch's function, what reads its answer (torch wrote the pickle in this process), and its
# arguments after `includeCollectives`: no stacks, not only what is active.
RECORDERS: dict[str, tuple[str, Callable[[Any], Any], tuple[bool, ...]]] = {
    "gloo": ("_dump_fr_trace", from_pickle, (False, False)),
    "nccl": ("_dump_nccl_trace_json", from_json, (False,)),
}
STILL_S = 0.01  # a call that has lasted so long has recorded its collective
_CALLERS = (
    "/torch/",
    "/ddp_magic/worker/watch/checked_calls.py",
)  # files of what calls collectives


# The recorders of this process share torch's record.
_known: weakref.WeakSet[Any] = weakref.WeakSet()
# Of all groups of this process, also those that are gone, which stay in the record: their name,
# torch's description, and their backends.
_created: list[tuple[str, str, str]] = []
_counting = threading.Lock()


def note_groups(groups: Iterable[Any]) -> int:
    """Count process groups that are new, and return how many there have been so far.

    One that is destroyed soon is never seen by a thread that looks now and then.

    Args:
        groups: Groups of torch's, or what it returns in a rank that is not a member of one.
    """
    with _counting:
        for group in groups:
            if isinstance(group, distributed_c10d.ProcessGroup) and group not in _known:
                _known.add(group)
                backends = str(distributed_c10d._world.pg_map.get(group, ("",))[0])
                _created.append((str(group.group_name), str(group.group_desc), backends))
        return len(_created)


def names_by_number(backend: str) -> dict[str, tuple[str, str]]:
    """Return name and description of each group by the number that torch should have given it.

    Each backend numbers its groups in the order of their creation. Not known are those that were
    created before anyone noted them.
    """
    of_backend = [(name, title) for name, title, backends in _created if backend in backends]
    return {str(number): names for number, names in enumerate(of_backend)}


def count_groups() -> int:
    """Return how many process groups were created so far."""
    try:
        return note_groups(list(distributed_c10d._world.pg_map))
    except RuntimeError:  # the main thread creates one at this moment
        return len(_created) + 1


class MainThreadState:
    """Where the main thread is, as another thread sees it."""

    def __init__(self) -> None:
        self._place: tuple[int, int] | None = None
        self._since = 0.0

    def may_call_torch(self) -> bool:
        """Return whether it may have just called a function of torch's."""
        main = threading.main_thread()
        frame = _current_frames().get(main.ident or 0)
        if frame is None or threading.current_thread() is main:
            return False
        place = id(frame), frame.f_lasti
        if place != self._place:
            self._place, self._since = place, monotonic()
        still = monotonic() - self._since > STILL_S
        return not still and any(name in frame.f_code.co_filename for name in _CALLERS)


def record_of(backend: str, *, operations: bool) -> dict[str, Any]:
    """Return what a recorder says; empty if this torch does not have it, or it cannot be read."""
    name, parse, more = RECORDERS[backend]
    try:
        record = parse(getattr(c10d, name)(operations, *more))
    # No such recorder; torch's own; other arguments; not JSON; not a pickle.
    except (AttributeError, RuntimeError, TypeError, ValueError, UnpicklingError, EOFError):
        return {}
    return record if isinstance(record, dict) else {}


def numbers_in(status: Mapping[str, Any]) -> tuple[int, int]:
    """Return the numbers of the last collective enqueued and completed; torch's -1 becomes 0."""
    names = ("last_enqueued_collective", "last_completed_collective")
    enqueued, completed = (max(0, int(status[name])) for name in names)
    return enqueued, completed


def operation_of(entry: Mapping[str, Any]) -> Operation:
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


def members() -> dict[str, tuple[int, ...]]:
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

"""What torch's Flight Recorder knows of this rank's collectives: the one adapter to it.

torch records every collective that a process group is asked for, with gloo since 2.9 and with NCCL
since 2.5, also those that C++ calls, as DDP's. The records can be read from another thread while
the main thread waits in one of them, and while it runs. An older torch, or one built without it,
has no records: `groups` returns none, and what a rank waits for is told from its stack.

Facts that this file relies on, measured on torch 2.11 (NCCL) and 2.13 (gloo): gloo's `state` stays
`scheduled`, so `retired` tells what has completed; NCCL's watchdog sets `retired` within 0.1 s. A
record of 64 operations costs 0.5 ms as a pickle and 1 ms as JSON, the numbers alone 0.02 ms. With
stacks it would cost seconds.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from json import loads as from_json  # bound here: a cell may replace the module's
from math import prod
from pickle import UnpicklingError
from pickle import loads as from_pickle
from sys import _current_frames
from time import monotonic
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from torch._C import _distributed_c10d as c10d
from torch.distributed import distributed_c10d

from ddp_magic.wire.collectives import GroupRecord, Membership, Operation

# In torch's names of an operation, those that are not what a user calls.
_NAMES = {
    "_all_gather_base": "all_gather_into_tensor",
    "_allgather_base": "all_gather_into_tensor",
    "_reduce_scatter_base": "reduce_scatter_tensor",
    "all_to_all_base": "all_to_all_single",
    "alltoall_base": "all_to_all_single",
}


# The last collective enqueued and completed, by backend and torch's number of the group. Each rank
# numbers its groups for itself: only a group's name is the same on all its ranks.
Numbers: TypeAlias = Mapping[tuple[str, str], tuple[int, int]]
_Records: TypeAlias = Mapping[str, Mapping[str, Any]]  # what each recorder says, by backend

# torch's function, what reads its answer (torch wrote the pickle in this process), and its
# arguments after `includeCollectives`: no stacks, not only what is active.
_RECORDERS: dict[str, tuple[str, Callable[[Any], Any], tuple[bool, ...]]] = {
    "gloo": ("_dump_fr_trace", from_pickle, (False, False)),
    "nccl": ("_dump_nccl_trace_json", from_json, (False,)),
}


STILL_S = 0.01  # a call that has lasted so long has recorded its collective
_CALLERS = (
    "/torch/",
    "/ddp_magic/worker/watch/checked_calls.py",
)  # files of what calls collectives

# Bytes of an element, by torch's name of its type; of all others 1.
_BYTES = {
    "Float": 4, "Double": 8, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2,
}  # fmt: skip


class CallRecord(NamedTuple):
    """A collective, as the profile needs it; `key` as in `GroupRecord`, the rest as in `Call`."""

    key: str
    number: int
    name: str
    created: float
    bytes: int
    duration_s: float | None


class FlightRecorder:
    """Reads torch's records of this process."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], tuple[str, str]] = {}  # name and title
        # By group, how many sends and receives gloo's numbers count before the last collective.
        self._sends: dict[tuple[str, str], int] = {}
        self._unnamed: set[tuple[str, str]] = set()  # whose name has been asked for
        self._read_to: dict[str, int] = {}  # by backend, the last record that `new_calls` returned
        self._unfinished: dict[str, set[int]] = {}  # and those before it whose duration is to come
        self._last: dict[str, Mapping[str, Any]] = {}  # as last read, by backend
        self._main = _MainThread()

    def new_calls(self) -> tuple[list[CallRecord], int]:
        """Return the collectives that were called since the last time.

        One that has a duration by now, which it had not when it was returned, is returned again.

        Returns:
            The collectives, and the number of those whose record has been overwritten.
        """
        found, lost = [], 0
        for backend, record in self._read(operations=True).items():
            last = self._read_to.get(backend, -1)
            waiting = self._unfinished.get(backend, set())
            entries = [e for e in record.get("entries", []) if not e["is_p2p"]]
            new = [e for e in entries if int(e["record_id"]) > last]
            found += [
                self._call(backend, entry)
                for entry in entries
                if int(entry["record_id"]) > last
                or (int(entry["record_id"]) in waiting and "duration_ms" in entry)
            ]
            if backend == "nccl":
                self._unfinished[backend] = {
                    int(entry["record_id"]) for entry in entries if "duration_ms" not in entry
                }
            if new:
                numbers = [int(entry["record_id"]) for entry in record["entries"]]
                lost += max(0, min(numbers) - last - 1)
                self._read_to[backend] = max(numbers)
        return found, lost

    def _call(self, backend: str, entry: Mapping[str, Any]) -> CallRecord:
        operation = _operation(entry)
        sizes = map(prod, operation.inputs)
        size = sum(
            n * _BYTES.get(dtype, 1) for n, dtype in zip(sizes, operation.dtypes, strict=False)
        )
        return CallRecord(
            key=f"{backend}:{self._names[backend, str(entry['pg_id'])][0]}",
            number=operation.number,
            name=operation.name,
            created=operation.created,
            bytes=size,
            duration_s=float(entry["duration_ms"]) / 1e3 if "duration_ms" in entry else None,
        )

    def pending(self, numbers: Numbers) -> dict[str, int]:
        """Return the last collective that has completed, by group, if a later one has not.

        A group that has been destroyed waits for nothing: its last collective may stay in the
        record as not completed, if it went before gloo had noted that.

        Args:
            numbers: From `numbers`.
        """
        if new := numbers.keys() - self._names.keys() - self._unnamed:
            self._read(operations=True)  # learns the names
            self._unnamed |= new
        known = {key: pair for key, pair in numbers.items() if key in self._names}
        waiting = {
            key: completed
            for key, (enqueued, completed) in self._newest(known).items()
            if enqueued > completed
        }
        living = _members() if waiting else {}
        return {
            f"{key[0]}:{name}": completed
            for key, completed in waiting.items()
            if (name := self._names[key][0]) in living
        }

    def describe(self, key: str) -> tuple[str, tuple[int, ...]]:
        """Return what a person calls a group, and its members, by `GroupRecord.key`."""
        backend, _, name = key.partition(":")
        titles = [t for (b, _), (n, t) in self._names.items() if (b, n) == (backend, name)]
        return (titles or [""])[-1], _members().get(name, ())

    def memberships(self) -> tuple[Membership, ...]:
        """Return the members of this rank's process groups."""
        return tuple(Membership(name=name, ranks=ranks) for name, ranks in _members().items())

    def numbers(self) -> Numbers:
        """Return the numbers of the last collective enqueued and completed, for each group."""
        return self._numbers_of(self._read(operations=any(self._sends.values())))

    def enqueued(self) -> dict[str, int]:
        """Return the number of the last collective that was called, by `GroupRecord.key`."""
        return {key: enqueued for key, (enqueued, _) in self.by_key(self.numbers()).items()}

    def by_key(self, numbers: Numbers) -> dict[str, tuple[int, int]]:
        """Return the numbers by `GroupRecord.key`.

        Args:
            numbers: From `numbers`.
        """
        newest = self._newest(numbers)
        return {
            f"{backend}:{self._names[backend, group][0]}": pair
            for (backend, group), pair in newest.items()
        }

    def groups(self, before: Numbers = MappingProxyType({})) -> tuple[GroupRecord, ...]:
        """Return the records of this rank's process groups.

        Args:
            before: The numbers before the cell: what was called earlier is left out. A group that
                was aborted keeps collectives that never complete.
        """
        records = self._read(operations=True)
        return self._records(self._numbers_of(records), before, _called_since(before, records))

    def idle_groups(self, numbers: Numbers) -> tuple[GroupRecord, ...]:
        """Return the records of groups that the cell has not used.

        Args:
            numbers: From `numbers`, the same as before the cell.
        """
        return self._records(numbers, numbers, {})

    def _records(
        self,
        numbers: Numbers,
        before: Numbers,
        called: Mapping[tuple[str, str], Iterable[Operation]],
    ) -> tuple[GroupRecord, ...]:
        members = _members()
        found = []
        for key, (enqueued, completed) in self._newest(numbers).items():
            name, title = self._names[key]
            found.append(
                GroupRecord(
                    name=name,
                    backend=key[0],
                    title=title,
                    ranks=members.get(name, ()),
                    enqueued=enqueued,
                    completed=completed,
                    before=before.get(key, (0, 0))[0],
                    operations=tuple(called.get(key, ())),
                )
            )
        # Their names have left the record: nobody knows whether other ranks are in them too.
        unnamed = [key for key in numbers if key not in self._names]
        return (*found, *(_unnamed(key, numbers, before) for key in unnamed))

    def _read(self, *, operations: bool) -> _Records:
        """Return each recorder's record, by backend, and learn the names of its groups.

        torch adds a group to the record with its first collective, without a lock: a thread that
        reads at that moment crashes the process. Until all groups are in it, the last record
        stands while the main thread may be calling one.
        """
        groups = _count_groups()
        calls = self._main.may_call_torch()
        for backend in _RECORDERS:
            last = self._last.get(backend, {})
            if calls and len(last.get("pg_status", {})) < groups:
                continue
            self._last[backend] = _record(backend, operations=operations)
            self._learn(backend, self._last[backend])
        return dict(self._last)

    def _learn(self, backend: str, record: Mapping[str, Any]) -> None:
        counted = set()
        for entry in reversed(record.get("entries", [])):  # the newest first
            key = (backend, str(entry["pg_id"]))
            if key not in self._names:
                name, title = map(str, entry["process_group"])
                self._names[key] = name, title
            if backend == "gloo" and key not in counted and not entry["is_p2p"]:
                counted.add(key)
                self._sends[key] = max(0, int(entry["op_id"]) - int(entry["collective_seq_id"]))

    def _numbers_of(self, records: _Records) -> Numbers:
        found = {}
        for backend, record in records.items():
            for group, status in record.get("pg_status", {}).items():
                sends = self._sends.get((backend, group), 0)
                enqueued, completed = (max(0, number - sends) for number in _status(status))
                found[backend, group] = enqueued, completed
        return found

    def _newest(self, numbers: Numbers) -> Numbers:
        """Return those groups whose name is known; of several of one name the last one."""
        if not numbers.keys() <= self._names.keys():
            self._read(operations=True)
        newest = {
            (key[0], self._names[key][0]): key
            for key in sorted(numbers, key=lambda key: int(key[1]))
            if key in self._names
        }
        return {key: numbers[key] for key in newest.values()}


# The recorders of this process share torch's record.
_known: weakref.WeakSet[Any] = weakref.WeakSet()
_created = 0  # groups of this process, also those that are gone: they stay in the record
_counting = threading.Lock()


def note_groups(groups: Iterable[Any]) -> int:
    """Count process groups that are new, and return how many there have been so far.

    One that is destroyed soon is never seen by a thread that looks now and then.

    Args:
        groups: Groups of torch's, or what it returns in a rank that is not a member of one.
    """
    global _created  # noqa: PLW0603
    with _counting:
        new = {
            group
            for group in groups
            if isinstance(group, distributed_c10d.ProcessGroup) and group not in _known
        }
        _known.update(new)
        _created += len(new)
        return _created


def _count_groups() -> int:
    """Return how many process groups were created so far."""
    try:
        return note_groups(list(distributed_c10d._world.pg_map))
    except RuntimeError:  # the main thread creates one at this moment
        return _created + 1


class _MainThread:
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


def _unnamed(key: tuple[str, str], numbers: Numbers, before: Numbers) -> GroupRecord:
    enqueued, completed = numbers[key]
    return GroupRecord(
        name="",
        backend=key[0],
        title="",
        ranks=(),
        enqueued=enqueued,
        completed=completed,
        before=before.get(key, (0, 0))[0],
    )


def _called_since(before: Numbers, records: _Records) -> dict[tuple[str, str], list[Operation]]:
    """Return the operations that were called after those numbers, oldest first, by group."""
    called: dict[tuple[str, str], list[Operation]] = {}
    for backend, record in records.items():
        for entry in record.get("entries", []):
            key = (backend, str(entry["pg_id"]))
            if int(entry["collective_seq_id"]) > before.get(key, (0, 0))[0]:
                called.setdefault(key, []).append(_operation(entry))
    return called


def _record(backend: str, *, operations: bool) -> dict[str, Any]:
    """Return what a recorder says; empty if this torch does not have it, or it cannot be read."""
    name, parse, more = _RECORDERS[backend]
    try:
        record = parse(getattr(c10d, name)(operations, *more))
    # No such recorder; torch's own; other arguments; not JSON; not a pickle.
    except (AttributeError, RuntimeError, TypeError, ValueError, UnpicklingError, EOFError):
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

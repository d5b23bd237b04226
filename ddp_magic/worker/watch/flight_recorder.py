"""What torch's Flight Recorder knows of this rank's collectives; `torch_records` reads it.

`heartbeat` reports it, with the rank's transfers and place.

torch records every collective that a process group is asked for, with gloo since 2.9 and with NCCL
since 2.5, also those that C++ calls, as DDP's. The records can be read from another thread while
the main thread waits in one of them, and while it runs. An older torch, or one built without it,
has no records: `groups` returns none, and what a rank waits for is told from its stack.

Facts that both files rely on, measured on torch 2.11 (NCCL) and 2.13 (gloo): gloo's `state` stays
`scheduled`, so `retired` tells what has completed; NCCL's watchdog sets `retired` within 0.1 s. A
record of 64 operations costs 0.5 ms as a pickle and 1 ms as JSON, the numbers alone 0.02 ms. With
stacks it would cost seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import monotonic  # bound here: a cell may replace the module's
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from ddp_magic.wire.collectives import GroupRecord, Membership, Operation
from ddp_magic.worker.watch.group_names import GroupNames
from ddp_magic.worker.watch.pending import Numbers, Pending
from ddp_magic.worker.watch.torch_records import (
    RECORDERS,
    MainThreadState,
    count_groups,
    members,
    numbers_in,
    operation_of,
    record_of,
)
from ddp_magic.worker.watch.transfers import last_transfer

_Records: TypeAlias = Mapping[str, Mapping[str, Any]]  # what each recorder says, by backend


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
        self._names = GroupNames()
        # By group, how many sends and receives gloo's numbers count before the last collective.
        self._sends: dict[tuple[str, str], int] = {}
        self._unnamed: set[tuple[str, str]] = set()  # whose name has been asked for
        self._read_to: dict[str, int] = {}  # by backend, the last record that `new_calls` returned
        self._unfinished: dict[str, set[int]] = {}  # and those before it whose duration is to come
        self._last: dict[str, Mapping[str, Any]] = {}  # as last read, by backend
        self._main = MainThreadState()
        self._pending = Pending()

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
        operation = operation_of(entry)
        return CallRecord(
            key=f"{backend}:{self._names[backend, str(entry['pg_id'])][0]}",
            number=operation.number,
            name=operation.name,
            created=operation.created,
            bytes=operation.bytes,
            duration_s=float(entry["duration_ms"]) / 1e3 if "duration_ms" in entry else None,
        )

    def pending(self, numbers: Numbers) -> dict[str, int]:
        """Return the last collective that has completed, by group, if a later one has not.

        A group that has been destroyed waits for nothing: its last collective may stay in the
        record as not completed, if it went before gloo had noted that.

        Args:
            numbers: From `numbers`.
        """
        if new := {key for key in numbers if key not in self._names} - self._unnamed:
            self._read(operations=True)  # learns the names
            self._unnamed |= new
        known = {key: pair for key, pair in numbers.items() if key in self._names}
        waiting = {
            key: completed
            for key, (enqueued, completed) in self._newest(known).items()
            if enqueued > completed
        }
        living = members() if waiting else {}
        return {
            f"{key[0]}:{name}": completed
            for key, completed in waiting.items()
            if (name := self._names[key][0]) in living
        }

    def describe(self, key: str) -> tuple[str, tuple[int, ...]]:
        """Return what a person calls a group, and its members, by `GroupRecord.key`."""
        backend, _, name = key.partition(":")
        return self._names.title(backend, name), members().get(name, ())

    def memberships(self) -> tuple[Membership, ...]:
        """Return the members of this rank's process groups."""
        return tuple(Membership(name=name, ranks=ranks) for name, ranks in members().items())

    def numbers(self) -> Numbers:
        """Return the numbers of the last collective enqueued and completed, for each group."""
        # gloo counts sends and receives with them; what it counts a record of operations tells.
        sends = any(self._sends.values()) or last_transfer() is not None
        return self._numbers_of(self._read(operations=sends))

    def look(self, numbers: Numbers) -> float:
        """Note which collectives have not completed, before later ones overwrite their record.

        Returns:
            The seconds since which some group has had the same collective to complete.
        """
        stuck_s = self._pending.look(numbers, monotonic())
        if self._pending.is_new:
            self._pending.keep(_called_since({}, self._read(operations=True)))
        return stuck_s

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

    def groups(
        self,
        before: Numbers = MappingProxyType({}),
        calls: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[GroupRecord, ...]:
        """Return the records of this rank's process groups.

        Args:
            before: The numbers before the cell: what was called earlier is left out. A group that
                was aborted keeps collectives that never complete.
            calls: The functions in which threads wait for others, by the name of the group.
        """
        records = self._read(operations=True)
        numbers, called = self._numbers_of(records), _called_since(before, records)
        for key, pair in self._newest(numbers).items():
            if pair[1] >= before.get(key, (0, 0))[0]:
                in_call = calls.get(self._names[key][0], "")
                called[key] = self._pending.with_kept(key, called.get(key, ()), pair, in_call)
        return self._records(numbers, before, called)

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
        known = members()
        found = []
        for key, (enqueued, completed) in self._newest(numbers).items():
            name, title = self._names[key]
            found.append(
                GroupRecord(
                    name=name,
                    backend=key[0],
                    title=title,
                    ranks=known.get(name, ()),
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
        groups = count_groups()
        calls = self._main.may_call_torch()
        for backend in RECORDERS:
            last = self._last.get(backend, {})
            if calls and len(last.get("pg_status", {})) < groups:
                continue
            self._last[backend] = record_of(backend, operations=operations)
            self._learn(backend, self._last[backend])
        return dict(self._last)

    def _learn(self, backend: str, record: Mapping[str, Any]) -> None:
        self._names.learn(backend, record)
        counted = set()
        for entry in reversed(record.get("entries", [])):  # the newest first
            key = (backend, str(entry["pg_id"]))
            if backend == "gloo" and key not in counted and not entry["is_p2p"]:
                counted.add(key)
                self._sends[key] = max(0, int(entry["op_id"]) - int(entry["collective_seq_id"]))

    def _numbers_of(self, records: _Records) -> Numbers:
        found = {}
        for backend, record in records.items():
            for group, status in record.get("pg_status", {}).items():
                sends = self._sends.get((backend, group), 0)
                enqueued, completed = (max(0, number - sends) for number in numbers_in(status))
                found[backend, group] = enqueued, completed
        return found

    def _newest(self, numbers: Numbers) -> Numbers:
        """Return those groups whose name is known; of several of one name the last one."""
        if not self._names.has(numbers):
            self._read(operations=True)
        return {key: numbers[key] for key in self._names.newest(numbers)}


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
                called.setdefault(key, []).append(operation_of(entry))
    return called

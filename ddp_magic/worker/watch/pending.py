"""The collectives of each group that have not completed, kept while torch's record has them.

The record has the last collectives of all groups together. So those of a thread, such as one that
reports metrics, push out of it what the main thread waits in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import monotonic  # bound here: a cell may replace the module's
from time import time as now

from ddp_magic.wire.collectives import UNNAMED, Operation

GroupKey = tuple[str, str]  # backend, and torch's number of the group
# The last collective enqueued and completed. Each rank numbers its groups for itself: only a
# group's name is the same on all its ranks.
Numbers = Mapping[GroupKey, tuple[int, int]]


class Pending:
    """What the groups wait for, over several looks.

    Attributes:
        is_new: Whether a group waits for another collective than at the look before.
    """

    def __init__(self) -> None:
        self.is_new = False
        self._since: dict[GroupKey, tuple[int, float]] = {}  # last completed, monotonic, s
        self._kept: dict[GroupKey, dict[int, Operation]] = {}

    def look(self, numbers: Numbers, at: float) -> float:
        """Return the seconds since which some group has had the same collective to complete.

        Args:
            numbers: The last collective enqueued and completed, by group.
            at: Time on the monotonic clock, in seconds.
        """
        before = self._since
        self._since = {
            group: before[group]
            if before.get(group, (-1, 0.0))[0] == completed
            else (completed, at)
            for group, (enqueued, completed) in numbers.items()
            if enqueued > completed
        }
        self.is_new = any(before.get(group) != since for group, since in self._since.items())
        self._kept = {
            group: {n: one for n, one in kept.items() if n > self._since[group][0]}
            for group, kept in self._kept.items()
            if group in self._since
        }
        return max((at - since for _, since in self._since.values()), default=0.0)

    def keep(self, called: Mapping[GroupKey, Iterable[Operation]]) -> None:
        """Keep those of these collectives that have not completed."""
        for group, operations in called.items():
            if group in self._since:
                completed = self._since[group][0]
                self._kept.setdefault(group, {}).update(
                    (one.number, one)
                    for one in operations
                    if not one.done and one.number > completed and not one.point_to_point
                )

    def with_kept(
        self, group: GroupKey, called: Iterable[Operation], numbers: tuple[int, int], in_call: str
    ) -> list[Operation]:
        """Return a group's operations as the record has them, and what it has no longer.

        Args:
            group: Which group.
            called: What the record has.
            numbers: The last collective enqueued and completed.
            in_call: The function that a thread of the rank is in, if it waits in a collective of
                this group; empty otherwise.
        """
        called = list(called)
        enqueued, completed = numbers
        have = {one.number for one in called if not one.point_to_point}
        missing = [
            one
            for n, one in sorted(self._kept.get(group, {}).items())
            if completed < n <= enqueued and n not in have
        ]
        waiting = [o.number for o in called + missing if not o.done and not o.point_to_point]
        if in_call and enqueued > completed and not waiting:
            # A function has called the last one, and waits for it; backward calls several.
            oldest = completed + 1 if in_call == UNNAMED else enqueued
            if oldest not in have:  # gloo may be late to note that it has completed
                missing.append(self._overwritten(group, oldest, in_call))
        elif waiting and min(waiting) - completed > 2 and not have & {completed + 1, completed + 2}:
            # They were called asynchronously. One that has completed may be noted late.
            missing.insert(0, self._overwritten(group, completed + 1, UNNAMED))
        return missing + called

    def _overwritten(self, group: GroupKey, number: int, name: str) -> Operation:
        at = monotonic()
        since = self._since[group][1] if group in self._since else at
        return Operation(
            number=number, name=name, created=now() - (at - since), done=False, is_recorded=False
        )

"""Brings the output of all ranks into one order, in which a line that all ranks print is one. Pure.

Lines are folded only if they are identical. To find out, a line waits for those of the other
ranks: for `HOLD_S` at most, until all ranks have one of the same kind, and not at all where this
kind of line has waited in vain before. Lines are of the same kind if they differ in numbers only.
The order of each rank's output is kept.
"""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

HOLD_S = 0.15
ALONE_LINES = 3  # after so many lines that waited while no other rank wrote, a rank's do not wait
_KINDS = 1000  # that are remembered
_RECENT_LINES = 500  # that are looked at for whether all ranks print them

_NUMBER = re.compile(r"\d+")

Other = TypeVar("Other")  # what is shown besides lines


@dataclass(frozen=True)
class _Entry(Generic[Other]):
    """Something that a rank shows.

    Attributes:
        number: Its place in the order of arrival.
        came: When it came, in seconds.
        until: It is shown then at the latest, in seconds.
        line: A line that may be folded; None for anything else.
        kind: Its kind.
    """

    number: int
    came: float
    until: float
    line: str | None
    kind: str
    shown: str | Other


class Fold(Generic[Other]):
    """The output that the ranks have sent and that is not shown yet.

    Args:
        ranks: The ranks that are shown: a line that all of them print is folded.
    """

    def __init__(self, ranks: Iterable[int]) -> None:
        self._queues: dict[int, deque[_Entry[Other]]] = {rank: deque() for rank in ranks}
        self._everyone = tuple(self._queues)
        self._waiting: Counter[tuple[int, str]] = Counter()
        self._spread: Counter[str] = Counter()  # line -> number of ranks where it waits
        self._number = 0
        self._wrote = dict.fromkeys(self._queues, float("-inf"))  # when each rank wrote a line
        self._alone = dict.fromkeys(self._queues, 0)
        # Kind of line -> whether all ranks print such lines.
        self._common: OrderedDict[str, bool] = OrderedDict()
        self._recent: OrderedDict[str, set[int]] = OrderedDict()

    def add_line(self, rank: int, line: str, now: float, *, foldable: bool = True) -> None:
        """Take a line of a rank.

        Args:
            rank: Whose it is.
            line: Its text.
            now: Time, in seconds.
            foldable: Whether it may be shown as a line of all ranks.
        """
        foldable = foldable and len(self._queues) > 1
        kind = _kind(line) if foldable else ""
        hold_s = HOLD_S if foldable and self._is_worth_waiting(rank, kind) else 0.0
        self._wrote[rank] = now
        self._number += 1
        entry = _Entry[Other](
            self._number, now, now + hold_s, line if foldable else None, kind, line
        )
        self._append(rank, entry)

    def add(self, rank: int, other: Other, now: float) -> None:
        """Take something else that a rank shows, which keeps its place among all ranks' lines."""
        self._number += 1
        until = max((e.until for queue in self._queues.values() for e in queue), default=now)
        self._append(rank, _Entry[Other](self._number, now, max(now, until), None, "", other))

    def _append(self, rank: int, entry: _Entry[Other]) -> None:
        self._queues[rank].append(entry)
        if entry.line is not None:
            self._waiting[rank, entry.line] += 1
            self._spread[entry.line] += self._waiting[rank, entry.line] == 1

    def shows(self, rank: int) -> bool:
        """Return whether the output of a rank is shown."""
        return rank in self._queues

    def show_too(self, rank: int) -> None:
        """Show what a hidden rank sends from now on; its lines may be those of all ranks."""
        self._queues.setdefault(rank, deque())
        self._everyone = tuple(sorted(self._queues))
        self._wrote.setdefault(rank, float("-inf"))
        self._alone.setdefault(rank, 0)

    def take_all(self, rank: int) -> list[str | Other]:
        """Return all that a rank has sent and that is not shown yet; the other ranks' waits."""
        return [self._take_alone(rank) for _ in range(len(self._queues.get(rank, ())))]

    def has(self, rank: int) -> bool:
        """Return whether something of a rank is not shown yet."""
        return bool(self._queues.get(rank))

    @property
    def due(self) -> float:
        """When the next wait ends, in seconds; infinity if nothing waits."""
        return min((queue[0].until for queue in self._queues.values() if queue), default=math.inf)

    def release(
        self, now: float, *, final: bool = False
    ) -> list[tuple[tuple[int, ...], str | Other]]:
        """Return what is to be shown now, in order: whose it is, and the line or other thing.

        Args:
            now: Time, in seconds.
            final: Whether nothing is to wait any longer.
        """
        now = math.inf if final else now
        released: list[tuple[tuple[int, ...], str | Other]] = []
        alone: set[str] = set()  # kinds of lines that turned out to be of single ranks
        ready = self._ready(now, alone)
        while ready:
            _, rank = heapq.heappop(ready)
            head = self._queues[rank][0]
            line = head.line
            if line is not None and self._is_common(line):
                for other, queue in self._queues.items():
                    while queue[0].line != line:
                        released.append(((other,), self._take_alone(other)))
                    self._pop(other)
                self._learn(head.kind, is_common=True)
                released.append((self._everyone, line))
                ready = self._ready(now, alone)
                continue
            is_new = line is not None and head.kind not in alone
            alone |= {head.kind} if is_new else set()
            released.append(((rank,), self._take_alone(rank)))
            if is_new or not ready:
                ready = self._ready(now, alone)
            elif self._queues[rank] and self._is_ready(self._queues[rank][0], now, alone):
                heapq.heappush(ready, (self._queues[rank][0].number, rank))
        return released

    def _ready(self, now: float, alone: set[str]) -> list[tuple[int, int]]:
        """Return the ranks whose first entry is to be shown, as a heap by its number.

        Args:
            now: Time, in seconds.
            alone: Kinds of lines that do not wait.
        """
        heads = {rank: queue[0] for rank, queue in self._queues.items() if queue}
        differ = len(heads) == len(self._queues) and self._correspond(heads.values())
        ready = [
            (head.number, rank)
            for rank, head in heads.items()
            if differ or self._is_ready(head, now, alone)
        ]
        heapq.heapify(ready)
        return ready

    def _is_ready(self, head: _Entry[Other], now: float, alone: set[str]) -> bool:
        if head.until <= now:
            return True
        if head.line is None:  # nothing that came before it waits any longer
            return head.number == min(queue[0].number for queue in self._queues.values() if queue)
        return head.kind in alone or self._is_common(head.line)

    @staticmethod
    def _correspond(heads: Iterable[_Entry[Other]]) -> bool:
        """Return whether all ranks print a line of the same kind: `rank 0`, `rank 1`."""
        kinds = {None if head.line is None else head.kind for head in heads}
        return len(kinds) == 1 and None not in kinds

    def _is_common(self, line: str | None) -> bool:
        return line is not None and self._spread[line] == len(self._queues)

    def _pop(self, rank: int) -> _Entry[Other]:
        entry = self._queues[rank].popleft()
        if entry.line is not None:
            self._waiting[rank, entry.line] -= 1
            if not self._waiting[rank, entry.line]:
                del self._waiting[rank, entry.line]
                self._spread[entry.line] -= 1
                if not self._spread[entry.line]:
                    del self._spread[entry.line]
        return entry

    def _take_alone(self, rank: int) -> str | Other:
        """Take a rank's first entry, and learn from a line that was not folded."""
        entry = self._pop(rank)
        if entry.line is None:
            return entry.shown
        if entry.until > entry.came:  # it has waited in vain
            self._learn(entry.kind, is_common=False)
            others = [wrote for other, wrote in self._wrote.items() if other != rank]
            self._alone[rank] += max(others) < entry.came - HOLD_S
        seen = self._recent.setdefault(entry.line, set())
        seen.add(rank)
        if len(seen) == len(self._queues):  # too late for this one
            del self._recent[entry.line]
            self._learn(entry.kind, is_common=True)
        elif len(self._recent) > _RECENT_LINES:
            self._recent.popitem(last=False)
        return entry.shown

    def _is_worth_waiting(self, rank: int, kind: str) -> bool:
        """Guess whether the other ranks print this line too. It decides on the delay alone."""
        known = self._common.get(kind)
        return self._alone[rank] < ALONE_LINES if known is None else known

    def _learn(self, kind: str, *, is_common: bool) -> None:
        self._common[kind] = is_common
        self._common.move_to_end(kind)
        if len(self._common) > _KINDS:
            self._common.popitem(last=False)
        if is_common:
            self._alone = dict.fromkeys(self._alone, 0)


def _kind(line: str) -> str:
    """Return a line without its numbers: lines of a loop differ only in them."""
    return _NUMBER.sub("0", line[:200])

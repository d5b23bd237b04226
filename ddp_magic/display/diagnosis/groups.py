"""A process group as its ranks see it: what each has called, and how that differs. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Protocol

from ddp_magic.display.diagnosis.operations import describe, differ, rule, short
from ddp_magic.display.diagnosis.unrecorded import different_roots
from ddp_magic.display.diagnosis.words import names
from ddp_magic.display.rank import Rank
from ddp_magic.wire.collectives import UNNAMED, GroupRecord, Operation

# Collectives in which a rank may send and go on, and whether it sends a whole tensor at once.
_ONE_SIDED = {"broadcast": True, "scatter": True, "gather": True, "reduce": False}
_UNTITLED = ("", "undefined")  # torch's descriptions of a group to which the user has given none


class Known(Protocol):
    """What is known of all ranks, as far as a group needs it."""

    @property
    def ranks(self) -> Sequence[Rank]:
        """The ranks."""

    @property
    def mixed_up(self) -> Mapping[str, str]:
        """A sentence on each group of which ranks know different members, by its name."""

    def where(self, rank: int, operation: Operation | None, group: Group) -> str:
        """Return ` (line 12, in backward)`, where a rank is; empty if that is not known."""

    def has_unnamed_groups(self, number: int) -> bool:
        """Return whether a rank has groups whose names are not known."""


class Group:
    """A process group, as its ranks see it.

    Attributes:
        key: As in `GroupRecord`.
        id: The group's name, the same on all its ranks.
        name: ` of group 'tensor'`, to be added to a collective; empty for the default group.
        records: By rank.
        members: Its ranks.
        pending: The first collective that has not completed, by rank.
    """

    def __init__(
        self, key: str, name: str, records: dict[int, GroupRecord], ranks: Sequence[Rank]
    ) -> None:
        self.key = key
        self.id = key.partition(":")[2]
        self.name = name
        self.records = records
        self.members = sorted({rank for r in records.values() for rank in r.ranks} or records)
        self.pending = {
            rank: operation
            for rank, record in records.items()
            if (operation := _first_pending(record, ranks[rank])) is not None
        }

    def mismatch(self, known: Known) -> str | None:
        """Return a sentence on the first number at which ranks called different collectives."""
        if found := known.mixed_up.get(self.id):
            return found
        calls: dict[int, dict[int, Operation]] = defaultdict(dict)
        for rank, record in self.records.items():
            for operation in record.operations:
                if not operation.point_to_point and operation.name != UNNAMED:
                    calls[operation.number][rank] = operation
        for number, by_rank in sorted(calls.items()):
            if differ(by_rank.values(), of_all=len(by_rank) == len(self.members)):
                return self._differ(number, by_rank, known)
        return None

    def _differ(self, number: int, by_rank: dict[int, Operation], known: Known) -> str:
        same: dict[str, list[int]] = defaultdict(list)
        lines: dict[str, str] = {}
        for rank, operation in by_rank.items():
            words = describe(operation)
            same[words].append(rank)
            if self.pending.get(rank) is operation or self._failed_in(rank, operation, known):
                lines.setdefault(words, known.where(rank, operation, self))
        calls = "; ".join(
            f"{names(who)} called {what}{lines.get(what, '')}" for what, who in same.items()
        )
        # In a rank that raised in it, torch calls it completed too; and one that has just come to
        # the end of its cell may have reported its last one before gloo had noted its completion.
        done = any(
            known.ranks[rank].error is None and (o.done or known.ranks[rank].succeeded)
            for rank, o in by_rank.items()
        )
        return (
            f"collective #{number}{self.name} differs between ranks: {calls}. "
            + ("What it returned is wrong: all " if done else "All ")
            + rule(next(iter(by_rank.values())).name)
        )

    def _called_in_cell(self, rank: int) -> int:
        """Return how many collectives a rank has called in the cell."""
        record = self.records.get(rank)
        return 0 if record is None else record.enqueued - record.before

    def _has_reported_all(self, rank: Rank) -> bool:
        """Whether a rank has reported all its collectives, as far as its heartbeats tell."""
        record = self.records.get(rank.rank)
        counted = rank.enqueued.get(self.key, 0)
        if rank.collectives is None or rank.collectives.runs_on:
            return False
        return counted <= (record.enqueued if record else 0)

    def called_earlier(self, number: int) -> str:
        """Return which ranks called a collective in an earlier cell, if not all did."""
        early = [rank for rank, record in self.records.items() if record.before >= number]
        late = [rank for rank in self.records if rank not in early]
        if not early or not late:
            return ""
        return (
            f"{names(early)} called it in an earlier cell, in which {names(late)} did not: the "
            "ranks are out of step"
        )

    def called(self, rank: int, known: Known) -> int:
        """Return the number of the last collective that a rank is known to have called."""
        if rank >= len(known.ranks):
            return 0
        enqueued = known.ranks[rank].enqueued.get(self.key, 0)
        return max(enqueued, self.records[rank].enqueued if rank in self.records else 0)

    def _failed_in(self, rank: int, operation: Operation, known: Known) -> bool:
        """Whether a rank raised in its last collective."""
        last = self.records[rank].enqueued == operation.number
        return last and known.ranks[rank].error is not None

    def roots(self, known: Known) -> str:
        """Return a sentence if ranks have failed in a collective with different roots."""
        failed: dict[int, list[Rank]] = defaultdict(list)
        for rank, record in self.records.items():
            if known.ranks[rank].error is not None:
                failed[record.enqueued].append(known.ranks[rank])
        for number, who in failed.items():
            last = next(
                (o for o in self.records[who[0].rank].operations if o.number == number), None
            )
            if last is not None and (found := different_roots(who)):
                return f"{short(last)}{self.name} failed; {found}"
        return ""

    def met_by(self, aborted: Sequence[Rank], known: Known) -> list[str]:
        """Return what other ranks called when gloo aborted ranks for the size of their tensors."""
        if not any(rank.rank in self.members for rank in aborted):
            return []
        received = {rank.failure.received_bytes for rank in aborted if rank.failure}
        same: dict[str, list[int]] = defaultdict(list)
        for rank, record in self.records.items():
            if (met := self._met(rank, received, known)) is not None:
                where = known.where(rank, met, self) if met.number == record.enqueued else ""
                same[f"{describe(met)}, #{met.number}{self.name}{where}"].append(rank)
        who = " and ".join(f"{names([rank.rank])}{rank.where}" for rank in aborted)
        return [
            f"{names(ranks)} called {what}; what {who} called does not match"
            for what, ranks in same.items()
        ]

    def _met(self, rank: int, received: Collection[int | None], known: Known) -> Operation | None:
        """Return what a rank had called when gloo aborted others; None if that is not known.

        Args:
            rank: Which rank.
            received: How many bytes those had received.
            known: What is known of all ranks.
        """
        record = self.records[rank]
        calls = [o for o in record.operations if not o.point_to_point]
        if not calls or calls[-1].number != record.enqueued:
            return None
        # In some collectives a rank waits for no other: it may have gone on to the next ones.
        earlier = list(takewhile(lambda o: o.name in _ONE_SIDED, reversed(calls[:-1])))
        for operation in (calls[-1], *earlier):
            if _ONE_SIDED.get(operation.name, False) and _message_bytes(operation) in received:
                return operation
        is_last = self._failed_in(rank, calls[-1], known) or self._called_in_cell(rank) == 1
        is_certain = all(_ONE_SIDED[operation.name] for operation in earlier)
        return calls[-1] if is_last and is_certain else None

    def unequal(self, known: Known) -> tuple[str, list[int]] | None:
        """Return a sentence if ranks have called more collectives than others, and these others."""
        counts = {
            rank: self._called_in_cell(rank)
            for rank in self.members
            if rank < len(known.ranks) and self._has_reported_all(known.ranks[rank])
        }
        if len(counts) < len(self.members) or len(set(counts.values())) < 2:
            return None
        if any(known.has_unnamed_groups(rank) for rank in counts.keys() - self.records.keys()):
            return None  # one of them may be this group
        fewest = min(counts.values())
        called = [rank for rank, count in counts.items() if count > fewest]
        number = self.records[called[0]].before + fewest + 1
        missing = [rank for rank in counts if rank not in called]
        operations = [o for r in called for o in self.records[r].operations if o.number == number]
        what = short(operations[0]) if operations else f"collective #{number}"
        at = ""
        if failed := [r for r in called if known.ranks[r].error is not None]:
            at = known.where(failed[0], None, self)  # of its error: the last that is known
        sentence = f"{names(called)} called {what}{self.name}{at}, but {names(missing)} did not"
        return sentence, missing


def groups_of(ranks: Sequence[Rank]) -> Iterable[Group]:
    """Yield the process groups of which ranks have reported."""
    records: dict[str, dict[int, GroupRecord]] = defaultdict(dict)
    for rank in ranks:
        for record in rank.collectives.groups if rank.collectives else ():
            if record.name:
                records[record.key][rank.rank] = record
    several = len({key.partition(":")[2] for key in records}) > 1
    for key, by_rank in records.items():
        title = next((record.title for record in by_rank.values() if record.title), "")
        shown = key.partition(":")[2] if title in _UNTITLED else title
        is_default = title == "default_pg" or not several
        yield Group(key, "" if is_default else f" of group {shown!r}", by_rank, ranks)


def _message_bytes(operation: Operation) -> int:
    """Return the size of what one rank receives of another."""
    return operation.bytes // max(1, len(operation.inputs))  # scatter has one for each


def _first_pending(record: GroupRecord, rank: Rank) -> Operation | None:
    # A record is as old as the last report; each heartbeat brings the numbers of its time.
    completed = max(record.completed, rank.completed.get(record.key, 0))
    if record.enqueued <= completed:
        return None
    operations = (o for o in record.operations if not o.point_to_point)
    waiting = (o for o in operations if not o.done and o.number > completed)
    return min(waiting, key=lambda o: o.number, default=None)

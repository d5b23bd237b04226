"""The first collective on which ranks differ, from all that they have called (`--check`). Pure.

All ranks of a process group must call the same collectives in the same order, and the n-th call of
one rank meets the n-th of every other. What must be the same of them depends on the collective
(`_agreed`); where each rank sends to each other rank, what one sends must be what the other expects
(`_misfit`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from ddp_magic.display.diagnosis.differences import RULE, Difference, numbered, places
from ddp_magic.display.rank_names import rank_names
from ddp_magic.wire.calls import CollectiveCall, read_line

# Collectives whose inputs, or whose outputs, have the same shapes and types on all ranks.
_SAME_INPUTS = frozenset(
    [
        "all_reduce", "all_reduce_coalesced", "broadcast", "reduce", "all_gather_into_tensor",
        "all_gather_coalesced", "all_gather_into_tensor_coalesced", "reduce_scatter",
        "reduce_scatter_tensor", "reduce_scatter_tensor_coalesced",
    ]
)  # fmt: skip
_SAME_OUTPUTS = frozenset(["all_gather"])


@dataclass(slots=True)
class _Collective:
    """What ranks have called as one collective.

    Attributes:
        kind: What the first of them called; calls that agree are of one kind.
        calls: By rank.
    """

    kind: int
    calls: dict[int, CollectiveCall] = field(default_factory=dict)


@dataclass
class _Sequence:
    """The collectives of one group, on one type of device.

    Attributes:
        ranks: The group's members.
        before: How many it has called before the cell.
        matched: How many all members have called.
        open: What ranks have called of the following ones.
        count: How many each rank has called.
    """

    ranks: tuple[int, ...]
    before: int
    matched: int = 0
    open: deque[_Collective] = field(default_factory=deque)
    count: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Described:
    """A call that a rank has described."""

    call: CollectiveCall
    kind: int
    sequence: _Sequence


class Comparison:
    """Compares what ranks have called, as it becomes known.

    Attributes:
        checked: Number of collectives that all ranks of their group have called alike.
        difference: The first one on which ranks differ; None if there is none so far.
    """

    def __init__(self) -> None:
        self.checked = 0
        self.difference: Difference | None = None
        self._known: dict[tuple[int, int], _Described] = {}  # by rank and number
        self._kinds: dict[object, int] = {}
        self._sequences: dict[object, _Sequence] = {}
        self._fits: dict[tuple[int, ...], tuple[int, int] | None] = {}

    def take(self, rank: int, lines: Iterable[bytes]) -> None:
        """Take the next calls of a rank.

        Args:
            rank: Which.
            lines: From its file; see `wire.calls`.

        Raises:
            ValueError: A line cannot be read.
        """
        for line in lines:
            number, call = read_line(line)
            if call is not None:
                kind = self._kinds.setdefault(_agreed(call), len(self._kinds))
                self._known[rank, number] = _Described(call, kind, self._sequence(call))
            if (known := self._known.get((rank, number))) is None:
                raise ValueError(f"call {number} of rank {rank} has not been described")
            self._add(known, rank)

    def missing(self, of: Collection[int] | None = None) -> str:
        """Return a sentence if ranks of a group have called more than others; empty if not.

        Args:
            of: The others that count, those that call nothing more; None for all.
        """
        for sequence in self._sequences.values():
            if not sequence.open:
                continue
            calls = sequence.open[0].calls
            absent = [r for r in sequence.ranks if r not in calls and (of is None or r in of)]
            if not absent:
                continue
            first = next(iter(calls.values()))
            number = sequence.before + sequence.matched + 1
            called = numbered(first.name, number, calls.values())
            return (
                f"{rank_names(calls, span=3)} called {called}{places(calls.values())}, but "
                f"{rank_names(absent, span=3)} did not. {RULE}"
            )
        return ""

    def _sequence(self, call: CollectiveCall) -> _Sequence:
        key = (call.group, call.ranks, call.generation, call.device)
        if key not in self._sequences:
            self._sequences[key] = _Sequence(call.ranks, call.before)
        return self._sequences[key]

    def _add(self, known: _Described, rank: int) -> None:
        sequence = known.sequence
        place = sequence.count[rank] - sequence.matched
        sequence.count[rank] += 1
        if place == len(sequence.open):
            sequence.open.append(_Collective(known.kind))
        collective = sequence.open[place]
        collective.calls[rank] = known.call
        if known.kind != collective.kind and self.difference is None:
            first = next(iter(collective.calls.values()))
            if _differ(first, known.call):
                number = sequence.before + sequence.count[rank]
                self.difference = Difference(number, collective.calls, sequence.ranks)
        while sequence.open and len(sequence.open[0].calls) == len(sequence.ranks):
            self._close(sequence)

    def _close(self, sequence: _Sequence) -> None:
        """Compare the oldest collective, which all ranks have called, as a whole."""
        calls = sequence.open.popleft().calls
        sequence.matched += 1
        number = sequence.before + sequence.matched
        if self.difference is None and (pair := self._misfit(sequence.ranks, calls)) is not None:
            self.difference = Difference(number, calls, sequence.ranks, pair)
        # A rank is read after another: what came before a difference may be complete only now.
        if self.difference is None or number < self.difference.number:
            self.checked += 1

    def _misfit(
        self, ranks: tuple[int, ...], calls: dict[int, CollectiveCall]
    ) -> tuple[int, int] | None:
        if not any(call.receives for call in calls.values()):
            return None
        key = tuple(id(calls[rank]) for rank in ranks)
        if key not in self._fits:
            self._fits[key] = _misfit(ranks, calls)
        return self._fits[key]


def _misfit(ranks: Sequence[int], calls: dict[int, CollectiveCall]) -> tuple[int, int] | None:
    """Return a sender and a receiver that expect different numbers of elements."""
    found = [
        (sender, receiver)
        for i, sender in enumerate(ranks)
        for j, receiver in enumerate(ranks)
        if j < len(sends := calls[sender].sends)
        and i < len(receives := calls[receiver].receives)
        and sends[j] != receives[i]
    ]
    return min(found, key=lambda pair: pair[0] == pair[1], default=None)  # its own part last


def _differ(one: CollectiveCall, other: CollectiveCall) -> bool:
    if "" in (one.reduce_op, other.reduce_op):  # older torch does not tell it of a call from C++
        one, other = replace(one, reduce_op=""), replace(other, reduce_op="")
    return _agreed(one) != _agreed(other)


def _agreed(call: CollectiveCall) -> tuple[object, ...]:
    """Return what must be the same on all ranks."""
    shapes: tuple[object, ...] = ()
    if call.name in _SAME_INPUTS:
        shapes = tuple(map(_layout, call.inputs))
    elif call.name in _SAME_OUTPUTS:
        shapes = tuple(map(_layout, call.outputs))
    dtypes = call.dtypes if shapes else call.dtypes[:1]
    return (call.name, call.reduce_op, call.root, dtypes, shapes)


def _layout(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without its axes of length 1: [], [1] and [1, 1] have the same elements."""
    return tuple(n for n in shape if n != 1)

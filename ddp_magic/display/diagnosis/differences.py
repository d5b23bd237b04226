"""A collective on which ranks differ, in words (`--check`). Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ddp_magic.display.diagnosis.operations import of_tensors
from ddp_magic.display.rank_names import rank_names
from ddp_magic.wire.calls import CollectiveCall

_MAX_CLAUSES = 6
RULE = (
    "All ranks of a group must call the same collectives in the same order, with the same shapes, "
    "dtypes, reduction and root"
)


@dataclass(frozen=True)
class Difference:
    """A collective on which ranks differ.

    Attributes:
        number: Its place in the group's sequence of collectives, from 1.
        calls: What each rank has called, as far as it is known.
        ranks: The group's members.
        pair: A sender and a receiver that expect different sizes; None for other differences.
    """

    number: int
    calls: dict[int, CollectiveCall]
    ranks: tuple[int, ...]
    pair: tuple[int, int] | None = None

    @property
    def complete(self) -> bool:
        """Whether it is known what each rank of the group has called."""
        return len(self.calls) == len(self.ranks)

    @property
    def lines(self) -> list[tuple[str, int]]:
        """Return (ranks, line of the cell) for each line that ranks have called it from."""
        by_line: dict[int, list[int]] = defaultdict(list)
        for rank, call in sorted(self.calls.items()):
            if call.line is not None and not call.cell:
                by_line[call.line].append(rank)
        return [(rank_names(who, span=3), line) for line, who in by_line.items()]

    def sentence(self) -> str:
        """Return what each rank has called."""
        head = numbered("collective", self.number, self.calls.values()) + " differs between ranks"
        if self.pair is not None:
            return f"{head}: {_pair_words(self.pair, self.calls)}. {RULE}"
        shown = _telling(self.calls.values())
        same: dict[str, list[int]] = defaultdict(list)
        for rank, call in sorted(self.calls.items()):
            same[_words(call, shown)].append(rank)
        clauses = [
            f"{rank_names(who, span=3)} called {what}{places(self.calls[rank] for rank in who)}"
            for what, who in same.items()
        ]
        if more := len(clauses) - _MAX_CLAUSES:
            clauses[_MAX_CLAUSES:] = [f"and {more} more"] if more > 0 else []
        return f"{head}: {'; '.join(clauses)}. {RULE}"


def _telling(calls: Iterable[CollectiveCall]) -> frozenset[str]:
    """Return which attributes, beside names and tensors, tell calls of one name apart."""
    found = set()
    values: dict[tuple[str, str], object] = {}
    for call in calls:
        for attribute in ("reduce_op", "root"):
            value = getattr(call, attribute)
            if value != "" and values.setdefault((call.name, attribute), value) != value:
                found.add(attribute)
    return frozenset(found)


def _words(call: CollectiveCall, shown: Collection[str]) -> str:
    """Return `all_reduce of float32 [4]`."""
    of = of_tensors(call.dtypes, call.inputs or call.outputs)
    op = f" with {call.reduce_op}" if "reduce_op" in shown and call.reduce_op else ""
    root = ""
    if "root" in shown and call.root is not None:
        root = f" {'from' if call.name in ('broadcast', 'scatter') else 'to'} rank {call.root}"
    return f"{call.name}{root}{op}{of}"


def places(calls: Iterable[CollectiveCall]) -> str:
    """Return ` (line 12, in Tensor.backward)`; empty if no line is known."""
    found = {(call.cell, call.line): call.via for call in reversed(list(calls)) if call.line}
    words = [f"{cell}, line {line}" if cell else f"line {line}" for cell, line in sorted(found)]
    if len(found) == 1 and (via := next(iter(found.values()))):
        words.append(f"in {via}")
    return f" ({', '.join(words)})" if words else ""


def _pair_words(pair: tuple[int, int], calls: dict[int, CollectiveCall]) -> str:
    sender, receiver = pair
    sent, expected = calls[sender], calls[receiver]
    i, j = sent.ranks.index(sender), sent.ranks.index(receiver)
    return (
        f"rank {sender} called {sent.name} with {_elements(sent.sends[j])} for rank {receiver}"
        f"{places([sent])}; rank {receiver} called {expected.name} that expects "
        f"{_elements(expected.receives[i])} from rank {sender}{places([expected])}"
    )


def _elements(count: int) -> str:
    return f"{count} element{'s' if count != 1 else ''}"


def numbered(what: str, number: int, calls: Iterable[CollectiveCall]) -> str:
    """Return `collective #7 of group 'tensor'`."""
    title = next((call.title for call in calls if call.title), "")
    return f"{what} #{number}" + (f" of group {title!r}" if title else "")

"""Ranks that create process groups with different arguments: each waits for others. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ddp_magic.display.diagnosis.words import listed, names, verb
from ddp_magic.display.rank import Rank

# `new_group #1 of ranks 0, 1`, the first of the rank's; `init_process_group of world size 2`
_NEW_GROUP = re.compile(r"new_group #(\d+) of ranks (.+)")
_SIZE = " of world size "


def _different(same: Mapping[str, Sequence[Rank]], call: str) -> tuple[set[int], str]:
    """Return the ranks that create a group with different arguments, and who does what.

    Args:
        same: The ranks, by what they give.
        call: A verb.
    """
    if len(same) < 2:
        return set(), ""
    clauses = []
    for given, who in same.items():
        numbers = [rank.rank for rank in who]
        does = f"{verb(numbers, call)} {given}"
        clauses.append(f"{names(numbers)} {does} ({who[0].full_place})")
    return {rank.rank for who in same.values() for rank in who}, listed(clauses)


def other_sizes(waiting: Sequence[Rank]) -> tuple[set[int], str]:
    """Return the ranks that give different world sizes, and a sentence on them."""
    same: dict[str, list[Rank]] = defaultdict(list)
    for rank in waiting:
        _, found, size = rank.call.partition(_SIZE)
        if found:
            same[size].append(rank)
    told, clauses = _different(same, "give")
    return told, clauses and (
        f"ranks give init_process_group different world sizes: {clauses}. All must give the number "
        "of ranks"
    )


class _Creation(NamedTuple):
    """A group that a rank creates: its number on that rank, and its members."""

    rank: Rank
    number: int
    members: str

    def has_passed(self, other: _Creation) -> bool:
        """Whether a rank creates a later group than another one that still waits for it."""
        is_member = str(self.rank.rank) in re.findall(r"\d+|\.\.\.", other.members)
        return self.number > other.number and (is_member or "..." in other.members)


def other_groups(waiting: Sequence[Rank]) -> tuple[set[int], str]:
    """Return the ranks that create different groups, and a sentence on them."""
    creations = [
        _Creation(rank, int(found[1]), found[2])
        for rank in waiting
        if (found := _NEW_GROUP.fullmatch(rank.call))
    ]
    numbered = {creation.number for creation in creations}
    # Ranks that are no members of a group go on to the next one.
    if len({(c.number, c.members) for c in creations}) == len(numbered) and not any(
        one.has_passed(other) for one in creations for other in creations
    ):
        return set(), ""
    same: dict[str, list[Rank]] = defaultdict(list)
    for rank, number, members in creations:
        which = f", its group #{number}" if len(numbered) > 1 else ""
        same[f"new_group([{members}]){which}"].append(rank)
    told, clauses = _different(same, "call")
    return told, clauses and (
        f"ranks create different groups: {clauses}. All ranks must create the same groups in the "
        "same order"
    )

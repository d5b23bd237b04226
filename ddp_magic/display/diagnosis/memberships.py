"""Groups of which ranks know different members. Pure.

torch names a group by how many a rank has created before it. So where ranks create groups in
another order, or some create one more, a name stands for different groups on different ranks: they
exchange data with the wrong ones, and what else their records say of the group means nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ddp_magic.display.diagnosis.unrecorded import is_recent
from ddp_magic.display.diagnosis.words import names
from ddp_magic.display.rank import Rank


def mixed_up_groups(ranks: Sequence[Rank]) -> dict[str, str]:
    """Return the groups of which ranks know different members, with a sentence on the first one.

    Args:
        ranks: What is known of the ranks.

    Returns:
        By the group's name, the same sentence for all: one mistake makes all of them wrong.
    """
    members: dict[str, dict[int, tuple[int, ...]]] = defaultdict(dict)
    for rank in ranks:
        # A group that was destroyed may have been followed by another of its name.
        if rank.collectives is not None and (not rank.busy or rank.finished or is_recent(rank)):
            for group in rank.collectives.memberships:
                members[group.name][rank.rank] = group.ranks
    mixed_up = {name: by_rank for name, by_rank in members.items() if _is_mixed_up(by_rank)}
    if not mixed_up:
        return {}
    name, by_rank = next(iter(mixed_up.items()))
    same: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, ranks_of_group in by_rank.items():
        same[ranks_of_group].append(number)
    views = ", and ".join(f"of {names(of)} on {names(who)}" for of, who in same.items())
    sentence = (
        f"group {name!r} is {views}: what its collectives return is wrong, or "
        "they hang. All ranks must create the same groups in the same order, including those that "
        "they are not members of"
    )
    return dict.fromkeys(mixed_up, sentence)


def _is_mixed_up(by_rank: dict[int, tuple[int, ...]]) -> bool:
    """Whether a rank counts another one as a member, which knows other members."""
    return any(
        other in by_rank and set(by_rank[other]) != set(group)
        for group in by_rank.values()
        for other in group
    )

"""Groups of which ranks know different members."""

from __future__ import annotations

from dataclasses import replace

from ddp_magic.display.diagnosis.hangs import explain, mismatches, reasons
from ddp_magic.display.diagnosis.memberships import mixed_up_groups
from ddp_magic.display.rank import Rank
from ddp_magic.wire.collectives import GroupRecord, Membership, Operation
from ddp_magic.wire.states import Phase
from ddp_magic.wire.worker_events import Collectives
from tests.unit.fakes import finished

NOW = 1000.0
WORLD = (0, 1, 2)
# Rank 0 has created a group of ranks 0 and 1, then one of ranks 0 and 2; the others the reverse.
OTHER_ORDER = [
    {"0": WORLD, "1": (0, 1), "2": (0, 2)},
    {"0": WORLD, "2": (0, 1)},
    {"0": WORLD, "1": (0, 2)},
]
SAID = (
    "group '1' is of ranks 0, 1 on rank 0, and of ranks 0, 2 on rank 2: what its collectives "
    "return is wrong, or they hang. All ranks must create the same groups in the same order, "
    "including those that they are not members of"
)


def _rank(number: int, members: dict[str, tuple[int, ...]], used: str = "") -> Rank:
    rank = Rank(rank=number, pid=1, phase=Phase.RUNNING, line=9, still_s=20.0, heard=NOW)
    rank.call = "all_reduce" if used else "time.sleep"
    operation = Operation(number=1, name="all_reduce", created=NOW - 20, done=False)
    group = GroupRecord(
        name=used,
        backend="gloo",
        title="undefined",
        ranks=members.get(used, ()),
        enqueued=1,
        completed=0,
        operations=(operation,),
    )
    rank.collectives = Collectives(
        rank=number,
        time=NOW,
        groups=(group,) if used else (),
        memberships=tuple(Membership(name=name, ranks=of) for name, of in members.items()),
    )
    return rank


def _ranks() -> list[Rank]:
    """Ranks 0 and 1 call a collective of what is group 1 or 2; rank 2 sleeps."""
    used = ["1", "2", ""]
    return [_rank(n, OTHER_ORDER[n], used[n]) for n in WORLD]


def test_groups_that_were_created_in_another_order_are_the_reason() -> None:
    """It is said once, instead of who has not joined which of them."""
    assert explain(_ranks(), NOW) == [SAID]
    assert reasons(_ranks(), ["who waits"]) == [SAID]


def test_it_is_said_also_if_the_run_ends_well() -> None:
    ranks = _ranks()
    for rank in ranks:
        rank.take(finished(rank.rank))
    assert mismatches(ranks) == [SAID]


def test_groups_that_nobody_waits_for_are_not_mentioned() -> None:
    assert explain([_rank(n, OTHER_ORDER[n]) for n in WORLD], NOW) == []


def test_different_groups_of_one_name_are_no_mistake() -> None:
    """torch names the parts of a group that it splits alike: none has a rank of another."""
    parts = [_rank(n, {"0": (0, 1, 2, 3), "part": (n // 2 * 2, n // 2 * 2 + 1)}) for n in range(4)]
    assert mixed_up_groups(parts) == {}


def test_an_old_report_proves_nothing() -> None:
    """The rank has since destroyed its groups, and others have got their names."""
    ranks = _ranks()
    assert ranks[0].collectives is not None
    ranks[0].collectives = replace(ranks[0].collectives, time=NOW - 60)
    assert mixed_up_groups(ranks) == {}

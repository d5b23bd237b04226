"""Made-up profiles: what ranks would have measured of a cell whose course is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ddp_magic.display.profiles.profile import Code, Profile, summarize
from ddp_magic.wire.profile import UNKNOWN, Call, Group, Place, RankProfile, Sample, Spent

BEGAN = 1000.0  # s since the epoch
LOOK_S = 0.02
CELL = "/run/cell_3.py"
LINES = {kind: number for number, kind in enumerate(Spent, 1)}  # a line for each kind of work
SOURCE = "\n".join(f"work_{number}()" for number in range(1, 10))
CODE = Code(labels={CELL: ""}, sources={CELL: SOURCE})

# (what, for how many seconds)
Work = tuple[Spent, float]


def made(
    rank: int,
    works: Sequence[Work],
    *,
    calls: Sequence[tuple[int, float]] = (),
    steps: Sequence[float] = (),
    nproc: int = 2,
    call: Mapping[Spent, str] | None = None,
    size: int = 10**6,
    **more: object,
) -> RankProfile:
    """A rank that does one thing after the other, with a look each 20 ms.

    Args:
        rank: Which rank.
        works: What it does; a work in a collective takes the next number.
        calls: Number and time of each collective that it calls, in seconds since the beginning; by
            default each begins with its work.
        steps: When an optimizer steps, in seconds since the beginning.
        nproc: Number of ranks in the group.
        call: What a line calls that does this work.
        size: Bytes of each collective.
        more: Other fields of the profile.
    """
    kinds = list(Spent)
    places = [Place(CELL, LINES[kind], (call or {}).get(kind, "")) for kind in kinds]
    profile = RankProfile(rank=rank, began=BEGAN, complete=True, places=places)
    profile.groups = [Group("gloo:0", "default_pg", tuple(range(nproc)))]
    now, number, begins = BEGAN, 0, []
    for kind, seconds in works:
        if kind is Spent.COLLECTIVE:
            number += 1
            begins.append((number, now - BEGAN))
        group = (0, number) if kind is Spent.COLLECTIVE else (UNKNOWN, 0)
        for _ in range(round(seconds / LOOK_S)):
            now += LOOK_S
            profile.samples.append(Sample(now, LOOK_S, kind, kinds.index(kind), *group))
    profile.calls = [Call(0, n, "all_reduce", BEGAN + at, size) for n, at in calls or begins]
    profile.last = {0: max((call.number for call in profile.calls), default=0)}
    profile.steps = [BEGAN + at for at in steps]
    profile.ended = now
    for name, value in more.items():
        setattr(profile, name, value)
    return profile


def summary(*profiles: RankProfile, processors: int = 2) -> Profile:
    """Their summary."""
    for profile in profiles:
        profile.processors = processors
    found = summarize(profiles, len(profiles), CODE)
    assert found is not None
    return found

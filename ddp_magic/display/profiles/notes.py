"""What a profile does not know, and why; and what makes all of it longer. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from ddp_magic.display.profiles.bottleneck import CRITICAL, MIN_SAMPLES
from ddp_magic.display.profiles.facts import Machine
from ddp_magic.display.profiles.gpu_collectives import gpu_collectives
from ddp_magic.display.profiles.rank_times import RankTimes
from ddp_magic.display.profiles.sentences import LOCKED, NOTICE, SHORT_OF_PROCESSORS
from ddp_magic.display.rank_names import rank_names
from ddp_magic.wire.profile import Place, RankProfile

_TOLD = 0.5  # if waiting is told from moving data for a smaller part of the time, a note says so
_WORTH = 0.05  # time in collectives that is a smaller share needs no note


def notes(
    profiles: Sequence[RankProfile],
    times: Sequence[RankTimes],
    nproc: int,
    machine: Machine,
    verdict: str,
    name: Callable[[Place], str],
) -> list[str]:
    """Return the notes on a profile.

    Args:
        profiles: What ranks have measured.
        times: Where their time went.
        nproc: Number of ranks.
        machine: What they ran on.
        verdict: What is said already.
        name: Returns a line as a person reads it.
    """
    return [
        *_incomplete(profiles, nproc),
        *_waiting(profiles, times),
        *(() if verdict.startswith(LOCKED) else _locks(times, name)),
        *(() if verdict.startswith(SHORT_OF_PROCESSORS) else _processors(times, machine)),
        *(gpu_collectives(profiles) if any(p.device != "cpu" for p in profiles) else ()),
    ]


def _incomplete(profiles: Sequence[RankProfile], nproc: int) -> list[str]:
    found = []
    if missing := set(range(nproc)) - {profile.rank for profile in profiles}:
        found.append(
            f"no profile of {rank_names(missing)}: it wrote none, or had not begun its cell"
        )
    for profile in profiles:
        seconds = profile.ended - profile.began
        if not profile.complete:
            found.append(f"the profile of rank {profile.rank} ends after {seconds:.1f} s")
        elif not profile.samples:
            found.append(
                f"rank {profile.rank} was not sampled: its cell took {1000 * seconds:.0f} ms"
            )
    return found


def _waiting(profiles: Sequence[RankProfile], times: Sequence[RankTimes]) -> list[str]:
    long = [t for t in times if t.share(t.collective_s) > _WORTH]
    untold = [t.rank for t in long if t.waiting_s is None]
    told = min((t.told for t in long if t.waiting_s is not None), default=1.0)
    lost = sum(profile.lost for profile in profiles)
    why = "torch has no record of them"
    if lost:
        why = f"the records of {lost:,} collectives were overwritten before they could be read"
    if untold:
        return [
            f"in the collectives of {rank_names(untold)}, waiting for other ranks cannot be told "
            f"from moving data: {why}"
        ]
    if told < _TOLD:
        return [
            f"waiting and moving data are estimated from {100 * told:.0f} % of the time in "
            f"collectives: {why}"
        ]
    return []


def _processors(times: Sequence[RankTimes], machine: Machine) -> list[str]:
    if not times or min(t.samples for t in times) < MIN_SAMPLES:
        return []
    queued = statistics.fmean(t.queued or 0.0 for t in times)
    if queued < CRITICAL:
        return []
    return [
        f"for {100 * queued:.0f} % of their time the ranks were ready to run but had no processor, "
        f"which makes all else longer: there are {machine.processors} for "
        f"{len(times)} rank{'s' if len(times) > 1 else ''} and whatever else runs"
    ]


def _locks(times: Sequence[RankTimes], name: Callable[[Place], str]) -> list[str]:
    return [
        f"for {100 * t.locked:.0f} % of its time rank {t.rank} would compute, while another of its "
        f"threads holds the interpreter lock, at {name(t.locked_by)}"
        for t in times
        if t.locked >= NOTICE and t.samples >= MIN_SAMPLES
    ]

"""What each cause costs the ranks of a run, and which rank is the culprit. Pure.

A cause costs a rank the time that it spends in it, and the time that it waits for another rank
which is in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ddp_magic.display.profiles.rank_times import RankTimes
from ddp_magic.wire.profile import Spent

_ONE_RANK = 0.6  # of the waiting is for one rank: it is the culprit
_Waits = dict[tuple[int, Spent | None], float]
_NAMED = (Spent.LOADING, Spent.READING, Spent.SAVING, Spent.PRINTING, Spent.IDLE)


@dataclass(frozen=True)
class Cause:
    """What a cause costs.

    Attributes:
        own: Share of each rank's time that it spends in the cause itself.
        waits: Share of each rank's time that it waits for others because of the cause.
        own_cost: Share of the time of all ranks that they spend in the cause.
        cost: The same with the time that they wait because of it.
        culprit: The rank that the others wait for; None if it is not one alone.
        others_wait: Share of the others' time that they wait for it; 0 without one.
        gone: Whether the culprit had finished its cell for most of that time, or was not seen.
    """

    own: Mapping[int, float]
    waits: Mapping[int, float]
    own_cost: float
    cost: float
    culprit: int | None = None
    others_wait: float = 0.0
    gone: bool = False

    @property
    def most(self) -> float:
        """The greatest of the ranks' shares: no more can be saved."""
        return max(self.own[rank] + self.waits[rank] for rank in self.own)

    @property
    def culprits_own(self) -> float:
        """Share of the culprit's time that it spends in the cause."""
        return 0.0 if self.culprit is None else self.own.get(self.culprit, 0.0)


def cause_of(times: Sequence[RankTimes], kind: Spent) -> Cause:
    """Return what loading, reading, saving, printing or idling costs."""
    own = {t.rank: t.share(t.seconds(kind)) for t in times}
    return _with_waits(times, own, {kind})


def rest(times: Sequence[RankTimes]) -> Cause:
    """Return what it costs to wait for ranks that do none of these: they compute, or are gone."""
    kinds = {kind for kind in (*Spent, None) if kind not in _NAMED}
    return _with_waits(times, dict.fromkeys((t.rank for t in times), 0.0), kinds)


def own_cause(times: Sequence[RankTimes], own: Mapping[int, float]) -> Cause:
    """Return what a cause costs that no rank waits for another because of.

    Args:
        times: Where the ranks' time went.
        own: Share of each rank's time.
    """
    cost = _mean(times, own)
    return Cause(own, dict.fromkeys(own, 0.0), cost, cost)


def of_spent(times: Sequence[RankTimes], *kinds: Spent) -> Cause:
    """Return `own_cause` of what the ranks' time went into."""
    return own_cause(times, {t.rank: sum(t.share(t.seconds(k)) for k in kinds) for t in times})


def _with_waits(
    times: Sequence[RankTimes], own: Mapping[int, float], kinds: Collection[Spent | None]
) -> Cause:
    waits = dict.fromkeys(own, 0.0)
    waited_for: dict[int, float] = defaultdict(float)
    gone: dict[int, float] = defaultdict(float)
    ranks = {t.rank: t for t in times}
    for t in times:
        for (other, spent), seconds in _clear_waits(t, ranks).items():
            if spent in kinds:
                waits[t.rank] += t.share(seconds)
                waited_for[other] += seconds
                gone[other] += seconds if spent is None else 0.0
    own_cost = _mean(times, own)
    cost = own_cost + _mean(times, waits)
    rank = max(waited_for, key=lambda rank: waited_for[rank], default=None)
    if rank is None or waited_for[rank] < _ONE_RANK * sum(waited_for.values()):
        return Cause(own, waits, own_cost, cost)
    others = [t for t in times if t.rank != rank]
    others_wait = _mean(others, waits)
    if others_wait <= _mean(others, own):  # they do the same themselves
        return Cause(own, waits, own_cost, cost)
    is_gone = gone[rank] > 0.5 * waited_for[rank]
    return Cause(own, waits, own_cost, cost, rank, others_wait, is_gone)


def _mean(times: Sequence[RankTimes], shares: Mapping[int, float]) -> float:
    """Return the share of the time of all ranks, from those of each rank's own."""
    total_s = sum(t.total_s for t in times)
    return sum(shares[t.rank] * t.total_s for t in times) / total_s if total_s else 0.0


def _clear_waits(times: RankTimes, ranks: Mapping[int, RankTimes]) -> _Waits:
    """Return a rank's waits by what they are for.

    A rank that was just arriving did what it does else meanwhile. And one that saves first and then
    computes as long as the others do is waited for while it computes, but because it has saved.

    Args:
        times: Those of the rank.
        ranks: Those of all ranks.
    """
    clear = {key: s for key, s in times.waits.items() if key[1] is not Spent.COLLECTIVE}
    found = dict(clear)
    for (rank, spent), seconds in times.waits.items():
        if spent is not Spent.COLLECTIVE:
            continue
        same = {key: s for key, s in clear.items() if key[0] == rank} or {(rank, spent): 1.0}
        for key, weight in same.items():
            found[key] = found.get(key, 0.0) + seconds * weight / sum(same.values())
    for rank in {rank for rank, _ in found} & ranks.keys():
        _blame_the_surplus(found, times, ranks[rank])
    return found


def _blame_the_surplus(waits: _Waits, times: RankTimes, other: RankTimes) -> None:
    """Move a wait for a rank that computes no longer to what else that rank does longer."""
    computing = (other.rank, Spent.COMPUTE)
    surplus = {kind: other.seconds(kind) - times.seconds(kind) for kind in (*_NAMED, Spent.COMPUTE)}
    unexplained = waits.get(computing, 0.0) - max(0.0, surplus.pop(Spent.COMPUTE))
    missing = {
        (other.rank, kind): seconds - waits.get((other.rank, kind), 0.0)
        for kind, seconds in surplus.items()
    }
    missing = {key: seconds for key, seconds in missing.items() if seconds > 0.0}
    moved = min(unexplained, sum(missing.values()))
    if moved <= 0.0:
        return
    waits[computing] -= moved
    for key, seconds in missing.items():
        waits[key] = waits.get(key, 0.0) + moved * seconds / sum(missing.values())

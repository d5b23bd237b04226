"""Of the time in collectives: what is waiting for other ranks, and what is moving data. Pure.

A collective moves data once the last of its ranks has called it. All ranks are on one machine, so
their clocks agree: a rank that is seen in a collective which another rank has not called yet waits
for that rank. The rank that comes last does not wait.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ddp_magic.wire.profile import PEER, UNKNOWN, RankProfile, Sample, Spent


class _Calls(NamedTuple):
    """The collectives of one group that one rank has called, as far as they are known."""

    times: list[float]
    numbers: list[int]
    last: int | None


@dataclass(frozen=True)
class Wait:
    """What is known of a sample in a collective.

    Attributes:
        for_rank: The last rank to call the collective, if it had not called it; None if all had.
        while_in: What that rank did meanwhile: COLLECTIVE if it was in another one, or came at this
            moment; None if it had ended.
    """

    for_rank: int | None = None
    while_in: Spent | None = None


class Waits:
    """Tells waiting from moving data.

    Args:
        profiles: Those of all ranks.
    """

    def __init__(self, profiles: Sequence[RankProfile]) -> None:
        self._profiles = {profile.rank: profile for profile in profiles}
        self._found: dict[tuple[int, float], Wait | None] = {}
        self._looks = {p.rank: [sample.time for sample in p.samples] for p in profiles}
        self._calls: dict[str, dict[int, _Calls]] = defaultdict(dict)
        members: dict[str, set[int]] = defaultdict(set)
        for profile in profiles:
            for index, group in enumerate(profile.groups):
                members[group.key].update(group.ranks)
                calls = [call for call in profile.calls if call.group == index]
                self._calls[group.key][profile.rank] = _Calls(
                    [call.created for call in calls],
                    [call.number for call in calls],
                    profile.last.get(index),
                )
        # A rank that has not used a group has no record of it.
        self._members = {key: members[key] or set(calls) for key, calls in self._calls.items()}

    def of(self, rank: int, sample: Sample) -> Wait | None:
        """Return what a sample in a collective is; None if nobody can tell.

        Args:
            rank: Whose sample it is.
            sample: The sample.
        """
        key = rank, sample.time  # asked for the whole cell, and again for its loop
        if key not in self._found:
            self._found[key] = self._of(rank, sample)
        return self._found[key]

    def _of(self, rank: int, sample: Sample) -> Wait | None:
        if sample.group == UNKNOWN:
            return None
        key = self._profiles[rank].groups[sample.group].key
        if key.startswith(PEER):
            return self._of_peer(int(key.removeprefix(PEER)), sample)
        absent: dict[int, float] = {}
        unknown = False
        for other in self._members[key] - {rank}:
            came = self._came(key, other, sample) if other in self._profiles else None
            if came is None:
                unknown = True
            elif came > sample.time:
                absent[other] = came
        if absent:
            last = max(absent, key=lambda other: (absent[other], -other))
            return Wait(last, self._doing(last, sample.time))
        return None if unknown else Wait()

    def _of_peer(self, peer: int, sample: Sample) -> Wait | None:
        """Return what a send or a receive is: torch's record does not have them."""
        if peer not in self._profiles:
            return None
        doing = self._doing(peer, sample.time)
        return Wait() if doing is Spent.COLLECTIVE else Wait(peer, doing)

    def _came(self, key: str, other: int, sample: Sample) -> float | None:
        """Return when a rank called a collective: if not exactly, before or after the sample."""
        calls = self._calls[key].get(other)
        if calls is None:
            return float("inf")
        number = sample.number
        at = bisect_left(calls.numbers, number)
        if at < len(calls.numbers) and calls.numbers[at] == number:
            return calls.times[at]
        if calls.last is not None and calls.last < number:
            return float("inf")
        # Numbers grow with time: a later collective tells of an earlier one, and the reverse.
        then = bisect_right(calls.times, sample.time)
        if then and calls.numbers[then - 1] > number:
            return calls.times[then - 1]
        if then < len(calls.numbers) and calls.numbers[then] < number:
            return calls.times[then]
        return None

    def _doing(self, rank: int, time: float) -> Spent | None:
        """Return what a rank was doing, by its nearest look: ranks look at the same moments."""
        samples, looks = self._profiles[rank].samples, self._looks[rank]
        after = bisect_left(looks, time)
        if after == len(looks):
            return None
        nearer = after > 0 and time - looks[after - 1] < looks[after] - time
        return samples[after - nearer].spent

"""Where the time of each rank went, in seconds and shares, from what it has measured. Pure."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ddp_magic.display.profiles.waits import Waits
from ddp_magic.wire.profile import Place, RankProfile, Sample, Spent

MIN_STEPS = 5  # with fewer, the whole cell is judged
_MIN_TOLD = 5  # samples in collectives that are told apart, for a statement about all of them
_SMALL = 0.1  # or so small a share of the time in collectives

Window = tuple[float, float]


@dataclass(kw_only=True)
class RankTimes:
    """Where the time of one rank went, in seconds.

    Attributes:
        rank: Which rank.
        node: Name of its node; empty on the kernel's own machine.
        device: `cpu`, or the name of its GPU.
        total_s: The whole time.
        compute_s: Computing, and all that is none of the others.
        collective_s: In collectives.
        waiting_s: Of that, waiting for other ranks; None if it cannot be told from moving data.
        moving_s: Of that, moving data; None likewise.
        loading_s: In the data loader.
        reading_s: Reading files, not in the data loader.
        saving_s: Saving.
        printing_s: Printing and displaying.
        idle_s: Sleeping, and waiting for something else.
        device_s: Waiting for the GPU; 0 on a CPU.
        queued: Share of the whole cell's time for which it was ready to run but had no processor;
            part of the others. None if it is not known.
        locked: Share of the whole cell's time for which it would have computed, while another of
            its threads held the interpreter lock; part of the others.
        locked_by: The line of that thread.
        steps: Number of the optimizer's steps.
        step_s: Median time of a step; None if there are too few.
        slow_step_s: Nine of ten steps take no more; None likewise.
        own_step_s: The median without the waiting for other ranks; None if it is not known.
        samples: Number of samples.
        told: Share of the time in collectives for which waiting is told from moving data.
        complete: Whether the rank has reported its end.
        waits: Seconds of waiting, by the rank that was waited for and what that rank did meanwhile;
            None: it had ended.
    """

    rank: int
    node: str = ""
    device: str = "cpu"
    total_s: float = 0.0
    compute_s: float = 0.0
    collective_s: float = 0.0
    waiting_s: float | None = 0.0
    moving_s: float | None = 0.0
    loading_s: float = 0.0
    reading_s: float = 0.0
    saving_s: float = 0.0
    printing_s: float = 0.0
    idle_s: float = 0.0
    device_s: float = 0.0
    queued: float | None = None
    locked: float = 0.0
    locked_by: Place = field(default_factory=Place)
    steps: int = 0
    step_s: float | None = None
    slow_step_s: float | None = None
    own_step_s: float | None = None
    samples: int = 0
    told: float = 1.0
    complete: bool = True
    waits: dict[tuple[int, Spent | None], float] = field(default_factory=dict)

    def seconds(self, kind: Spent) -> float:
        """Return the time that went into something."""
        return {
            Spent.COMPUTE: self.compute_s,
            Spent.COLLECTIVE: self.collective_s,
            Spent.LOADING: self.loading_s,
            Spent.READING: self.reading_s,
            Spent.SAVING: self.saving_s,
            Spent.PRINTING: self.printing_s,
            Spent.IDLE: self.idle_s,
            Spent.DEVICE: self.device_s,
        }[kind]

    @property
    def sending_s(self) -> float:
        """Moving data; all of the time in collectives if it cannot be told from waiting."""
        return self.collective_s if self.moving_s is None else self.moving_s

    def share(self, seconds: float | None) -> float:
        """Return a part of the whole time, from 0 to 1."""
        return (seconds or 0.0) / self.total_s if self.total_s else 0.0


def rank_times(profile: RankProfile, waits: Waits, window: Window | None = None) -> RankTimes:
    """Return where the time of a rank went.

    Args:
        profile: What it has measured.
        waits: Tells waiting from moving data.
        window: Only between these two times.
    """
    samples = _within(profile.samples, window)
    spent: dict[Spent, float] = defaultdict(float)
    for sample in samples:
        spent[sample.spent] += sample.seconds
    times = RankTimes(
        rank=profile.rank,
        node=profile.node,
        device=profile.device,
        total_s=sum(spent.values()),
        compute_s=spent[Spent.COMPUTE],
        collective_s=spent[Spent.COLLECTIVE],
        loading_s=spent[Spent.LOADING],
        reading_s=spent[Spent.READING],
        saving_s=spent[Spent.SAVING],
        printing_s=spent[Spent.PRINTING],
        idle_s=spent[Spent.IDLE],
        device_s=spent[Spent.DEVICE],
        queued=_queued(profile),
        locked=_locked(profile),
        locked_by=profile.places[max(profile.beside, key=lambda place: profile.beside[place])]
        if profile.beside
        else Place(),
        samples=len(samples),
        complete=profile.complete,
    )
    if times.collective_s:
        _split(times, samples, waits)
    _add_steps(times, profile, window)
    return times


def _split(times: RankTimes, samples: Sequence[Sample], waits: Waits) -> None:
    """Tell waiting from moving data; samples that are told stand for the others."""
    waited: dict[tuple[int, Spent | None], float] = defaultdict(float)
    moving_s, told = 0.0, 0
    for sample in samples:
        if sample.spent is Spent.COLLECTIVE and (wait := waits.of(times.rank, sample)) is not None:
            told += 1
            if wait.for_rank is None:
                moving_s += sample.seconds
            else:
                waited[wait.for_rank, wait.while_in] += sample.seconds
    waited_s = sum(waited.values())
    known_s = moving_s + waited_s
    times.told = known_s / times.collective_s
    enough = told >= _MIN_TOLD or times.told > 0.9 or times.share(times.collective_s) < _SMALL
    if not known_s or not enough:
        times.waiting_s = times.moving_s = None
        return
    times.moving_s = moving_s / times.told
    times.waiting_s = waited_s / times.told  # not the rest: rounding makes it less than 0
    times.waits = {key: seconds / times.told for key, seconds in waited.items()}


def _add_steps(times: RankTimes, profile: RankProfile, window: Window | None) -> None:
    times.steps = len(profile.steps)
    steps = sorted(profile.steps)
    durations = [after - before for before, after in itertools.pairwise(steps)]
    if len(durations) < 2:
        return
    times.step_s = statistics.median(durations)
    times.slow_step_s = sorted(durations)[math.ceil(0.9 * len(durations)) - 1]
    if window is not None and times.waiting_s is not None:
        times.own_step_s = times.step_s * (1.0 - times.share(times.waiting_s))


def _queued(profile: RankProfile) -> float | None:
    seconds = profile.ended - profile.began
    return None if profile.queued_s is None or not seconds else profile.queued_s / seconds


def _locked(profile: RankProfile) -> float:
    seconds = profile.ended - profile.began
    # A thread without a processor does not run either.
    stalled_s = sum(profile.beside.values()) - (profile.queued_s or 0.0)
    return max(0.0, stalled_s / seconds) if seconds else 0.0


def loop_of(profile: RankProfile) -> Window | None:
    """Return the times of the first and last step of the optimizer; None with too few steps."""
    if len(profile.steps) < MIN_STEPS:
        return None
    return min(profile.steps), max(profile.steps)


def _within(samples: Sequence[Sample], window: Window | None) -> Sequence[Sample]:
    if window is None:
        return samples
    return [sample for sample in samples if window[0] < sample.time <= window[1]]


@dataclass(frozen=True, kw_only=True)
class LineTime:
    """The time of one line of the user's code.

    Attributes:
        place: The line; `call` is what it has called for most of that time.
        spent: What most of the time went into.
        seconds: The time, mean of all ranks.
        share: The same as a share of a rank's time.
        by_rank: Share of each rank's own time.
    """

    place: Place
    spent: Spent
    seconds: float
    share: float
    by_rank: dict[int, float]


_Samples = list[tuple[int, Sample, str]]  # rank, sample, and what the line had called


def line_times(profiles: Sequence[RankProfile]) -> list[LineTime]:
    """Return the lines of the user's code, the most expensive first.

    Args:
        profiles: Those of all ranks.
    """
    lines: dict[Place, _Samples] = defaultdict(list)
    totals = _sort_samples(profiles, None, lambda place, _spent: lines[place])
    return _by_share(lines, totals)


def line_times_by_kind(
    profiles: Sequence[RankProfile], window: Window | None
) -> dict[Spent, list[LineTime]]:
    """Return the same for each kind of time that was spent.

    Args:
        profiles: Those of all ranks.
        window: Only between these two times.
    """
    lines: dict[Spent, dict[Place, _Samples]] = defaultdict(lambda: defaultdict(list))
    totals = _sort_samples(profiles, window, lambda place, spent: lines[spent][place])
    return {spent: _by_share(lines[spent], totals) for spent in lines}


def _sort_samples(
    profiles: Sequence[RankProfile],
    window: Window | None,
    list_of: Callable[[Place, Spent], _Samples],
) -> dict[int, float]:
    """Add each sample to the list of its line; return the whole time of each rank."""
    totals: dict[int, float] = defaultdict(float)
    for profile in profiles:
        for sample in _within(profile.samples, window):
            totals[profile.rank] += sample.seconds
            place = profile.places[sample.place]
            if place.line:
                found = list_of(place._replace(call=""), sample.spent)
                found.append((profile.rank, sample, place.call))
    return totals


def _by_share(lines: Mapping[Place, _Samples], totals: Mapping[int, float]) -> list[LineTime]:
    found = [_line_time(place, samples, totals) for place, samples in lines.items()]
    return sorted(found, key=lambda line: -line.share)


def _line_time(
    place: Place, samples: Sequence[tuple[int, Sample, str]], totals: Mapping[int, float]
) -> LineTime:
    by_rank = dict.fromkeys(totals, 0.0)
    kinds: dict[Spent, float] = defaultdict(float)
    calls: dict[str, float] = defaultdict(float)
    for rank, sample, call in samples:
        by_rank[rank] += sample.seconds
        kinds[sample.spent] += sample.seconds
        calls[call] += sample.seconds
    shares = {rank: by_rank[rank] / totals[rank] for rank in totals if totals[rank]}
    return LineTime(
        place=place._replace(call=max(calls, key=lambda call: calls[call])),
        spent=max(kinds, key=lambda kind: kinds[kind]),
        seconds=sum(by_rank.values()) / len(totals),
        share=statistics.fmean(shares.values()) if shares else 0.0,
        by_rank=shares,
    )

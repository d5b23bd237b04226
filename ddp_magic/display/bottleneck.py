"""What limits a run: Verdict, Why and Next, from where the time of its ranks went. Pure.

As in TraceML, a part of the time below 10 % is not worth a word, and one above 20 % gives the run
its name. A cause costs a rank the time that it spends in it, and the time that it waits for another
rank which is in it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ddp_magic.display.rank import rank_names
from ddp_magic.display.rank_times import LineTime, RankTimes
from ddp_magic.wire.profile import LOADER_WORKERS, Spent

NOTICE, CRITICAL = 0.1, 0.2
MIN_SAMPLES = 25  # per rank
_ONE_RANK = 0.6  # of the waiting is for one rank: it is a straggler
_SMALL_BYTES = 64 * 1024  # a smaller collective takes as long as an empty one

_SAME_WORK = 1.25  # a rank with less than so much of another's processor time works no more

LineName = Callable[[LineTime], str]


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The collectives of the time that is judged.

    Attributes:
        per_step: How many a step has; None without steps.
        mean_bytes: Their mean size.
        names: Their names.
    """

    per_step: float | None = None
    mean_bytes: float = 0.0
    names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Machine:
    """What the ranks run on.

    Attributes:
        processors: Number of processors.
        threads: Number of threads of each rank's operations.
    """

    processors: int
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """What limits a run.

    Attributes:
        verdict: What it is, in a sentence.
        why: What it is concluded from.
        advice: The change to try next, and what it can save at most.
    """

    verdict: str
    why: str
    advice: str

    @property
    def lines(self) -> list[str]:
        """The three lines to show."""
        named = {"Verdict": self.verdict, "Why": self.why, "Next": self.advice}
        return [f"{name + ':':9}{text}" for name, text in named.items() if text]


@dataclass(frozen=True)
class _Cause:
    """What a cause costs.

    Attributes:
        cost: Share of each rank's time: its own, and that of waiting for others; mean of the ranks.
        most: The greatest of the ranks' shares: no more can be saved.
        own: Share of each rank's time that it spends in the cause itself.
        waits: Share of each rank's time that it waits for others because of the cause.
        culprit: The rank that the others wait for; None if it is not one alone.
    """

    cost: float
    most: float
    own: Mapping[int, float]
    waits: Mapping[int, float]
    culprit: int | None


def judge(
    times: Sequence[RankTimes],
    lines: Mapping[Spent, Sequence[LineTime]],
    name: LineName,
    traffic: Traffic,
    machine: Machine,
) -> Bottleneck:
    """Return what limits a run.

    Args:
        times: Where the ranks' time went.
        lines: The lines of the user's code, by what their time went into.
        name: Returns a line as a person reads it.
        traffic: The collectives.
        machine: What the ranks run on.
    """
    if not times or min(t.samples for t in times) < MIN_SAMPLES:
        return _too_short(times)
    case = _Case(times, lines, name, traffic, machine)
    costs = {
        case.loading: case.cause(Spent.LOADING),
        case.saving: case.cause(Spent.SAVING),
        case.printing: case.cause(Spent.PRINTING),
        case.idling: case.cause(Spent.IDLE),
        case.straggling: case.cause(None),
        case.communicating: case.moving(),
    }
    tell = max(costs, key=lambda tell: costs[tell].cost)
    if costs[tell].cost < NOTICE and (queued := case.queued()).cost >= CRITICAL:
        return case.queueing(queued)
    if costs[tell].cost < NOTICE:
        return case.computing(sum(cause.cost for cause in costs.values()))
    found = tell(costs[tell])
    if costs[tell].cost >= CRITICAL:
        return found
    return Bottleneck(verdict=f"somewhat {found.verdict}", why=found.why, advice=found.advice)


def _too_short(times: Sequence[RankTimes]) -> Bottleneck:
    seconds = min((t.total_s for t in times), default=0.0)
    looks = min((t.samples for t in times), default=0)
    return Bottleneck(
        verdict=f"too short to say: {seconds:.1f} s of a rank's time were seen, in {looks} samples",
        why="",
        advice="profile a longer run",
    )


class _Case:
    """What is known of a run, and a sentence for each cause."""

    def __init__(
        self,
        times: Sequence[RankTimes],
        lines: Mapping[Spent, Sequence[LineTime]],
        name: LineName,
        traffic: Traffic,
        machine: Machine,
    ) -> None:
        self._times = times
        self._lines = lines
        self._name = name
        self._traffic = traffic
        self._machine = machine
        self._ranks = [t.rank for t in times]

    # --- what a cause costs -------------------------------------------------------------------

    def cause(self, kind: Spent | None) -> _Cause:
        """Return what one kind of work costs.

        Args:
            kind: LOADING, ...; None for all that a rank is waited for while it does none of these.
        """
        named = (Spent.LOADING, Spent.SAVING, Spent.PRINTING, Spent.IDLE)
        kinds = [s for s in (*Spent, None) if s not in named] if kind is None else [kind]
        own = dict.fromkeys(self._ranks, 0.0)
        waits = dict.fromkeys(self._ranks, 0.0)
        waited_for: dict[int, float] = defaultdict(float)
        for t in self._times:
            if kind is not None:
                own[t.rank] = t.share(_seconds(t, kind))
            for (other, spent), seconds in _clear_waits(t).items():
                if spent in kinds:
                    waits[t.rank] += t.share(seconds)
                    waited_for[other] += seconds
        return _cause(own, waits, self._culprit(own, waits, waited_for))

    def _culprit(
        self, own: Mapping[int, float], waits: Mapping[int, float], waited_for: Mapping[int, float]
    ) -> int | None:
        if not waited_for:
            return None
        rank = max(waited_for, key=lambda rank: waited_for[rank])
        for_it = waited_for[rank] >= _ONE_RANK * sum(waited_for.values())
        others = [other for other in self._ranks if other != rank]
        itself = statistics.fmean(own[other] for other in others)
        return rank if for_it and statistics.fmean(waits[o] for o in others) > itself else None

    def moving(self) -> _Cause:
        """Return what moving data costs; with all of the waiting where it cannot be told apart."""
        own = {
            t.rank: t.share(t.collective_s if t.moving_s is None else t.moving_s)
            for t in self._times
        }
        return _cause(own, dict.fromkeys(own, 0.0), None)

    def queued(self) -> _Cause:
        """Return what a lack of processors costs: it makes all else longer."""
        own = {t.rank: t.queued or 0.0 for t in self._times}
        return _cause(own, dict.fromkeys(own, 0.0), None)

    # --- one sentence for each cause ----------------------------------------------------------

    def loading(self, cause: _Cause) -> Bottleneck:
        """Say that the ranks wait for their data."""
        line = self._line(Spent.LOADING)
        has_workers = any(
            line.place.call == LOADER_WORKERS for line in self._lines.get(Spent.LOADING, ())
        )
        workers = "with worker processes" if has_workers else "without worker processes"
        processors = f"{self._machine.processors} processors for {_ranks(len(self._ranks))}"
        if has_workers:
            change = (
                "more num_workers in the DataLoader, or less work for each item: a cache, "
                f"smaller files, transforms in batches ({processors})"
            )
        else:
            change = (
                f"num_workers=2 or more in the DataLoader ({processors}), so that batches load "
                "during computation"
            )
        if cause.culprit is not None:
            verdict = (
                f"input-bound on rank {cause.culprit}: it waits "
                f"{_percent(cause.own[cause.culprit])} of its time for the DataLoader, and "
                + self._others_wait(cause, "for it")
            )
            change += f"; look why the items of rank {cause.culprit} take longer than the others'"
        else:
            mean = statistics.fmean(cause.own.values())
            verdict = (
                f"input-bound: {self._all()} {_percent(mean)} of their time for the DataLoader"
            )
            if len(self._ranks) == 1:
                verdict = (
                    f"input-bound: the rank waits {_percent(mean)} of its time for the DataLoader"
                )
            if cause.cost - mean > NOTICE / 2:
                verdict += f", and {_percent(cause.cost - mean)} for each other's"
        return Bottleneck(
            verdict=verdict,
            why=f"{line}the DataLoader works {workers}; {self._spread(Spent.LOADING)}",
            advice=f"{change}: saves at most {_percent(cause.most)} of the time",
        )

    def saving(self, cause: _Cause) -> Bottleneck:
        """Say that the ranks save too often."""
        all_save = len(self._ranks) > 1 and min(cause.own.values()) > 0.5 * max(cause.own.values())
        alone = "save on rank 0 alone, and less often" if all_save else "save less often"
        return Bottleneck(
            verdict=self._verdict("checkpoint-bound", "saves", cause),
            why=self._line(Spent.SAVING) + self._spread(Spent.SAVING),
            advice=f"{alone}, such as each 10th time: saves at most {_percent(0.9 * cause.most)} "
            "of the time",
        )

    def printing(self, cause: _Cause) -> Bottleneck:
        """Say that the ranks print too much."""
        return Bottleneck(
            verdict=self._verdict("output-bound", "prints or displays", cause),
            why=self._line(Spent.PRINTING) + self._spread(Spent.PRINTING),
            advice="print on one rank, and each 50th time: saves at most "
            f"{_percent(cause.most)} of the time",
        )

    def idling(self, cause: _Cause) -> Bottleneck:
        """Say that a rank, or all of them, do nothing."""
        head = "idle" if cause.culprit is None else "straggler"
        return Bottleneck(
            verdict=self._verdict(head, "sleeps, or waits for something", cause),
            why=self._line(Spent.IDLE) + self._spread(Spent.IDLE),
            advice="do other work there, or do not wait: saves at most "
            f"{_percent(cause.most)} of the time",
        )

    def straggling(self, cause: _Cause) -> Bottleneck:
        """Say that the ranks wait for one that computes longer, or for each other in turns."""
        busy = {t.rank: 1.0 - t.share(t.waiting_s) for t in self._times}
        shares = ", ".join(f"rank {rank} {_percent(busy[rank])}" for rank in sorted(busy)[:8])
        most = f"saves at most {_percent(cause.most)} of the time"
        if cause.culprit is None:
            return Bottleneck(
                verdict=f"uneven work: the ranks wait {_percent(cause.cost)} of their time for "
                "each other, in turns",
                why=f"in most steps another rank comes last; busy: {shares}",
                advice=f"give all ranks batches of the same cost, such as of similar sizes: {most}",
            )
        rank = cause.culprit
        compute = [line for line in self._lines.get(Spent.COMPUTE, ()) if line.by_rank.get(rank)]
        longest = max(compute, key=lambda line: line.by_rank[rank], default=None)
        at = "" if longest is None else f", most of it at {self._name(longest)}"
        queued = {t.rank: t.queued or 0.0 for t in self._times}
        work = {other: busy[other] - queued[other] for other in busy}
        most_of_others = max(work[other] for other in work if other != rank)
        advice = f"give rank {rank} as much work as the others, or find what slows it down"
        if queued[rank] > NOTICE and work[rank] < _SAME_WORK * most_of_others:
            at += f"; for {_percent(queued[rank])} of its time it was ready to run but had no "
            at += "processor"
            advice = f"free processors for rank {rank}: other processes compete with it"
        return Bottleneck(
            verdict=f"straggler: {self._others_wait(cause, f'for rank {rank}')}, which computes",
            why=f"rank {rank} comes last; busy: {shares}{at}",
            advice=f"{advice}: {most}",
        )

    def communicating(self, cause: _Cause) -> Bottleneck:
        """Say that collectives move too much, or too often."""
        told = all(t.moving_s is not None for t in self._times)
        mean = _percent(cause.cost)
        what = f"{self._all('spend')} {mean} of {self._their} time in collectives, " + (
            "moving data" if told else "of which some may be waiting for other ranks"
        )
        traffic = self._traffic
        size = f"{_bytes(traffic.mean_bytes)} on average"
        step = "" if traffic.per_step is None else f"{traffic.per_step:.3g} collectives in a step, "
        line = self._lines.get(Spent.COLLECTIVE, ())
        in_backward = bool(line) and "backward" in line[0].place.call
        if traffic.mean_bytes < _SMALL_BYTES:
            change, most = "fewer collectives: combine small tensors into one", cause.most
        elif in_backward:
            change = (
                "DDP's no_sync() in 3 of 4 backward passes (gradient accumulation), or larger "
                "batches"
            )
            most = 0.75 * cause.most
        else:
            change, most = "half precision for what is sent, or send it less often", cause.most
        return Bottleneck(
            verdict=f"communication-bound: {what}",
            why=f"{self._line(Spent.COLLECTIVE)}{step}{size}",
            advice=f"{change}: saves at most {_percent(most)} of the time",
        )

    def queueing(self, cause: _Cause) -> Bottleneck:
        """Say that there are too few processors."""
        there = f"{self._machine.processors} processors for {_ranks(len(self._ranks))}"
        return Bottleneck(
            verdict=f"short of processors: {self._all('have')} no processor for "
            f"{_percent(cause.cost)} of {self._their} time, although ready to run",
            why=f"{there} with {_threads(self._machine.threads)} each, and whatever else runs; "
            + self._spread(Spent.COMPUTE),
            advice="fewer ranks, threads or DataLoader workers, or fewer other programs: saves at "
            f"most {_percent(cause.most)} of the time",
        )

    def computing(self, rest: float) -> Bottleneck:
        """Say that there is nothing to gain but by faster computation."""
        compute = statistics.fmean(t.share(t.compute_s + t.device_s) for t in self._times)
        device = statistics.fmean(t.share(t.device_s) for t in self._times)
        kind = Spent.DEVICE if device > 0.5 * compute else Spent.COMPUTE
        what = (
            f"compute-bound: {self._all('compute')} for {_percent(compute)} of {self._their} time"
        )
        if kind is Spent.DEVICE:
            what = (
                f"GPU-bound: {self._all()} {_percent(device)} of {self._their} time for the GPU, "
                "which computes or communicates"
            )
        per_rank = self._machine.processors // len(self._ranks)
        on_cpu = all(t.device == "cpu" for t in self._times)
        if on_cpu and per_rank > self._machine.threads:
            saved = compute * (1 - self._machine.threads / per_rank)
            change = (
                f"torch.set_num_threads({per_rank}), since a rank computes with "
                f"{_threads(self._machine.threads)}: saves at most {_percent(saved)} of the time"
            )
        else:
            change = (
                "faster computation, such as torch.autocast or torch.compile; all else together "
                f"can save at most {_percent(min(rest, 1.0 - compute))} of the time"
            )
        return Bottleneck(
            verdict=what, why=self._line(kind) + self._spread(kind, and_device=True), advice=change
        )

    # --- words --------------------------------------------------------------------------------

    def _all(self, verb: str = "wait") -> str:
        if len(self._ranks) > 1:
            return f"the ranks {verb}"
        return f"the rank {'has' if verb == 'have' else verb + 's'}"

    @property
    def _their(self) -> str:
        return "their" if len(self._ranks) > 1 else "its"

    def _others_wait(self, cause: _Cause, whom: str) -> str:
        others = [rank for rank in self._ranks if rank != cause.culprit]
        mean = _percent(statistics.fmean(cause.waits[rank] for rank in others))
        one = len(others) == 1
        names = rank_names(others, span=3)
        return f"{names} wait{'s' if one else ''} {mean} of {'its' if one else 'their'} time {whom}"

    def _verdict(self, head: str, does: str, cause: _Cause) -> str:
        if cause.culprit is None:
            mean = statistics.fmean(cause.own.values())
            verb = does if len(self._ranks) == 1 else _plural(does)
            who = "the rank" if len(self._ranks) == 1 else "the ranks"
            also = ""
            if cause.cost - mean > NOTICE / 2:
                also = f", and wait {_percent(cause.cost - mean)} for each other's"
            return f"{head}: {who} {verb} for {_percent(mean)} of {self._their} time{also}"
        rank = cause.culprit
        return (
            f"{head}: {self._others_wait(cause, f'for rank {rank}')}, which {does} for "
            f"{_percent(cause.own[rank])} of its own"
        )

    def _line(self, kind: Spent) -> str:
        lines = self._lines.get(kind, ())
        return f"{self._name(lines[0])}; " if lines else ""

    def _spread(self, kind: Spent, *, and_device: bool = False) -> str:
        """Return the share of each rank's time that went into something."""
        shares = [
            (t.rank, t.share(_seconds(t, kind) + (t.device_s if and_device else 0.0)))
            for t in self._times
        ]
        shown = ", ".join(f"rank {rank} {_percent(share)}" for rank, share in shares[:8])
        return f"{kind.value}: {shown}" + (", ..." if len(shares) > 8 else "")


def _cause(own: Mapping[int, float], waits: Mapping[int, float], culprit: int | None) -> _Cause:
    costs = [own[rank] + waits[rank] for rank in own]
    return _Cause(statistics.fmean(costs), max(costs), own, waits, culprit)


def _seconds(times: RankTimes, kind: Spent) -> float:
    return {
        Spent.COMPUTE: times.compute_s,
        Spent.COLLECTIVE: times.collective_s,
        Spent.LOADING: times.loading_s,
        Spent.SAVING: times.saving_s,
        Spent.PRINTING: times.printing_s,
        Spent.IDLE: times.idle_s,
        Spent.DEVICE: times.device_s,
    }[kind]


def _clear_waits(times: RankTimes) -> dict[tuple[int, Spent | None], float]:
    """Return a rank's waits; a rank that was just arriving did what it does else meanwhile."""
    clear = {key: s for key, s in times.waits.items() if key[1] is not Spent.COLLECTIVE}
    found = dict(clear)
    for (rank, spent), seconds in times.waits.items():
        if spent is not Spent.COLLECTIVE:
            continue
        same = {key: s for key, s in clear.items() if key[0] == rank} or {(rank, spent): 1.0}
        for key, weight in same.items():
            found[key] = found.get(key, 0.0) + seconds * weight / sum(same.values())
    return found


def _plural(does: str) -> str:
    words = {"saves": "save", "prints or displays": "print or display"}
    return words.get(does, does.replace("sleeps", "sleep").replace("waits", "wait"))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _bytes(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} bytes"


def _ranks(count: int) -> str:
    return f"{count} rank{'s' if count > 1 else ''}"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"

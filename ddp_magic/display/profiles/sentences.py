"""The words for what limits a run: Verdict, Why and Next for each cause. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ddp_magic.display.profiles import causes
from ddp_magic.display.profiles.causes import Cause
from ddp_magic.display.profiles.facts import Bottleneck, Machine, Traffic
from ddp_magic.display.profiles.rank_times import LineTime, RankTimes
from ddp_magic.display.profiles.words import percent, ranks, saves, size_of, threads
from ddp_magic.display.rank_names import rank_names
from ddp_magic.wire.profile import LOADER_WORKERS, Spent

NOTICE = 0.1  # a smaller part of the time is not worth a word
SHORT_OF_PROCESSORS = "short of processors"
LOCKED = "interpreter lock"
_SHORT_STEP_S = 0.002  # of Python and torch's calls, most of it
_SMALL_BYTES = 64 * 1024  # a smaller collective takes as long as an empty one
_SAME_WORK = 1.25  # a rank with less than so much of another's processor time works no more
_MAX_RANKS = 8  # named in a sentence

LineName = Callable[[LineTime], str]


class Sentences:
    """What is known of a run, and its verdict for each cause.

    Args:
        times: Where the ranks' time went.
        lines: The lines of the user's code, by what their time went into.
        name: Returns a line as a person reads it.
        traffic: The collectives.
        machine: What the ranks run on.
    """

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
        self._device = causes.of_spent(times, Spent.DEVICE)
        self.work = causes.of_spent(times, Spent.COMPUTE, Spent.DEVICE)

    def loading(self, cause: Cause) -> Bottleneck:
        """Say that the ranks wait for their data."""
        lines = self._lines.get(Spent.LOADING, ())
        has_workers = any(line.place.call == LOADER_WORKERS for line in lines)
        processors = f"{self._machine.processors} processors for {ranks(len(self._ranks))}"
        if has_workers:
            change = (
                "more num_workers in the DataLoader, or less work for each item: a cache, "
                f"smaller files, transforms of whole batches ({processors})"
            )
        else:
            change = (
                f"num_workers=2 or more in the DataLoader ({processors}), so that batches load "
                "during computation"
            )
        if cause.culprit is not None:
            verdict = (
                f"input-bound on rank {cause.culprit}: it waits {percent(cause.culprits_own)} of "
                f"its time for the DataLoader, and {self._others_wait(cause, 'for it')}"
            )
            change += f"; and look why the items of rank {cause.culprit} take longer than others"
        else:
            verdict = f"input-bound: {self._all('wait')} {percent(cause.own_cost)} of "
            verdict += f"{self._their} time for the DataLoader{_for_each_other(cause)}"
        workers = f"the DataLoader has {'' if has_workers else 'no '}worker processes"
        return Bottleneck(
            verdict,
            f"{self._line(Spent.LOADING)}{workers}; {self._spread(Spent.LOADING)}",
            f"{change}: {saves(cause.most)}",
        )

    def reading(self, cause: Cause) -> Bottleneck:
        """Say that the ranks read files, in no data loader."""
        return Bottleneck(
            self._verdict("input-bound", ("reads files", "read files"), cause),
            self._line(Spent.READING) + self._spread(Spent.READING),
            "read it once and keep it, or read it in a DataLoader with worker processes: "
            f"{saves(cause.most)}",
        )

    def saving(self, cause: Cause) -> Bottleneck:
        """Say that the ranks save too often."""
        all_save = len(self._ranks) > 1 and min(cause.own.values()) > 0.5 * max(cause.own.values())
        alone = "save on rank 0 alone, and less often" if all_save else "save less often"
        return Bottleneck(
            self._verdict("saving-bound", ("saves", "save"), cause),
            self._line(Spent.SAVING) + self._spread(Spent.SAVING),
            f"{alone}, such as each 10th time: {saves(0.9 * cause.most)}",
        )

    def printing(self, cause: Cause) -> Bottleneck:
        """Say that the ranks print too much."""
        return Bottleneck(
            self._verdict("output-bound", ("prints or displays", "print or display"), cause),
            self._line(Spent.PRINTING) + self._spread(Spent.PRINTING),
            f"print on one rank, and each 50th time: {saves(cause.most)}",
        )

    def idling(self, cause: Cause) -> Bottleneck:
        """Say that a rank, or all of them, do nothing."""
        head = "idle" if cause.culprit is None else "straggler"
        what = "for something other than data or ranks,"
        does = (f"sleeps, or waits {what}", f"sleep, or wait {what}")
        return Bottleneck(
            self._verdict(head, does, cause),
            self._line(Spent.IDLE) + self._spread(Spent.IDLE),
            f"shorten that wait, or compute meanwhile: {saves(cause.most)}",
        )

    def straggling(self, cause: Cause) -> Bottleneck:
        """Say that the ranks wait for one that computes longer, or for each other in turns."""
        busy = {t.rank: 1.0 - t.share(t.waiting_s) for t in self._times}
        shares = [f"rank {rank} {percent(busy[rank])}" for rank in sorted(busy)[:_MAX_RANKS]]
        spread = f"not waiting: {', '.join(shares)}"
        if cause.culprit is None:
            return Bottleneck(
                f"uneven work: {self._all('wait')} {percent(cause.cost)} of their time for each "
                "other, in turns",
                f"it is not always the same rank that comes last; {spread}",
                f"batches that cost the same on all ranks, such as of similar sizes: "
                f"{saves(cause.most)}",
            )
        rank = cause.culprit
        waits = self._others_wait(cause, f"for rank {rank}")
        if cause.gone:
            return Bottleneck(
                f"straggler: {waits}, which had finished its cell or could not be seen",
                spread,
                f"as many collectives on rank {rank} as on the others: {saves(cause.most)}",
            )
        lines = [line for line in self._lines.get(Spent.COMPUTE, ()) if line.by_rank.get(rank)]
        longest = max(lines, key=lambda line: line.by_rank[rank], default=None)
        at = "" if longest is None else f", for the longest at {self._name(longest)}"
        change = f"give rank {rank} as much work as the others, or find what slows it down"
        if self._is_slowed_by_others(rank, busy):
            change = f"processors of its own for rank {rank}: other programs take them from it"
            at += ", but often without a processor"
        return Bottleneck(
            f"straggler: {waits}, which computes",
            f"rank {rank} comes last{at}; {spread}",
            f"{change}: {saves(cause.most)}",
        )

    def _is_slowed_by_others(self, rank: int, busy: Mapping[int, float]) -> bool:
        """Whether a rank would work no longer than others if it had its processor at once."""
        queued = {t.rank: t.queued or 0.0 for t in self._times}
        work = {other: busy[other] - queued[other] for other in busy}
        others = max((work[other] for other in work if other != rank), default=0.0)
        return queued.get(rank, 0.0) > NOTICE and work[rank] < _SAME_WORK * others

    def communicating(self, cause: Cause) -> Bottleneck:
        """Say that collectives move too much, or too often."""
        told = all(t.moving_s is not None for t in self._times)
        what = "moving data" if told else "of which some may be waiting for other ranks"
        traffic, line = self._traffic, self._lines.get(Spent.COLLECTIVE, ())
        size = "torch has no record of them"
        if traffic.mean_bytes is not None:
            step = "" if traffic.per_step is None else f"{traffic.per_step:.3g} in a step, "
            size = f"collectives: {step}{size_of(traffic.mean_bytes)} on average"
        most = cause.most
        in_backward = bool(line) and "backward" in line[0].place.call
        if in_backward and traffic.sharded:
            change = "larger batches, or fully_shard with reshard_after_forward=False"
        elif in_backward:
            change = "DDP's no_sync() in 3 of 4 backward passes (gradient accumulation)"
            most *= 0.75
        elif traffic.mean_bytes is None:
            change = "send earlier, or larger messages less often"
        elif traffic.mean_bytes < _SMALL_BYTES:
            change = "fewer collectives: combine small tensors, or communicate in fewer steps"
        else:
            change = "half precision for what is sent, or send it less often"
        return Bottleneck(
            f"communication-bound: {self._all('spend')} {percent(cause.cost)} of {self._their} "
            f"time in collectives, {what}",
            self._line(Spent.COLLECTIVE) + size,
            f"{change}: {saves(most)}",
        )

    def lacking_the_lock(self, times: RankTimes) -> Bottleneck:
        """Say that another thread of a rank keeps it from computing."""
        line = LineTime(
            place=times.locked_by, spent=Spent.COMPUTE, seconds=0.0, share=0.0, by_rank={}
        )
        return Bottleneck(
            f"{LOCKED}: for {percent(times.locked)} of its time rank {times.rank} would compute, "
            "while another of its Python threads holds the interpreter lock",
            f"that thread is at {self._name(line)}; " + self._spread(Spent.COMPUTE),
            f"a process instead of that thread: {saves(times.locked)}",
        )

    def queueing(self, cause: Cause) -> Bottleneck:
        """Say that there are too few processors."""
        there = f"{self._machine.processors} processors for {ranks(len(self._ranks))}"
        return Bottleneck(
            f"{SHORT_OF_PROCESSORS}: for {percent(cause.cost)} of {self._their} time "
            f"{self._all('were')} ready to run but had none",
            f"{there} with {threads(self._machine.threads)} each, and whatever else runs; "
            + self._spread(Spent.COMPUTE),
            f"fewer ranks, threads or DataLoader workers, or fewer other programs: "
            f"{saves(cause.most)}",
        )

    def computing(self, all_else: float) -> Bottleneck:
        """Say that there is nothing to gain but by faster computation."""
        kind = Spent.DEVICE if self._on_gpu else Spent.COMPUTE
        what = f"{'GPU' if self._on_gpu else 'compute'}-bound: {self._working()}"
        if self._on_gpu:
            what += ", which computes or communicates"
        steps_s = [t.step_s for t in self._times if t.step_s is not None]
        used, per_rank = self._machine.threads, self._machine.processors // len(self._ranks)
        if steps_s and max(steps_s) < _SHORT_STEP_S:
            change = f"larger batches: a step takes {1000 * max(steps_s):.2g} ms, which is about "
            change += "what calling its operations takes, not computing them"
        elif all(t.device == "cpu" for t in self._times) and per_rank > used:
            change = f"torch.set_num_threads({per_rank}), since an operation uses "
            change += f"{threads(used)}: {saves(self.work.most * (1 - used / per_rank))}"
        else:
            change = "faster computation, such as torch.autocast or torch.compile; all else "
            change += f"together can save {percent(min(all_else, 1.0 - self.work.cost))} at most"
        return Bottleneck(what, self._line(kind) + self._spread(kind), change)

    def in_part(self, told: Bottleneck, how: str) -> Bottleneck:
        """Say of a verdict that it is not all: what it names takes less time than computing.

        Args:
            told: The verdict.
            how: How much of the time it is: `partly`.
        """
        # A straggler is one, whatever it costs.
        what = f"{how} {told.verdict}" if "-bound" in told.verdict else told.verdict
        return replace(told, verdict=f"{what}; {self._working()}")

    # --- words --------------------------------------------------------------------------------

    @property
    def _on_gpu(self) -> bool:
        return self._device.cost > 0.5 * self.work.cost

    def _working(self) -> str:
        if self._on_gpu:
            share = percent(self._device.cost)
            return f"{self._all('wait')} {share} of {self._their} time for the GPU"
        return f"{self._all('compute')} for {percent(self.work.cost)} of {self._their} time"

    def _all(self, verb: str) -> str:
        if len(self._ranks) > 1:
            return f"the ranks {verb}"
        return f"the rank {'was' if verb == 'were' else verb + 's'}"

    @property
    def _their(self) -> str:
        return "their" if len(self._ranks) > 1 else "its"

    def _others_wait(self, cause: Cause, whom: str) -> str:
        others = [rank for rank in self._ranks if rank != cause.culprit]
        verb, their = ("waits", "its") if len(others) == 1 else ("wait", "their")
        names = rank_names(others, span=3)
        return f"{names} {verb} {percent(cause.others_wait)} of {their} time {whom}"

    def _verdict(self, head: str, does: tuple[str, str], cause: Cause) -> str:
        """Return a verdict on a rank that does something, or on all that do it."""
        if cause.culprit is not None:
            waits = self._others_wait(cause, f"for rank {cause.culprit}")
            return f"{head}: {waits}, which {does[0]} for {percent(cause.culprits_own)} of its own"
        who = f"the ranks {does[1]}" if len(self._ranks) > 1 else f"the rank {does[0]}"
        share = f"{percent(cause.own_cost)} of {self._their} time"
        return f"{head}: {who} for {share}{_for_each_other(cause)}"

    def _line(self, kind: Spent) -> str:
        lines = self._lines.get(kind, ())
        return f"{self._name(lines[0])}; " if lines else ""

    def _spread(self, kind: Spent) -> str:
        """Return the share of each rank's time that went into something."""
        shares = [f"rank {t.rank} {percent(t.share(t.seconds(kind)))}" for t in self._times]
        more = ", ..." if len(shares) > _MAX_RANKS else ""
        return f"{kind.value}: {', '.join(shares[:_MAX_RANKS])}{more}"


def _for_each_other(cause: Cause) -> str:
    waits = cause.cost - cause.own_cost
    return f", and {percent(waits)} for each other meanwhile" if waits > NOTICE / 2 else ""

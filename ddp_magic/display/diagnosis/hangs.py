"""Who waits for whom, and why: from what is known of the ranks to sentences. Pure.

Two facts explain most waits. All ranks of a process group must call the same collectives in the
same order, and torch's Flight Recorder numbers those that each rank has called. So the first number
at which two ranks have called different ones is a mismatch, of which all that follows is a
consequence; and a rank whose last number is below that of a collective that others wait in has not
joined it. What is not known is left out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ddp_magic.display.diagnosis.exchanges import misfits, sent_to
from ddp_magic.display.diagnosis.exits import held_exits
from ddp_magic.display.diagnosis.groups import Group, groups_of
from ddp_magic.display.diagnosis.memberships import mixed_up_groups
from ddp_magic.display.diagnosis.operations import short
from ddp_magic.display.diagnosis.unrecorded import (
    awaited,
    different_roots,
    place_in_thread,
    unrecorded_waits,
    waits_beside,
)
from ddp_magic.display.diagnosis.words import names, verb
from ddp_magic.display.rank import Rank
from ddp_magic.display.rank_names import on_nodes
from ddp_magic.system.processes import exit_words
from ddp_magic.wire.collectives import UNNAMED, Operation

CHECK = "--check"  # compares all arguments of collectives
HANG_S = 5.0  # a wait that is shorter is not explained
SILENT_S = 2.0  # without a heartbeat for so long, no Python code runs in the process
LAG_S = 1.0  # a main thread is seen at a place so much later at most than it came there
BUSY = 0.2  # share of a processor above which a main thread computes
# What a main thread may do while a collective goes on that it has called asynchronously.
_ELSEWHERE = re.compile(r"(.*\.)?(sleep|input)|DataLoader|subprocess\..*|Popen\..*|!.*")


@dataclass(frozen=True)
class ProcessState:
    """What the operating system says of a rank's process.

    Attributes:
        stopped: Whether it was stopped, by SIGSTOP or a debugger.
        in_system_call: Whether it waits in a system call that no signal interrupts.
        busy: Whether it uses a processor.
    """

    stopped: bool = False
    in_system_call: bool = False
    busy: bool = False


Processes = Mapping[int, ProcessState]


def explain(
    ranks: Sequence[Rank],
    now: float,
    wait_s: float = HANG_S,
    processes: Processes | None = None,
    check: str = CHECK,
) -> list[str]:
    """Return a sentence for each wait of ranks for others.

    Args:
        ranks: What is known of the ranks.
        now: Time, in seconds since the epoch.
        wait_s: A shorter wait is left out, in seconds.
        processes: What the operating system says of their processes, by rank.
        check: The option that compares all arguments; empty if the run has it.
    """
    known = _Known(ranks, now, processes or {}, check)
    sentences = []
    for group in known.groups:
        waits = {
            rank: operation
            for rank, operation in group.pending.items()
            if now - operation.created >= wait_s
            and ranks[rank].still_s >= wait_s - LAG_S
            and ranks[rank].finished is None  # it came to the end of its cell: it does not wait
            and not _is_elsewhere(ranks[rank], group)
        }
        if not waits:
            continue
        if (found := group.mismatch(known)) is not None:
            sentences.append(found)
        else:
            sentences += filter(None, [_missing(group, waits, known)])
    in_collectives = {
        rank
        for group in known.groups
        for rank in group.pending
        if not waits_beside(ranks[rank], group.id)
    }
    sentences += unrecorded_waits(ranks, wait_s, in_collectives, known.whereabouts)
    sentences += held_exits(ranks, wait_s)
    return known.on_nodes(sentences)


def mismatches(ranks: Sequence[Rank]) -> list[str]:
    """Return a sentence for each group whose ranks have called different collectives.

    Args:
        ranks: What is known of the ranks at the end of a run.
    """
    known = _Known(ranks, 0.0)
    found, unequal = [], []
    for group in known.groups:
        if sentence := group.mismatch(known):
            found.append(sentence)
        elif absence := group.unequal(known):
            unequal.append(absence)
    # A rank that lost its peer waited for that in another group: what it did not call afterwards
    # is a consequence.
    failures = [rank.failure for rank in ranks]
    lost = {rank for rank, failure in enumerate(failures) if failure and failure.is_victim}
    causes = [sentence for sentence, missing in unequal if set(missing) - lost]
    found += causes or [sentence for sentence, _ in unequal]
    return known.on_nodes([*found, *misfits(ranks)])


def reasons(ranks: Sequence[Rank], waits: Sequence[str], check: str = CHECK) -> list[str]:
    """Return why a run failed, as far as its collectives tell, the most certain first.

    Args:
        ranks: What is known of the ranks at the end of the run.
        waits: Who waited for whom when the first rank failed, or when the run was stopped.
        check: As for `explain`.
    """
    known = _Known(ranks, 0.0)
    different = [sentence for group in known.groups if (sentence := group.mismatch(known))]
    received = {rank.rank: rank.failure.received_bytes for rank in ranks if rank.failure}
    aborted = [rank for rank in ranks if received.get(rank.rank) is not None]
    met = [sentence for group in known.groups for sentence in group.met_by(aborted, known)]
    met += [sentence for rank in aborted for sentence in sent_to(rank, ranks)]
    roots = [sentence for group in known.groups if (sentence := group.roots(known))]
    found = different or met or roots or list(waits) or mismatches(ranks)
    if aborted and check and not different:
        found.append(f"`{check}` names the collective on which the ranks differ")
    return known.on_nodes(found)


class _Known:
    """What is known of all ranks, as the sentences need it."""

    def __init__(
        self,
        ranks: Sequence[Rank],
        now: float,
        processes: Processes = MappingProxyType({}),
        check: str = "",
    ) -> None:
        self.ranks = ranks
        self.now = now
        self.check = check
        self._processes = processes
        self.groups = list(groups_of(ranks))
        self.mixed_up = mixed_up_groups(ranks)

    def on_nodes(self, sentences: Iterable[str]) -> list[str]:
        """Return sentences, each once, that say on which nodes ranks are, if there are several."""
        nodes = {rank.rank: rank.node for rank in self.ranks}
        return list(dict.fromkeys(on_nodes(sentence, nodes) for sentence in sentences))

    def where(self, rank: int, operation: Operation | None, group: Group) -> str:
        """Return ` (line 12, in backward)`, where a rank is; empty if that is not known.

        Args:
            rank: Which rank.
            operation: What it waits in, which need not be named twice.
            group: The group of that.
        """
        if self.ranks[rank].finished is not None:
            return ""  # the recorder may know a moment later that it has completed
        if operation is not None and self.ranks[rank].heard < operation.created:
            return ""  # its last heartbeat came from another line
        words = "" if operation is None else place_in_thread(self.ranks[rank], group.id)
        words = words or self._place(self.ranks[rank], operation.name if operation else "")
        return f" ({words})" if words else ""

    def _place(self, rank: Rank, known: str = "") -> str:
        call = "" if rank.error is not None or rank.call == known else rank.call
        return ", ".join(filter(None, [rank.full_place, f"in {call}" if call else ""]))

    def has_unnamed_groups(self, number: int) -> bool:
        """Whether a rank has used groups whose name it does not know."""
        reported = self.ranks[number].collectives
        return reported is not None and any(not group.name for group in reported.groups)

    def is_silent(self, number: int) -> bool:
        """Whether a running rank has sent no heartbeat for some time, or cannot send one."""
        rank = self.ranks[number]
        if self._processes.get(number, ProcessState()).stopped:
            return rank.busy
        return rank.busy and rank.silent_s(self.now) > SILENT_S

    def _other_waits(self, rank: Rank, group: Group | None) -> tuple[str, str]:
        """Return what a rank waits in, of other groups, and what a thread does beside."""
        beside = ""
        for other in self.groups:
            operation = None if other is group else other.pending.get(rank.rank)
            if operation is None or _is_elsewhere(rank, other):
                continue
            where = self.where(rank.rank, operation, other)
            what = f"waits in {short(operation)}{other.name}{where}"
            if not waits_beside(rank, other.id):
                return what, ""
            if self.now - operation.created >= LAG_S:  # a thread calls one after the other
                beside = f", and {what}"
        return "", beside

    def whereabouts(self, number: int, group: Group | None = None) -> str:  # noqa: PLR0911 -- one for each
        """Return where a rank is that others wait for."""
        rank = self.ranks[number]
        place = self._place(rank)
        if reported := _reported(rank):
            return reported
        state = self._processes.get(number, ProcessState())
        if state.stopped:
            return f"it is stopped: `kill -CONT {rank.pid}` continues it"
        # Only the function is known of what `launch` calls.
        place = place if place.startswith("in ") or not place else f"at {place}"
        last = f"; it was last seen {place}" if place else ""
        if state.in_system_call:
            return f"it is stuck in a system call, often of a disk or a network file system{last}"
        if self.is_silent(number):
            holds = "holds the interpreter lock in C code" if state.busy else "does not respond"
            return f"it has been silent for {rank.silent_s(self.now):.0f} s and {holds}{last}"
        what, beside = self._other_waits(rank, group)
        if what:
            return f"it {what}"
        if words := awaited(rank):
            return f"it waits in {words}{beside}"
        if not place:
            return "it has not reported where it is"
        return f"it {'computes' if rank.cpu > BUSY else 'is'} {place}{beside}"


def _is_elsewhere(rank: Rank, group: Group) -> bool:
    """Whether a rank waits for no other, whatever collective of a group it has called before."""
    return _ELSEWHERE.fullmatch(rank.call) is not None and not place_in_thread(rank, group.id)


def _missing(group: Group, waits: dict[int, Operation], known: _Known) -> str:
    """Return who waits in which collective, and where the others are; empty if that is usual."""
    number = min(operation.number for operation in waits.values())
    waiting = [rank for rank, operation in waits.items() if operation.number == number]
    seconds = known.now - min(waits[rank].created for rank in waiting)
    operation = waits[waiting[0]]
    head = (
        f"{names(waiting)} {verb(waiting, 'wait')} in {short(operation)}{group.name}"
        f"{known.where(waiting[0], operation, group)} for {seconds:.0f} s"
    )
    others = [rank for rank in group.members if rank not in waiting]
    silent = [rank for rank in others if known.is_silent(rank)]
    missing = [r for r in others if r not in silent and group.called(r, known) < number]
    fates = _absent(missing, known, group)
    fates += [known.whereabouts(rank, group).replace("it ", f"rank {rank} ", 1) for rank in silent]
    # It moves data, or the last rank has just come; or gloo has noted late that it has completed.
    if not fates and (seconds < HANG_S or operation.name == UNNAMED):
        return ""
    more = known.check and f": `{known.check}` tells whether their arguments differ"
    # Roots and reductions are not in the record.
    joined = (
        group.called_earlier(number)
        or different_roots([known.ranks[rank] for rank in waiting])
        or f"all its ranks have joined{more}"
    )
    return "; ".join([head, *(fates or [joined])])


def _absent(missing: list[int], known: _Known, group: Group) -> list[str]:
    where: dict[str, list[int]] = defaultdict(list)
    for rank in missing:
        where[known.whereabouts(rank, group)].append(rank)
    sentences = []
    for words, who in where.items():
        told = words if len(who) == 1 else words.replace("it ", "each ", 1)
        sentences.append(f"{names(who)} {verb(who, 'has')} not joined: {told}")
    return sentences


def _reported(rank: Rank) -> str:
    """Return what a rank itself has said of why it joins no collective; empty if nothing."""
    at = rank.where
    if (error := rank.error or rank.held) is not None:
        asks = ", and waits for an answer in the cell" if rank.question else ""
        return f"it raised {error.ename}{at}{asks}"
    if rank.question is not None:
        return f"it waits for an answer in the cell{at}"
    if rank.finished is not None or rank.idle or rank.code == 0:
        return "it has finished its cell"
    return "" if rank.code is None else f"it has ended ({exit_words(rank.code)})"

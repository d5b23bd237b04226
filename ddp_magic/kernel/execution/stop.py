"""Ends the ranks when a run is stopped: by Stop, `--time-limit`, a mismatch, a failed rank.

A rank that does not answer is killed after 2 s (`ANSWER_S`), one that answers after 30 s
(`FINISH_S`), and all at the second press.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from ddp_magic.display.diagnosis.verdict import StopReason
from ddp_magic.display.rank import Rank
from ddp_magic.display.rank_names import rank_names
from ddp_magic.kernel.interrupts import InterruptCounter
from ddp_magic.wire.kernel_events import Doing, Killed, Note, RunEvent, StackDumped

ANSWER_S = 2.0  # a rank that has not taken the interrupt by then does not answer
FINISH_S = 30.0  # for a rank that has, to save what it saves
PEERS_S = 1.0  # for a session's ranks to end a cell that one of them has failed in
PEERS_FINISH_S = 5.0  # and to clean up, once they are interrupted
# How long a rank that has answered may go on; 0 for no longer than one that does not answer.
_FINISH_S = {
    StopReason.INTERRUPT: FINISH_S,
    StopReason.KERNEL_ENDED: 0.0,
    StopReason.DEBUGGER: FINISH_S,
    StopReason.MISMATCH: PEERS_FINISH_S,
    StopReason.TIME_LIMIT: 0.0,
    StopReason.PEER_FAILED: PEERS_FINISH_S,
}
STACK_S = 0.3  # for the dump of a rank's stack


class Stoppable(Protocol):
    """What a stop asks of a worker group."""

    def interrupt(self, ranks: Collection[int], *, keep: bool) -> None:
        """Raise KeyboardInterrupt in these ranks."""

    def kill(self, ranks: tuple[int, ...] = ()) -> None:
        """End some ranks at once, or the whole group where none is named."""

    def dump_stack(self, rank: int) -> None:
        """Let a rank write its stack to its file."""


def reason_to_stop(
    ranks: Sequence[Rank],
    *,
    presses: int,
    elapsed_s: float,
    time_limit_s: float | None,
    kept: bool,
    mismatch: bool = False,
) -> StopReason | None:
    """Return why a run must end; None if it may go on.

    Args:
        ranks: What is known of its ranks.
        presses: How often Stop was pressed.
        elapsed_s: How long it has been running, in seconds.
        time_limit_s: How long it may run, in seconds; None for no limit.
        kept: Whether the ranks are a session's: then nothing else ends them when one has failed.
        mismatch: Whether they have called different collectives.
    """
    if presses:
        return StopReason.INTERRUPT
    if any(rank.quit for rank in ranks):
        return StopReason.DEBUGGER
    if mismatch:
        return StopReason.MISMATCH
    if time_limit_s is not None and elapsed_s > time_limit_s:
        return StopReason.TIME_LIMIT
    if kept:
        failures = [rank.failure.time for rank in ranks if rank.failure is not None]
        # Its peers may wait for it for ever; those that have only to finish get their time.
        if failures and time.time() - min(failures) > PEERS_S:
            return StopReason.PEER_FAILED
    return None


class Stop:
    """Ends the ranks: ask, wait, show the stack, kill. Waits for nothing itself; see `step`.

    Args:
        group: What to end.
        ranks: What is known of its ranks.
        stack_of: Returns what a rank wrote when it was asked for its stack.
        reason: Why the run is ended.
        keep: Whether the ranks are a session's, and outlive the interrupt.
        now: Time on the monotonic clock, in seconds.
        starting: Whether its cell has not begun: there is nothing to finish.
        again: How a person kills the ranks: by the second press, or the second `%ddp_stop`.
    """

    def __init__(  # noqa: PLR0913 -- each is independent of the others
        self,
        group: Stoppable,
        ranks: Sequence[Rank],
        *,
        stack_of: Callable[[int], StackDumped | None],
        reason: StopReason,
        keep: bool,
        now: float,
        starting: bool = False,
        again: str = "press Stop again",
    ) -> None:
        self.reason = reason
        self._again = again
        self.began = time.time()
        self._group = group
        self._ranks = ranks
        self._stack_of = stack_of
        self._finish_s = 0.0 if starting else _FINISH_S[reason]
        self._asked = now
        self._stacks_asked: float | None = None
        self._announced = False
        self._all_killed = False
        if any(rank.pid is not None for rank in ranks):
            group.interrupt([r.rank for r in ranks if r.busy], keep=keep)
        else:  # there is nobody yet who could answer
            group.kill()

    def step(self, presses: int, now: float) -> list[RunEvent]:
        """Go on as far as the time allows.

        Args:
            presses: How often Stop was pressed so far; the second press kills.
            now: Time on the monotonic clock, in seconds.
        """
        events: list[RunEvent] = [Doing(text="stopping")]
        alive = [rank for rank in self._ranks if rank.busy and not rank.killed]
        if not alive:
            # Whoever has still not ended does not die of SIGKILL: after a bound, go on without.
            if any(rank.busy for rank in self._ranks) and not self._all_killed:
                self._all_killed = True
                self._group.kill()
            return events
        waited = now - self._asked
        wait_for_answered = 0.0 if presses > 1 else max(self._finish_s, ANSWER_S)
        wait_for_silent = 0.0 if presses > 1 else ANSWER_S
        due = [r for r in alive if waited > (wait_for_answered if r.answered else wait_for_silent)]
        if due:
            events += self._kill(due, now)
        elif waited > ANSWER_S and not self._announced:
            self._announced = True
            names = rank_names(rank.rank for rank in alive)
            text = (
                f"stopping: {names} answered and may take {self._finish_s:g} s to finish; "
                f"{self._again} to kill now"
            )
            events.append(Note(text=text))
        return events

    def _kill(self, due: list[Rank], now: float) -> list[RunEvent]:
        if self._stacks_asked is None:
            self._stacks_asked = now
            for rank in due:
                self._group.dump_stack(rank.rank)
        if now - self._stacks_asked < STACK_S:
            return []
        self._stacks_asked = None
        self._group.kill(tuple(rank.rank for rank in due))
        events: list[RunEvent] = []
        stuck: dict[tuple[str, ...], list[int]] = {}  # where -> which ranks
        for rank in due:
            events.append(Killed(rank=rank.rank))
            if (stack := self._stack_of(rank.rank)) is not None:
                events.append(stack)
                stuck.setdefault(stack.frames, []).append(rank.rank)
        for frames, ranks in stuck.items():
            if frames:
                was = "was" if len(ranks) == 1 else "were"
                lines = [f"{rank_names(ranks)} {was} in, innermost first:"]
                lines += [f"    {frame}" for frame in frames]
                events += [Note(text=line) for line in lines]
        return events


class Stopper:
    """Decides when the ranks of a run are to end, and ends them then.

    Args:
        group: The worker group.
        ranks: What is known of its ranks; the run keeps it up to date.
        stack_of: Returns what a rank wrote when it was asked for its stack.
        time_limit_s: How long the run may take, in seconds; None for no limit.
        kept: Whether the ranks are a session's.
        again: How a person kills the ranks, after having asked them to stop.

    Attributes:
        presses: Counts how often Stop was pressed.
    """

    def __init__(
        self,
        group: Stoppable,
        ranks: Sequence[Rank],
        *,
        stack_of: Callable[[int], StackDumped | None],
        time_limit_s: float | None,
        kept: bool,
        again: str,
    ) -> None:
        self.presses = InterruptCounter()
        self._group = group
        self._ranks = ranks
        self._stack_of = stack_of
        self._time_limit_s = time_limit_s
        self._kept = kept
        self._again = again
        self._kernel_ended = False
        self._stop: Stop | None = None

    @property
    def reason(self) -> StopReason | None:
        """Why the ranks are being ended; None while they may go on."""
        return self._stop.reason if self._stop else None

    @property
    def began(self) -> float:
        """When they began to be ended, in seconds since the epoch; 0 while they may go on."""
        return self._stop.began if self._stop else 0.0

    def press(self) -> None:
        """Stop the ranks, as a press of Stop does; the second time they are killed."""
        self.presses.count += 1

    def end_with_kernel(self) -> None:
        """Kill the ranks, because the kernel has ended."""
        self._kernel_ended = True
        self.presses.count += 2

    def look(self, *, elapsed_s: float, mismatch: bool, starting: bool) -> StopReason | None:
        """Begin to end the ranks, if there is a reason to; return it.

        Args:
            elapsed_s: How long the run has taken that counts for its limit, in seconds.
            mismatch: Whether the ranks have called different collectives.
            starting: Whether the cell has not begun: no cell to finish, no session to keep yet.
        """
        reason = reason_to_stop(
            self._ranks,
            presses=self.presses.count,
            elapsed_s=elapsed_s,
            time_limit_s=self._time_limit_s,
            kept=self._kept,
            mismatch=mismatch,
        )
        if reason is None:
            return None
        if reason is StopReason.INTERRUPT and self._kernel_ended:
            reason = StopReason.KERNEL_ENDED
        # Ranks that wait in a collective which will not complete answer once it is aborted.
        keep = self._kept or reason is StopReason.MISMATCH
        self._stop = Stop(
            self._group,
            self._ranks,
            stack_of=self._stack_of,
            reason=reason,
            starting=starting,
            keep=keep and not starting,
            now=time.monotonic(),
            again=self._again,
        )
        return reason

    def step(self) -> list[RunEvent]:
        """Go on to end the ranks; nothing while they may go on."""
        if self._stop is None:
            return []
        return self._stop.step(self.presses.count, time.monotonic())

"""The way from a press of Stop, or the end of a time limit, to the end of the ranks."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from ddp_magic.display.rank import Rank
from ddp_magic.errors import RunInterrupted
from ddp_magic.kernel.group import WorkerGroup

ANSWER_S = 2.0  # a rank that has not taken the interrupt by then is deaf
FINISH_S = 30.0  # for a rank that has, to save what it saves
STACK_S = 0.3  # for the dump of a rank's stack


class Stop:
    """The way from a press of Stop to the end: ask, wait, show the stack, kill.

    Args:
        group: What to end.
        ranks: What is known of its ranks.
        say: Shows a line.
        read_stack: Takes up what a rank wrote when it was asked for its stack.
        reason: "stopped", "time limit" or "peer failed".
        finish_s: How long a rank that has answered may go on, s; 0 for no longer than a deaf one.
        keep: The ranks are a session's: they outlive the interrupt.
    """

    def __init__(
        self,
        group: WorkerGroup,
        ranks: Sequence[Rank],
        *,
        say: Callable[[str], None],
        read_stack: Callable[[Rank], None],
        reason: str,
        finish_s: float,
        keep: bool = False,
    ) -> None:
        """Ask the ranks."""
        self.reason = reason
        self._group = group
        self._ranks = ranks
        self._say = say
        self._read_stack = read_stack
        self._finish_s = finish_s
        self.began = time.time()
        self._asked = time.monotonic()
        self._stacks_asked: float | None = None
        self._said = False
        self._all_killed = False
        if any(rank.pid is not None for rank in ranks):
            group.interrupt([r.rank for r in ranks if r.busy], keep=keep)
        else:  # there is nobody yet who could answer
            group.kill()

    def step(self, presses: int) -> None:
        """Go on as far as the time allows.

        Args:
            presses: How often Stop has been pressed by now; the second one kills.
        """
        alive = [rank for rank in self._ranks if rank.busy and not rank.killed]
        if not alive:
            # Whoever has still not ended does not die of SIGKILL: after a bound, go on without.
            if any(rank.busy for rank in self._ranks) and not self._all_killed:
                self._all_killed = True
                self._group.kill()
            return
        waited = time.monotonic() - self._asked
        wait_for_answered = 0.0 if presses > 1 else max(self._finish_s, ANSWER_S)
        deaf_limit = 0.0 if presses > 1 else ANSWER_S
        due = [r for r in alive if waited > (wait_for_answered if r.answered else deaf_limit)]
        if due:
            self._kill(due)
        elif waited > ANSWER_S and not self._said:
            self._said = True
            self._say(
                f"stopping: {_names(alive)} answered and may finish for {self._finish_s:g} s; "
                "press Stop again to kill now"
            )

    def _kill(self, due: list[Rank]) -> None:
        if self._stacks_asked is None:
            self._stacks_asked = time.monotonic()
            for rank in due:
                self._group.signal(rank.rank, signal.SIGUSR1)
        if time.monotonic() - self._stacks_asked < STACK_S:
            return
        for rank in due:
            rank.killed = True
            self._show_stack(rank)
        self._group.kill(tuple(rank.rank for rank in due))
        self._stacks_asked = None

    def _show_stack(self, rank: Rank) -> None:
        self._read_stack(rank)
        if rank.stack:
            self._say(f"rank {rank.rank} was in, innermost first:")
            for frame in rank.stack:
                self._say(f"    {frame}")


class InterruptCounter:
    """Counts presses of Stop (SIGINT) while a run goes on.

    The kernel's own handler would raise KeyboardInterrupt in the middle of anything; it is back in
    its place afterwards. Only the main thread can be interrupted; elsewhere none is counted.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.count = 0
        self._previous: Any = None

    def __enter__(self) -> InterruptCounter:  # noqa: PYI034 -- typing.Self is Python 3.11's
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._press)
        return self

    def _press(self, _signum: int, _frame: FrameType | None) -> None:
        self.count += 1

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)


@contextmanager
def deferred() -> Iterator[None]:
    """Let Stop (SIGINT) wait until what is inside is done; it must not take long."""
    with InterruptCounter() as presses:
        yield
    if presses.count:
        raise KeyboardInterrupt


@contextmanager
def without_frames(message: Callable[[], str]) -> Iterator[None]:
    """Show an interrupt of the kernel's own work as one line, without the kernel's frames.

    Args:
        message: Returns what the interrupt has ended.

    Raises:
        RunInterrupted: Stop was pressed.
    """
    try:
        yield
    except RunInterrupted:
        raise
    except KeyboardInterrupt:
        raise RunInterrupted(message()) from None


def _names(ranks: Collection[Rank]) -> str:
    numbers = ", ".join(str(rank.rank) for rank in ranks)
    return f"rank{'s' if len(ranks) > 1 else ''} {numbers}"

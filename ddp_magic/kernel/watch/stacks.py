"""The stacks of ranks: asked for by a signal, written by faulthandler, read from their files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from ddp_magic.display.diagnosis.hangs import SILENT_S
from ddp_magic.display.diagnosis.stack_dumps import CellCode, read_stack
from ddp_magic.display.rank import Rank
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.kernel_events import StackDumped

WAIT_S = 2.0  # for a rank to write; one that is stopped does not
SETTLE_S = 0.05  # between the first and the last byte of a dump
POLL_S = 0.02
FRAMES = 8  # of a rank that died, or had to be killed
MAX_FRAMES = 40


class Stacks:
    """The stacks of a run's ranks, innermost frame first.

    Args:
        directory: Where the ranks write.
        code: The cell's.
        wait_s: How long to wait for a rank, in seconds.
    """

    def __init__(self, directory: RunDirectory, code: CellCode, wait_s: float = WAIT_S) -> None:
        self._directory = directory
        self._code = code
        self._wait_s = wait_s
        self._asked: dict[int, int] = {}  # size of a rank's file with the last dump asked for
        self._silent: dict[int, int | None] = {}  # and before it was asked since it is silent

    def of(self, rank: int, limit: int = FRAMES) -> StackDumped | None:
        """Return what a rank wrote last; None if it wrote nothing.

        Args:
            rank: Which rank.
            limit: Most frames to return.
        """
        return read_stack(self._directory, rank, self._code, limit)

    def of_crashes(self, ranks: Iterable[Rank]) -> list[StackDumped]:
        """Return what ranks wrote that died without a word of their own."""
        crashed = [r.rank for r in ranks if r.code and r.error is None and r.finished is None]
        # Where a rank was when it was asked is not where it died.
        return _known(self.of(r) for r in crashed if self._size(r) > self._asked.get(r, -1))

    def of_silent(
        self, ranks: Iterable[Rank], silent_s: float, dump: Callable[[int], None]
    ) -> list[StackDumped]:
        """Ask ranks whose heartbeats have stopped where they are; return what has come by now.

        Args:
            ranks: What is known of the ranks.
            silent_s: How long one must have been silent, in seconds; it is asked once.
            dump: Asks a rank to write.
        """
        written = []
        now, silent_s = time.time(), max(silent_s, SILENT_S)
        for rank in ranks:
            number = rank.rank
            if now - rank.heard < silent_s:  # the usual case, of hundreds of ranks
                self._silent.pop(number, None)
                continue
            can_tell = rank.busy and rank.ran and not rank.killed and not rank.takes_usr1
            if not can_tell or rank.silent_s(now) < silent_s:
                self._silent.pop(number, None)
                continue
            size = self._size(number)  # of the few that are silent: it asks the file system
            if number not in self._silent:
                self._silent[number] = size
                dump(number)
            elif (before := self._silent[number]) is not None and size > before:
                self._asked[number] = size
                stack = self.of(number, MAX_FRAMES)
                if stack is not None and stack.line is not None:  # else it is still being written
                    self._silent[number] = None
                    written.append(replace(stack, frames=()))  # it may be elsewhere when it dies
        return written

    def ask(self, ranks: Iterable[Rank], dump: Callable[[int], None]) -> list[StackDumped]:
        """Return the stacks of the ranks that run; of those that write them in time.

        Args:
            ranks: What is known of the ranks.
            dump: Asks a rank to write.
        """
        sizes = {r.rank: self._size(r.rank) for r in ranks if r.busy and r.pid is not None}
        for rank in sizes:
            dump(rank)
        deadline = time.monotonic() + self._wait_s
        while any(self._size(rank) == size for rank, size in sizes.items()):
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        time.sleep(SETTLE_S)
        written = [rank for rank, size in sizes.items() if self._size(rank) > size]
        self._asked.update((rank, self._size(rank)) for rank in written)
        return _known(self.of(rank, MAX_FRAMES) for rank in written)

    def _size(self, rank: int) -> int:
        try:
            return self._directory.stacks(rank).stat().st_size
        except OSError:
            return 0


def _known(stacks: Iterable[StackDumped | None]) -> list[StackDumped]:
    return [stack for stack in stacks if stack is not None]

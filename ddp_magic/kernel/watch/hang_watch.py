"""Looks, while a run goes on, whether ranks wait for others, and asks for the reason."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import psutil

from ddp_magic.display.diagnosis import hangs
from ddp_magic.display.diagnosis.hangs import ProcessState
from ddp_magic.display.rank import Rank

LOOK_S = 0.5  # between two looks
RECENT_S = 2.0  # a wait that is shorter explains no end of a run
APART_S = 0.3  # a process is looked at so often at most, to tell whether it is busy
SILENT_S = 1.0  # a rank's process is asked about once it has been silent for so long


class HangWatch:
    """Explains the waits of one run.

    Args:
        hang_s: A shorter wait is not explained, in seconds.
        check: The option that compares all arguments; empty if the run has it.

    Attributes:
        sentences: The waits that last at the moment.
    """

    def __init__(self, hang_s: float = hangs.HANG_S, check: str = hangs.CHECK) -> None:
        self.sentences: tuple[str, ...] = ()
        self._hang_s = hang_s
        self._check = check
        self._looked = time.monotonic()  # no rank has waited long when a run begins
        self._used: dict[int, _Used] = {}  # by process

    def look(self, ranks: Sequence[Rank]) -> bool:
        """Look again, if it is time; return whether the sentences have changed."""
        if time.monotonic() - self._looked < LOOK_S:
            return False
        self._looked = time.monotonic()
        before = self.sentences
        self.sentences = self._explain(ranks, self._hang_s)
        return self.sentences != before

    def recent(self, ranks: Sequence[Rank]) -> tuple[str, ...]:
        """Return the waits at this moment, for the error of a run that ends now.

        Waits that are too short to be shown while the run goes on are among them.
        """
        return self._explain(ranks, min(RECENT_S, self._hang_s))

    def _explain(self, ranks: Sequence[Rank], wait_s: float) -> tuple[str, ...]:
        if all(rank.collectives is None for rank in ranks):
            return ()  # no rank waits
        processes = self._processes(ranks)
        return tuple(hangs.explain(ranks, time.time(), wait_s, processes, self._check))

    def _processes(self, ranks: Sequence[Rank]) -> dict[int, ProcessState]:
        """Return what the operating system says of the processes that are silent."""
        now = time.time()
        found = {}
        for rank in ranks:
            if rank.pid is None or rank.node:  # elsewhere: here that is another process's number
                continue
            if not rank.busy or rank.silent_s(now) < SILENT_S:
                continue
            try:
                process = psutil.Process(rank.pid)
                status, times = process.status(), process.cpu_times()
            except psutil.Error:
                continue
            found[rank.rank] = ProcessState(
                stopped=status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP),
                in_system_call=status == psutil.STATUS_DISK_SLEEP,
                busy=self._is_busy(rank.pid, times.user + times.system, now),
            )
        return found

    def _is_busy(self, pid: int, cpu_s: float, now: float) -> bool:
        """Whether a process has used a processor since the last look."""
        last = self._used.get(pid, _Used(now, cpu_s, False))
        # The system counts in steps of 10 ms, and gives a process its turns.
        if now - last.time < APART_S:
            self._used[pid] = last
            return last.busy
        busy = cpu_s > last.cpu_s
        self._used[pid] = _Used(now, cpu_s, busy)
        return busy


class _Used(NamedTuple):
    """Processor time that a process had used when it was looked at, and whether it was busy."""

    time: float
    cpu_s: float
    busy: bool

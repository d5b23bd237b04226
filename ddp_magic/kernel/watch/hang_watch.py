"""Looks, while a run goes on, whether ranks wait for others, and asks for the reason."""

from __future__ import annotations

import time
from collections.abc import Sequence

import psutil

from ddp_magic.display.diagnosis import hangs
from ddp_magic.display.diagnosis.hangs import ProcessState
from ddp_magic.display.rank import Rank

LOOK_S = 0.5  # between two looks
RECENT_S = 2.0  # a wait that is shorter explains no end of a run
SILENT_S = 1.0  # a rank's process is asked about once it has been silent for so long


class HangWatch:
    """Explains the waits of one run.

    Args:
        hang_s: A shorter wait is not explained, in seconds.

    Attributes:
        sentences: The waits that last at the moment.
    """

    def __init__(self, hang_s: float = hangs.HANG_S) -> None:
        self.sentences: tuple[str, ...] = ()
        self._hang_s = hang_s
        self._looked = 0.0  # monotonic, s
        self._cpu_s: dict[int, float] = {}

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
        return tuple(hangs.explain(ranks, time.time(), wait_s, self._processes(ranks)))

    def _processes(self, ranks: Sequence[Rank]) -> dict[int, ProcessState]:
        """Return what the operating system says of the processes that are silent."""
        now = time.time()
        found = {}
        for rank in ranks:
            if rank.pid is None or not rank.busy or rank.silent_s(now) < SILENT_S:
                continue
            try:
                process = psutil.Process(rank.pid)
                status, times = process.status(), process.cpu_times()
            except psutil.Error:
                continue
            cpu_s = times.user + times.system
            found[rank.rank] = ProcessState(
                stopped=status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP),
                in_system_call=status == psutil.STATUS_DISK_SLEEP,
                busy=cpu_s > self._cpu_s.get(rank.rank, cpu_s),
            )
            self._cpu_s[rank.rank] = cpu_s
        return found

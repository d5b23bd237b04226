"""The thread that sends heartbeats, and acknowledges interrupts.

What a heartbeat carries is gathered in `observe`.
"""

from __future__ import annotations

import os
import resource
import select
import sys
import threading
from pathlib import Path
from time import time as now  # bound here: a cell may replace the module's
from typing import NoReturn

from ddp_magic.wire.channel import Channel
from ddp_magic.wire.messages import LOST_CONNECTION, Heartbeat, Interrupted
from ddp_magic.wire.states import Phase
from ddp_magic.worker import device
from ddp_magic.worker.activity import Activity
from ddp_magic.worker.streams import move_high

HEARTBEAT_S = 0.25
_BEAT, _INTERRUPTED = b"c", b"i"  # why the thread is woken


class HeartbeatThread:
    """Sends a heartbeat four times a second while the rank is not idle, and when it is woken.

    It is woken through a pipe, since a signal handler may take no lock.
    """

    def __init__(self, rank: int, channel: Channel, activity: Activity) -> None:
        self._rank = rank
        self._channel = channel
        self._activity = activity
        self._wake_r, self._wake_w = map(move_high, os.pipe())
        os.set_blocking(self._wake_w, False)

    def run(self) -> NoReturn:
        """Send heartbeats for ever. The process ends if its connection is no longer there."""
        while True:
            if not self.beat():
                # No one hears what happens here, and no one could end it.
                os._exit(LOST_CONNECTION)

    def beat(self) -> bool:
        """Wait until the next heartbeat is due, and send it.

        Returns:
            False if the connection was closed by something else in this process.
        """
        # An idle rank sends none: no one shows them, and nothing happens.
        timeout_s = None if self._activity.phase is Phase.IDLE else HEARTBEAT_S
        ready = select.select([self._wake_r], [], [], timeout_s)[0]
        if not self._channel.intact():
            return False
        if ready and _INTERRUPTED in os.read(self._wake_r, 64):
            self.report_interrupted()
        self._channel.send(observe(self._rank, self._activity))
        return True

    def beat_now(self) -> None:
        """Send a heartbeat without waiting for the next one's time."""
        self._wake(_BEAT)

    def interrupt_taken(self) -> None:
        """Report soon that the main thread has taken an interrupt; for use in a signal handler."""
        self._wake(_INTERRUPTED)

    def report_interrupted(self) -> None:
        """Report at once that the main thread has taken an interrupt."""
        self._channel.send(Interrupted(rank=self._rank, time=now()))

    def _wake(self, reason: bytes) -> None:
        try:
            os.write(self._wake_w, reason)
        except BlockingIOError:
            pass  # 64 KB unread: this one is not needed


def observe(rank: int, activity: Activity) -> Heartbeat:
    """Return a heartbeat with the rank's phase, line and memory of now."""
    return Heartbeat(
        rank=rank,
        time=now(),
        phase=activity.phase,
        line=_main_thread_line(activity.cell_file),
        rss_mib=_rss_mib(),
        device_mib=device.reserved_mib(),
    )


def _main_thread_line(cell_file: str) -> int | None:
    """Return the line of the cell that the main thread is in; None outside the cell."""
    # Python 3.10 to 3.13: tests/unit/worker/test_private_names.py
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code.co_filename == cell_file:
            return frame.f_lineno
        frame = frame.f_back
    return None


def _rss_mib() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * resource.getpagesize() / 2**20

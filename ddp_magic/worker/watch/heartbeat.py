"""The thread that sends heartbeats, and acknowledges interrupts.

Once the main thread has been at one place for `STILL_S`, or a collective has not completed for that
long, it also sends what the rank's process groups are doing (`Collectives`), so that the kernel can
explain who waits for whom.
"""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path
from time import monotonic  # bound here: a cell may replace the module's
from time import time as now
from traceback import walk_tb
from typing import NoReturn

from ddp_magic.system.readable import readable
from ddp_magic.wire.channel import Channel
from ddp_magic.wire.collectives import GroupRecord, Transfer
from ddp_magic.wire.states import Phase
from ddp_magic.wire.worker_events import LOST_CONNECTION, Collectives, Heartbeat, Interrupted
from ddp_magic.worker import device
from ddp_magic.worker.console.streams import move_high
from ddp_magic.worker.watch.activity import Activity
from ddp_magic.worker.watch.exit_wait import exit_wait
from ddp_magic.worker.watch.flight_recorder import FlightRecorder
from ddp_magic.worker.watch.frame_calls import root_of
from ddp_magic.worker.watch.main_thread import MainThread, place_of
from ddp_magic.worker.watch.other_threads import (
    collectives_of_threads,
    runs_users_code,
    thread_waited_for,
    threads_in_groups,
)
from ddp_magic.worker.watch.pending import Numbers
from ddp_magic.worker.watch.stacks import takes_usr1
from ddp_magic.worker.watch.transfers import (
    awaited_transfers,
    failed_transfers,
    last_transfer,
    new_exchanges,
    polling_s,
    remember_transfers,
    transfers_of,
)

HEARTBEAT_S = 0.25
STILL_S = 2.0  # a main thread that has been at one place for so long may be waiting
REPEAT_S = 1.0  # and between two reports of what it waits for
_RESUME, _INTERRUPTED = b"r", b"i"  # why the thread is woken


class HeartbeatThread:
    """Sends a heartbeat four times a second while the rank is not idle, and after an interrupt.

    It is woken through a pipe, since a signal handler may take no lock.
    """

    def __init__(self, rank: int, channel: Channel, activity: Activity) -> None:
        self._rank = rank
        self._channel = channel
        self._activity = activity
        self._wake_r, self._wake_w = map(move_high, os.pipe())
        os.set_blocking(self._wake_w, False)
        self._main = MainThread()
        self._recorder = FlightRecorder()
        self._numbers: Numbers = {}  # at the end of the last cell
        self._reported = 0.0  # when the groups were reported last, monotonic, s
        remember_transfers()

    def run(self) -> NoReturn:
        """Send heartbeats for ever. The process ends if its connection is no longer there."""
        while True:
            if not self.beat():
                # No one hears what happens here, and no one could end it.
                os._exit(LOST_CONNECTION)

    def beat(self) -> bool:
        """Wait until the next heartbeat is due, and send it; or until the rank is no longer idle.

        Returns:
            False if the connection was closed by something else in this process.
        """
        # An idle rank sends none: no one shows them, and nothing happens.
        timeout_s = None if self._activity.phase is Phase.IDLE else HEARTBEAT_S
        ready = readable([self._wake_r], timeout_s)
        reasons = os.read(self._wake_r, 64) if ready else b""
        if ready and not reasons.strip(_RESUME):
            return True
        if not self._channel.intact():
            return False
        if _INTERRUPTED in reasons:
            self.report_interrupted()
        numbers = self._recorder.numbers()
        self._channel.send(self._observe(numbers))
        if self._waits(numbers) and monotonic() - self._reported > REPEAT_S:
            self._reported = monotonic()
            groups = self._recorder.groups(self._numbers, collectives_of_threads())
            self._channel.send(self._collectives(groups, awaited_transfers()))
        return True

    def collectives_of_cell(self, error: BaseException | None = None) -> Collectives:
        """Return what the process groups have done in the cell.

        Args:
            error: What ended the cell; None if it came to its end.
        """
        numbers, before = self._recorder.numbers(), self._numbers
        # What was called costs 0.5 ms to read, the numbers next to nothing.
        used = numbers != before
        self._numbers = numbers
        groups = self._recorder.groups(before) if used else self._recorder.idle_groups(numbers)
        collectives = self._collectives(groups, ())  # the main thread waits for nothing
        collectives = replace(collectives, exchanges=new_exchanges(), runs_on=runs_users_code())
        if error is None:
            return collectives
        # The last heartbeat may have seen the main thread in another one.
        return replace(
            collectives,
            transfers=failed_transfers(error.__traceback__),
            root=root_of([frame for frame, _ in walk_tb(error.__traceback__)][::-1]),
        )

    def _collectives(
        self, groups: tuple[GroupRecord, ...], transfers: tuple[Transfer, ...]
    ) -> Collectives:
        place, thread = self._main.place, ""
        if frames := thread_waited_for():
            place = place_of(frames, self._activity.cell_labels)
            transfers = transfers_of(frames[0])
            thread = place.words()
        peer = place.peer
        if peer is not None and not transfers:
            kind = "recv" if "recv" in place.call else "send"
            transfers = (Transfer(kind=kind, peer=peer),)
        return Collectives(
            rank=self._rank,
            time=now(),
            transfers=transfers,
            root=place.root,
            thread=thread,
            threads={
                group: place_of(frames, self._activity.cell_labels).words()
                for group, frames in threads_in_groups().items()
            },
            groups=groups,
            memberships=self._recorder.memberships(),
        )

    def _waits(self, numbers: Numbers) -> bool:
        """Whether the rank may be waiting for others."""
        if self._activity.phase is not Phase.RUNNING:
            return False
        stuck_s = self._recorder.look(numbers)
        return max(self._main.still_s, stuck_s, polling_s()) > STILL_S

    def _observe(self, numbers: Numbers) -> Heartbeat:
        by_key = self._recorder.by_key(numbers)
        called = {key: enqueued for key, (enqueued, _) in by_key.items()}
        self._main.look(
            self._activity.cell_labels, self._activity.other_cells, (called, last_transfer())
        )
        place = self._main.place
        polling = polling_s()  # such a loop stands still, wherever in it the thread is
        return Heartbeat(
            rank=self._rank,
            time=now(),
            phase=self._activity.phase,
            line=place.line,
            cell=place.cell,
            call="is_completed" if polling > STILL_S else place.call,
            inner=place.inner,
            still_s=max(self._main.still_s, polling),
            cpu_s=self._main.cpu_s(),
            enqueued=called,
            completed={key: completed for key, (_, completed) in by_key.items()},
            rss_mib=_rss_mib(),
            device_mib=device.reserved_mib(),
            takes_usr1=takes_usr1(),
            exit_wait=self._exit_wait(),
        )

    def _exit_wait(self) -> str:
        if self._activity.phase is not Phase.EXITING:
            return ""
        return exit_wait(self._activity.cell_labels)

    def resume(self) -> None:
        """Send heartbeats again, the first one in `HEARTBEAT_S`: the rank is no longer idle."""
        self._wake(_RESUME)

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


def _rss_mib() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * resource.getpagesize() / 2**20

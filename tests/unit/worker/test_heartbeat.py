"""Heartbeats: when they are sent, and what they carry."""

from __future__ import annotations

import os
import threading
import time
from typing import Any, cast

from ddp_magic.wire.messages import Heartbeat, Interrupted
from ddp_magic.wire.states import Phase
from ddp_magic.worker.activity import Activity
from ddp_magic.worker.heartbeat import HEARTBEAT_S, HeartbeatThread, observe
from tests.unit.worker.fakes import FakeChannel


def _thread(progress: Activity) -> tuple[HeartbeatThread, FakeChannel]:
    channel = FakeChannel()
    return HeartbeatThread(2, cast("Any", channel), progress), channel


def test_a_heartbeat_carries_phase_line_and_memory() -> None:
    """Of the main thread, wherever it is called."""
    progress = Activity(Phase.RUNNING, 1, "/run/cell.py")
    beats: list[Heartbeat] = []

    def beat() -> None:
        thread = threading.Thread(target=lambda: beats.append(observe(2, progress)))
        thread.start()
        thread.join()

    exec(compile("\n\ndef f():\n    beat()\nf()", "/run/cell.py", "exec"), {"beat": beat})
    (sent,) = beats
    assert (sent.rank, sent.phase, sent.line, sent.device_mib) == (2, Phase.RUNNING, 4, None)
    assert 1 < sent.rss_mib < 100_000


def test_outside_of_the_cell_there_is_no_line() -> None:
    assert observe(0, Activity(Phase.EXITING, 1, "/run/cell.py")).line is None
    assert observe(0, Activity()).line is None


def test_one_is_sent_when_its_time_has_come() -> None:
    heartbeats, channel = _thread(Activity(Phase.RUNNING))
    began = time.monotonic()
    assert heartbeats.beat()
    assert time.monotonic() - began >= HEARTBEAT_S * 0.9
    assert [type(event) for event in channel.sent] == [Heartbeat]


def test_an_idle_rank_sends_one_when_it_is_woken() -> None:
    """By a command; it waits for ever otherwise."""
    heartbeats, channel = _thread(Activity(Phase.IDLE))
    heartbeats.beat_now()
    assert heartbeats.beat()
    assert [event.phase for event in channel.sent] == [Phase.IDLE]


def test_an_interrupt_is_acknowledged_before_the_heartbeat() -> None:
    """Once, however often the thread was woken."""
    heartbeats, channel = _thread(Activity(Phase.IDLE))
    for wake in (heartbeats.beat_now, heartbeats.interrupt_taken, heartbeats.interrupt_taken):
        wake()
    assert heartbeats.beat()
    assert [type(event) for event in channel.sent] == [Interrupted, Heartbeat]


def test_a_storm_of_interrupts_does_not_block() -> None:
    """The signal handler must return, though nothing reads the pipe."""
    heartbeats, _ = _thread(Activity())
    for _ in range(70_000):
        heartbeats.interrupt_taken()


def test_a_rank_whose_descriptor_was_closed_sends_nothing() -> None:
    """Its number may be a file of the user's by now."""
    heartbeats, channel = _thread(Activity(Phase.IDLE))
    channel.owned = False
    heartbeats.beat_now()
    assert not heartbeats.beat()
    assert channel.sent == []


def test_its_pipe_is_not_inherited_by_programs() -> None:
    heartbeats, _ = _thread(Activity())
    assert not os.get_inheritable(heartbeats._wake_w)

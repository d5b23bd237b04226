"""Heartbeats: when they are sent, and what they carry."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ddp_magic.wire.collectives import Transfer
from ddp_magic.wire.states import Phase
from ddp_magic.wire.worker_events import Collectives, Heartbeat, Interrupted
from ddp_magic.worker.watch.activity import Activity
from ddp_magic.worker.watch.heartbeat import HEARTBEAT_S, REPEAT_S, STILL_S, HeartbeatThread
from ddp_magic.worker.watch.other_threads import thread_waited_for, threads_in_groups
from tests.limits import HANG_S, within
from tests.unit.worker.fakes import FakeChannel


def _thread(progress: Activity) -> tuple[HeartbeatThread, FakeChannel]:
    channel = FakeChannel()
    return HeartbeatThread(2, cast("Any", channel), progress), channel


def test_a_heartbeat_carries_phase_line_call_and_memory() -> None:
    """Of the main thread, while another one sends it."""
    heartbeats, channel = _thread(Activity(Phase.RUNNING, 1, {"/run/cell.py": "Cell In[2]"}))

    def beat() -> None:
        thread = threading.Thread(target=heartbeats.beat)
        thread.start()
        thread.join()

    exec(compile("\n\ndef f():\n    beat()\nf()", "/run/cell.py", "exec"), {"beat": beat})
    (sent,) = channel.sent
    assert (sent.rank, sent.phase, sent.line, sent.device_mib) == (2, Phase.RUNNING, 4, None)
    assert sent.cell == "Cell In[2]"
    assert sent.inner.startswith("test_heartbeat.py, line")
    assert sent.call == ("Thread.join" if sys.version_info >= (3, 11) else "join")
    assert 1 < sent.rss_mib < 100_000
    assert sent.cpu_s > 0


@pytest.mark.parametrize("activity", [Activity(Phase.EXITING, 1, {"/run/cell.py": ""}), Activity()])
def test_outside_of_the_cell_there_is_no_line(activity: Activity) -> None:
    heartbeats, channel = _thread(activity)
    heartbeats.beat()
    assert (channel.sent[0].line, channel.sent[0].call) == (None, "")


def test_a_rank_that_stands_still_reports_its_groups() -> None:
    """Once it has for a while, and from then on once a second."""
    heartbeats, channel = _thread(Activity(Phase.RUNNING))
    done = threading.Event()

    def beat() -> None:
        deadline = time.monotonic() + HANG_S
        while (
            sum(isinstance(e, Collectives) for e in channel.sent) < 2
            and time.monotonic() < deadline
        ):
            heartbeats.beat()
        done.set()

    threading.Thread(target=beat).start()
    assert done.wait(HANG_S)  # the main thread is here all the time
    kinds = [type(event) for event in channel.sent]
    first, second = (i for i, kind in enumerate(kinds) if kind is Collectives)
    assert channel.sent[first - 1].still_s > STILL_S
    assert second - first > REPEAT_S / HEARTBEAT_S / 2


def test_a_handler_of_the_users_for_the_signal_that_asks_for_stacks_is_reported() -> None:
    heartbeats, channel = _thread(Activity(Phase.RUNNING))
    heartbeats.beat()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    heartbeats.beat()
    signal.signal(signal.SIGUSR1, before)
    assert [sent.takes_usr1 for sent in channel.sent] == [False, True]


def test_what_a_thread_waits_for_is_reported_with_its_line() -> None:
    """While the main thread waits for the thread."""
    heartbeats, _ = _thread(Activity(Phase.RUNNING, 1, {"/run/cell.py": ""}))
    begun, release = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        release.wait(HANG_S)

    names: dict[str, Any] = {"wait": wait}
    torchs = "/any/torch/distributed/distributed_c10d.py"
    exec(compile("def recv(tensor, src):\n    wait()", torchs, "exec"), names)
    exec(compile("\n\ndef get():\n    recv(None, src=1)", "/run/cell.py", "exec"), names)

    sent: list[Collectives] = []

    def report() -> None:
        began = time.monotonic()
        while not thread_waited_for() and within(time.monotonic() - began, HANG_S):
            time.sleep(0.01)
        sent.append(heartbeats.collectives_of_cell())
        release.set()

    thread = threading.Thread(target=names["get"])
    thread.start()
    assert begun.wait(HANG_S)
    threading.Thread(target=report).start()
    thread.join(HANG_S)  # the main thread is here
    (collectives,) = sent
    assert (collectives.thread, collectives.transfers) == (
        "line 4",
        (Transfer(kind="recv", peer=1),),
    )


def test_threads_in_collectives_are_reported_with_their_group() -> None:
    """Also while the main thread does something else; but not of a group that it waits in too."""
    heartbeats, _ = _thread(Activity(Phase.RUNNING, 1, {"/run/cell.py": ""}))
    barrier = threading.Barrier(3)
    group = SimpleNamespace(group_name="7")
    names: dict[str, Any] = {"wait": lambda: [barrier.wait(HANG_S) for _ in range(2)]}
    torchs = "/any/torch/distributed/distributed_c10d.py"
    exec(compile("def all_reduce(tensor, group):\n    wait()", torchs, "exec"), names)
    exec(compile("\n\ndef f(g):\n    all_reduce(None, g)", "/run/cell.py", "exec"), names)

    threads = [threading.Thread(target=names["f"], args=(group,)) for _ in range(2)]
    threads[0].start()
    began = time.monotonic()
    while not threads_in_groups() and within(time.monotonic() - began, HANG_S):
        time.sleep(0.01)
    found = heartbeats.collectives_of_cell()
    assert (found.threads, found.runs_on) == ({"7": "line 4"}, True)

    def report() -> None:
        barrier.wait(HANG_S)
        sent.append(heartbeats.collectives_of_cell())
        barrier.wait(HANG_S)

    sent: list[Collectives] = []
    threads[1] = threading.Thread(target=report)
    threads[1].start()
    names["f"](group)
    for thread in threads:
        thread.join(HANG_S)
    assert sent[0].threads == {}


def test_one_is_sent_when_its_time_has_come() -> None:
    heartbeats, channel = _thread(Activity(Phase.RUNNING))
    began = time.monotonic()
    assert heartbeats.beat()
    assert time.monotonic() - began >= HEARTBEAT_S * 0.9
    assert [type(event) for event in channel.sent] == [Heartbeat]


def test_a_rank_that_is_no_longer_idle_sends_the_first_one_when_its_time_has_come() -> None:
    """A short cell needs none, and an idle rank waits for ever."""
    activity = Activity(Phase.IDLE)
    heartbeats, channel = _thread(activity)
    activity.phase = Phase.RUNNING
    heartbeats.resume()
    assert heartbeats.beat()
    assert channel.sent == []
    assert heartbeats.beat()
    assert [event.phase for event in channel.sent] == [Phase.RUNNING]


def test_an_interrupt_is_acknowledged_before_the_heartbeat() -> None:
    """Once, however often the thread was woken."""
    heartbeats, channel = _thread(Activity(Phase.IDLE))
    for wake in (heartbeats.resume, heartbeats.interrupt_taken, heartbeats.interrupt_taken):
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
    heartbeats.interrupt_taken()
    assert not heartbeats.beat()
    assert channel.sent == []


def test_its_pipe_is_not_inherited_by_programs() -> None:
    heartbeats, _ = _thread(Activity())
    assert not os.get_inheritable(heartbeats._wake_w)

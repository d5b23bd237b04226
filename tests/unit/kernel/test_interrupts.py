"""Stop in the kernel's own process: SIGINT."""

from __future__ import annotations

import signal
import threading

import pytest

from ddp_magic.errors import RunInterrupted
from ddp_magic.kernel.interrupts import InterruptCounter, deferred, without_frames
from tests.unit.fakes import press_stop


def test_presses_are_counted_and_not_raised() -> None:
    """The handler of before is back afterwards."""
    before = signal.getsignal(signal.SIGINT)
    with InterruptCounter() as counter:
        press_stop()
        press_stop()
    assert counter.count == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_counts_nothing() -> None:
    """Python's handlers are the main thread's."""
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def count() -> None:
        with InterruptCounter() as counter:
            seen.append((counter.count, signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
    assert seen == [(0, True)]


def test_a_deferred_press_is_raised_at_the_end() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), deferred():
        press_stop()
        done.append("to the end")
    assert done == ["to the end"]
    with deferred():
        pass


def test_an_interrupt_is_shown_as_one_line() -> None:
    with pytest.raises(RunInterrupted, match="while values were sent"):
        with without_frames(lambda: "Stop was pressed while values were sent"):
            raise KeyboardInterrupt


def test_a_runs_own_interrupt_is_kept() -> None:
    """It says more."""
    with pytest.raises(RunInterrupted, match="rank 0 stopped"):
        with without_frames(lambda: "something else"):
            raise RunInterrupted("rank 0 stopped")

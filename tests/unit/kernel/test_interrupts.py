"""Stop in the kernel's own process: SIGINT."""

from __future__ import annotations

import errno
import signal
import threading

import pytest

from ddp_magic.errors import LaunchError, RunInterrupted
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

    def work() -> None:
        with deferred():
            press_stop()
            done.append("to the end")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["to the end"]


def test_without_a_press_nothing_is_raised() -> None:
    with deferred():
        pass


@pytest.mark.parametrize(
    ("raised", "shown"),
    [(KeyboardInterrupt(), "while sending"), (RunInterrupted("rank 0"), "rank 0")],
)
def test_an_interrupt_is_shown_as_one_line(raised: BaseException, shown: str) -> None:
    """A run's own is kept: it says more."""
    with (
        pytest.raises(RunInterrupted, match=shown),
        without_frames(lambda: "while sending"),
    ):
        raise raised


def test_a_failed_system_call_is_shown_as_one_line() -> None:
    """With what to do, if it is a limit."""
    with (
        pytest.raises(LaunchError, match=r"Too many open files \(ulimit -n: \d+\): close files"),
        without_frames(lambda: ""),
    ):
        raise OSError(errno.EMFILE, "Too many open files")
    with pytest.raises(LaunchError, match=r"No such file or directory: 'x'$"), without_frames(str):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")

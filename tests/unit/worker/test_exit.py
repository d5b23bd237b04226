"""What a rank runs at its end, in which order."""

from __future__ import annotations

import atexit
import threading
import time

import pytest

from ddp_magic.worker.exit import Step, join_queue_threads, run_steps, steps
from ddp_magic.worker.shell import end_names

pytestmark = pytest.mark.usefixtures("signal_handlers")


def _fail(error: BaseException) -> None:
    raise error


def test_the_order_is_the_interpreters() -> None:
    """Threads, exit handlers, objects; then the threads that exit handlers have asked to end."""
    assert [step.run for step in steps(0)] == [
        threading._shutdown,  # type: ignore[attr-defined]
        atexit._run_exitfuncs,
        end_names,
        join_queue_threads,
    ]


def test_a_rank_that_failed_does_not_wait_for_its_threads() -> None:
    """Its peers wait for its end."""
    assert steps(1) == steps(0)[1:]


def test_only_exit_handlers_are_spared_an_early_interrupt() -> None:
    """They are the user's chance to save."""
    assert [step.run for step in steps(0) if step.may_save] == [atexit._run_exitfuncs]


def test_an_interrupt_ends_one_step_and_the_next_one_follows() -> None:
    """It is reported once."""
    ran: list[str] = []
    run_steps(
        [Step(lambda: _fail(KeyboardInterrupt())), Step(lambda: ran.append("next"))],
        lambda: ran.append("reported"),
    )
    assert ran == ["reported", "next"]


@pytest.mark.parametrize("error", [ValueError(), SystemExit(3)])
def test_an_error_of_a_step_ends_only_that_step(error: BaseException) -> None:
    ran: list[str] = []
    run_steps(
        [Step(lambda: _fail(error), may_save=True), Step(lambda: ran.append("next"))],
        lambda: ran.append("reported"),
    )
    assert ran == ["next"]


def test_the_threads_of_queues_are_waited_for() -> None:
    """And no others."""
    ended: list[str] = []
    go_on = threading.Event()

    def feed() -> None:
        time.sleep(0.02)
        ended.append("feeder")

    other = threading.Thread(target=go_on.wait, name="other")
    feeder = threading.Thread(target=feed, name="QueueFeederThread")
    for thread in (other, feeder):
        thread.start()
    join_queue_threads(60.0)
    assert ended == ["feeder"]
    assert other.is_alive()
    go_on.set()
    other.join()


def test_a_stuck_queue_does_not_hold_the_rank() -> None:
    go_on = threading.Event()
    feeder = threading.Thread(target=go_on.wait, name="QueueFeederThread")
    feeder.start()
    join_queue_threads(0.01)
    assert feeder.is_alive()
    go_on.set()
    feeder.join()

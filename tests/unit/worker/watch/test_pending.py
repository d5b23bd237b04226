"""What a group waits for, though later collectives have overwritten its record."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from ddp_magic.wire.collectives import UNNAMED, Operation
from ddp_magic.worker.watch.pending import Pending

MAIN, METRICS = ("gloo", "0"), ("gloo", "1")
BARRIER = Operation(number=2, name="barrier", created=1000.0, done=False)
NOW = 50.0


def test_for_how_long_a_collective_has_not_completed() -> None:
    """Of the group that has waited longest; a new one begins anew."""
    pending = Pending()
    assert pending.look({MAIN: (1, 1)}, 10.0) == 0.0
    assert pending.look({MAIN: (2, 1), METRICS: (1, 0)}, 11.0) == 0.0
    assert pending.look({MAIN: (3, 1), METRICS: (2, 1)}, 15.0) == 4.0
    assert pending.look({MAIN: (3, 2), METRICS: (2, 2)}, 16.0) == 0.0
    assert pending.look({MAIN: (3, 3), METRICS: (2, 2)}, 30.0) == 0.0


def test_the_record_is_read_once_for_each_wait() -> None:
    """A rank that waits long, or for nothing, costs nothing."""
    pending, found = Pending(), []
    for number, numbers in enumerate([(1, 1), (2, 1), (2, 1), (3, 1), (3, 2), (3, 3), (4, 3)]):
        pending.look({MAIN: numbers}, number)
        found.append(pending.is_new)
    assert found == [False, True, False, False, True, False, True]


def test_what_was_seen_is_kept_until_it_has_completed() -> None:
    pending = Pending()
    pending.look({MAIN: (2, 1)}, NOW)
    done = replace(BARRIER, number=1, done=True)
    pending.keep({MAIN: [done, BARRIER], METRICS: [BARRIER]})
    assert pending.with_kept(MAIN, [], (2, 1), "") == [BARRIER]
    assert pending.with_kept(MAIN, [BARRIER], (2, 1), "barrier") == [BARRIER]
    assert pending.with_kept(METRICS, [], (2, 1), "") == []
    later = replace(BARRIER, number=3)
    assert pending.with_kept(MAIN, [later], (3, 1), "") == [BARRIER, later]
    assert pending.with_kept(MAIN, [later], (3, 2), "") == [later]
    pending.look({MAIN: (3, 2)}, NOW)
    assert pending.with_kept(MAIN, [], (2, 1), "") == []


@pytest.mark.parametrize(
    ("in_call", "numbers", "number"),
    [
        ("barrier", (7, 6), 7),
        ("barrier", (7, 5), 7),  # gloo has not noted that the sixth has completed
        (UNNAMED, (9, 5), 6),  # backward calls several, and waits for the first
    ],
)
def test_of_what_was_never_seen_the_stack_tells(
    in_call: str, numbers: tuple[int, int], number: int
) -> None:
    pending = Pending()
    pending.look({MAIN: numbers}, time.monotonic() - 8.0)
    (found,) = pending.with_kept(MAIN, [], numbers, in_call)
    assert (found.number, found.name, found.is_recorded) == (number, in_call, False)
    assert 7.5 < time.time() - found.created < 60.0
    done = replace(BARRIER, number=number, done=True)
    assert pending.with_kept(MAIN, [done], numbers, in_call) == [done]
    assert pending.with_kept(MAIN, [], numbers, "") == []
    assert pending.with_kept(MAIN, [], (5, 5), in_call) == []


@pytest.mark.parametrize(("oldest", "told"), [(8, False), (9, True), (300, True)])
def test_the_first_of_many_that_wait_may_be_overwritten(oldest: int, told: bool) -> None:
    """Each call is asynchronous. A completion that is noted late is none of them."""
    pending = Pending()
    pending.look({MAIN: (400, 6)}, NOW)
    later = replace(BARRIER, number=oldest)
    found = [one.number for one in pending.with_kept(MAIN, [later], (400, 6), "")]
    assert found == ([7, oldest] if told else [oldest])

"""Waiting for other ranks, told from moving data."""

from __future__ import annotations

from ddp_magic.display.profiles.waits import Wait, Waits
from ddp_magic.wire.profile import Group, Sample, Spent
from tests.unit.display.profiles.examples import BEGAN, made


def _sample(at: float, number: int = 1) -> Sample:
    return Sample(BEGAN + at, 0.02, Spent.COLLECTIVE, 0, 0, number)


def test_a_rank_waits_until_the_last_one_has_come() -> None:
    """And from then on data are moved; what the last one does meanwhile is known."""
    first = made(0, [(Spent.COLLECTIVE, 2.0)], nproc=3)
    last = made(1, [(Spent.LOADING, 1.0), (Spent.COLLECTIVE, 1.0)], nproc=3)
    middle = made(2, [(Spent.COMPUTE, 0.5), (Spent.COLLECTIVE, 1.5)], nproc=3)
    waits = Waits([first, last, middle])
    assert waits.of(0, _sample(0.3)) == Wait(1, Spent.LOADING)
    assert waits.of(2, _sample(0.7)) == Wait(1, Spent.LOADING)
    assert waits.of(0, _sample(1.1)) == Wait(None)
    assert waits.of(1, _sample(1.1)) == Wait(None)


def test_a_later_collective_tells_that_a_rank_has_come() -> None:
    """The record of the collective itself may have been overwritten."""
    here = made(0, [(Spent.COLLECTIVE, 1.0)])
    other = made(1, [(Spent.COLLECTIVE, 1.0)], calls=[(5, 0.4)])
    assert Waits([here, other]).of(0, _sample(0.5, number=3)) == Wait(None)


def test_an_earlier_collective_tells_that_a_rank_has_not_come() -> None:
    here = made(0, [(Spent.COLLECTIVE, 1.0)])
    other = made(1, [(Spent.COMPUTE, 1.0)], calls=[(3, 0.6), (9, 0.8)])
    assert Waits([here, other]).of(0, _sample(0.5, number=4)) == Wait(1, Spent.COMPUTE)


def test_between_two_records_nobody_can_tell() -> None:
    here = made(0, [(Spent.COLLECTIVE, 1.0)])
    other = made(1, [(Spent.COLLECTIVE, 1.0)], calls=[(3, 0.4), (9, 0.6)])
    assert Waits([here, other]).of(0, _sample(0.5, number=5)) is None


def test_a_rank_that_calls_no_more_is_waited_for() -> None:
    """It has finished its cell, was killed, or holds the interpreter lock."""
    here = made(0, [(Spent.COLLECTIVE, 2.0)], calls=[(2, 0.0)])
    finished = made(1, [(Spent.COMPUTE, 0.5)], calls=[(1, 0.1)])
    assert Waits([here, finished]).of(0, _sample(1.0, number=2)) == Wait(1, None)
    silent = made(1, [], groups=[])
    assert Waits([here, silent]).of(0, _sample(1.0, number=2)) == Wait(1, None)


def test_of_a_rank_without_a_profile_nothing_is_concluded() -> None:
    here = made(0, [(Spent.COLLECTIVE, 2.0)], nproc=2)
    assert Waits([here]).of(0, _sample(1.0)) is None


def test_a_collective_that_the_record_does_not_know_is_not_told() -> None:
    here = made(0, [(Spent.COLLECTIVE, 2.0)])
    unknown = Sample(BEGAN, 0.02, Spent.COLLECTIVE, 0)
    assert Waits([here]).of(0, unknown) is None


def test_a_receive_waits_for_a_rank_that_does_not_send() -> None:
    """The record has no messages; but ranks look at the same moments."""
    receives = made(0, [(Spent.COLLECTIVE, 2.0)], groups=[Group("peer:1")])
    sends = made(1, [(Spent.COMPUTE, 1.0), (Spent.COLLECTIVE, 1.0)], groups=[Group("peer:0")])
    waits = Waits([receives, sends])
    assert waits.of(0, _sample(0.5)) == Wait(1, Spent.COMPUTE)
    assert waits.of(0, _sample(1.5)) == Wait()
    assert Waits([receives]).of(0, _sample(0.5)) is None

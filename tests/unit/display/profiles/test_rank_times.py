"""Where the time of each rank went."""

from __future__ import annotations

import pytest

from ddp_magic.display.profiles.rank_times import (
    MIN_STEPS,
    line_times,
    line_times_by_kind,
    loop_of,
    rank_times,
)
from ddp_magic.display.profiles.waits import Waits
from ddp_magic.wire.profile import Sample, Spent
from tests.unit.display.profiles.examples import BEGAN, CELL, LINES, made


def test_the_parts_add_up_to_the_whole() -> None:
    profile = made(0, [(kind, 1.0) for kind in Spent], nproc=1)
    times = rank_times(profile, Waits([profile]))
    assert times.total_s == pytest.approx(len(Spent))
    assert sum(times.seconds(kind) for kind in Spent) == pytest.approx(times.total_s)
    assert times.waiting_s == pytest.approx(0.0)
    assert times.moving_s == pytest.approx(times.collective_s)


def test_waiting_is_split_from_moving_data() -> None:
    first = made(0, [(Spent.COLLECTIVE, 2.0)])
    last = made(1, [(Spent.SAVING, 1.5), (Spent.COLLECTIVE, 0.5)])
    waits = Waits([first, last])
    times = rank_times(first, waits)
    assert times.waiting_s == pytest.approx(1.5, abs=0.05)
    assert times.moving_s == pytest.approx(0.5, abs=0.05)
    assert times.waits[1, Spent.SAVING] == pytest.approx(1.5, abs=0.05)
    assert rank_times(last, waits).waiting_s == pytest.approx(0.0)


def test_what_is_told_stands_for_the_rest() -> None:
    """A record keeps the last 64 collectives; of a fast loop, few are read in time."""
    profile = made(0, [(Spent.COLLECTIVE, 1.0)], nproc=1)
    profile.samples += [Sample(1.0 + s.time, s.seconds, s.spent, s.place) for s in profile.samples]
    times = rank_times(profile, Waits([profile]))
    assert times.told == pytest.approx(0.5)
    assert times.moving_s == pytest.approx(2.0)


def test_a_rank_that_never_waits_has_waited_for_exactly_nothing() -> None:
    """The rest of the time in collectives is a number such as -7e-18."""
    profile = made(0, [(Spent.COLLECTIVE, 0.12)], nproc=1)
    profile.samples.append(Sample(BEGAN + 2.0, 0.002669, Spent.COLLECTIVE, 0))
    assert rank_times(profile, Waits([profile])).waiting_s == 0.0


def test_without_a_record_the_two_are_not_told_apart() -> None:
    profile = made(0, [(Spent.COLLECTIVE, 1.0)], groups=[])
    profile.samples = [Sample(s.time, s.seconds, s.spent, s.place) for s in profile.samples]
    times = rank_times(profile, Waits([profile]))
    assert (times.waiting_s, times.moving_s) == (None, None)
    assert times.collective_s == pytest.approx(1.0)


def test_steps_are_timed_from_one_to_the_next() -> None:
    profile = made(0, [(Spent.COMPUTE, 2.0)], steps=[0.1, 0.2, 0.3, 0.5, 1.5])
    times = rank_times(profile, Waits([profile]))
    assert times.steps == 5
    assert times.step_s == pytest.approx(0.15)
    assert times.slow_step_s == pytest.approx(1.0)


def test_of_few_steps_nine_of_ten_take_no_less_than_the_median() -> None:
    profile = made(0, [(Spent.COMPUTE, 2.0)], steps=[0.1, 0.5, 1.5])
    times = rank_times(profile, Waits([profile]))
    assert times.step_s == pytest.approx(0.7)
    assert times.slow_step_s == pytest.approx(1.0)


def test_a_loop_is_what_is_between_its_steps() -> None:
    profile = made(0, [(Spent.LOADING, 1.0), (Spent.COMPUTE, 2.0)], steps=[1.0, 1.2, 1.4, 1.6, 2.0])
    window = loop_of(profile)
    assert window == (BEGAN + 1.0, BEGAN + 2.0)
    times = rank_times(profile, Waits([profile]), window)
    assert times.total_s == pytest.approx(1.0, abs=0.05)
    assert times.loading_s == pytest.approx(0.0, abs=0.05)
    assert loop_of(made(0, [], steps=[0.1] * (MIN_STEPS - 1))) is None


def test_lines_are_ordered_by_their_share_of_the_ranks_time() -> None:
    one = made(0, [(Spent.COMPUTE, 3.0), (Spent.SAVING, 1.0)])
    other = made(1, [(Spent.SAVING, 1.0), (Spent.COMPUTE, 1.0)])
    first, second = line_times([one, other])
    assert (first.place.file, first.place.line) == (CELL, LINES[Spent.COMPUTE])
    assert first.spent is Spent.COMPUTE
    assert first.share == pytest.approx((0.75 + 0.5) / 2)
    assert second.by_rank == {0: pytest.approx(0.25), 1: pytest.approx(0.5)}
    by_kind = line_times_by_kind([one, other], None)
    assert by_kind[Spent.SAVING][0].place.line == LINES[Spent.SAVING]

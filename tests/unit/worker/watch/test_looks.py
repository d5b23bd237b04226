"""When the profile looks at the main thread."""

from __future__ import annotations

import pytest

from ddp_magic.worker.watch.looks import PERIOD_S, SAMPLES, Looks, next_look


@pytest.mark.parametrize("every", [1, 4])
def test_all_ranks_look_at_the_same_moments(every: int) -> None:
    """However late one was, and once in each period, at moments that differ."""
    now = 1_700_000_000.0
    assert next_look(now, every) == next_look(now - 0.0001, every)
    looks = []
    for _ in range(200):
        now = next_look(now, every)
        looks.append(now)
    periods = [int(look / PERIOD_S) for look in looks]
    assert periods == [periods[0] + n * every for n in range(200)]
    phases = [look / PERIOD_S % 1.0 for look in looks]
    assert all(any(abs(p - k / 10) < 0.1 for p in phases) for k in range(10))
    # A rank that looks less often does so when the others look too.
    assert next_look(looks[4] - 0.001) == looks[4]


def test_looks_that_cost_much_are_fewer() -> None:
    """And more again once they cost little."""
    looks = Looks()
    for _ in range(100):
        looks.add(50e-6, 1.0)
    assert looks.every == 1
    for _ in range(100):
        looks.add(300e-6, 1.0)
    assert looks.every == 4
    for _ in range(2000):
        looks.add(20e-6, 1.0)
    assert looks.every == 1


def test_a_long_run_is_looked_at_less_often() -> None:
    """A file of an hour is not six times one of ten minutes."""
    looks, elapsed_s, count = Looks(), 0.0, 0
    while elapsed_s < 24 * 3600:
        elapsed_s += PERIOD_S * looks.every
        looks.add(20e-6, elapsed_s)
        count += 1
    assert count < 10 * SAMPLES

"""When the event loop waits for text to gather."""

from __future__ import annotations

from ddp_magic.kernel.execution.flood import GATHER_S, READS, Flood
from tests.unit.fakes import ready, text


class _Clock:
    def __init__(self) -> None:
        self.now, self.slept = 100.0, 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def _slept(reads: int, apart_s: float, *, has_text: bool = True) -> float:
    """Return for how long so many reads waited, in seconds."""
    clock = _Clock()
    flood = Flood(lambda: clock.now, clock.sleep)
    for _ in range(reads):
        clock.now += apart_s
        flood.read([text(0, "line\n")] if has_text else [ready(0)])
    return clock.slept


def test_a_line_of_each_rank_is_shown_at_once() -> None:
    """The cell of a session takes 4 ms."""
    assert _slept(16, apart_s=0.0002) == 0


def test_a_flood_gathers() -> None:
    """While it lasts: each read waits."""
    assert _slept(1000, apart_s=0.0002) > (1000 - READS - 2) * GATHER_S


def test_lines_that_come_slowly_do_not_wait() -> None:
    assert _slept(1000, apart_s=0.01) == 0


def test_other_events_do_not_wait() -> None:
    assert _slept(1000, apart_s=0.0002, has_text=False) == 0

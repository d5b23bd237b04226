"""How long tests wait, and how promises in seconds are checked on a machine of any speed.

A bound that ends a hang is `HANG_S` or more, so that no slow machine breaks it. A promise in
seconds ("nothing is left 3 s later") is made for an idle machine of today: where it is missed, the
machine's present speed is measured, and the promise is stretched accordingly.
"""

from __future__ import annotations

import os
import time

HANG_S = 120.0  # for anything that takes seconds
LONG_S = 600.0  # for anything that takes a minute
YARDSTICK_S = 0.037  # on an idle machine, one like those for which the promises were made


def slowness() -> float:
    """Return how many times slower than an idle machine this one is now, at least 1.

    The greater of two measures: a yardstick's wall time, which sees what runs at this moment, and
    its CPU time, times the processes that each core has had to run during the last minute.
    """
    wall_s, cpu_s = (max(times) for times in zip(*(_yardstick() for _ in range(5)), strict=True))
    queued = os.getloadavg()[0] / (os.cpu_count() or 1)
    return max(1.0, wall_s / YARDSTICK_S, cpu_s / YARDSTICK_S * max(1.0, queued))


def within(elapsed_s: float, promise_s: float) -> bool:
    """Return whether a promise was kept; on a slow or loaded machine it is stretched."""
    return elapsed_s < promise_s or elapsed_s < promise_s * slowness()


def _yardstick() -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    sum(i * i for i in range(1_000_000))
    return time.perf_counter() - wall, time.process_time() - cpu

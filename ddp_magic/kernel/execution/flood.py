"""Lets a flood of text gather in the ranks' pipes: each read holds up the rank that writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from ddp_magic.wire.kernel_events import RunEvent, Stream

GATHER_S = 0.005
READS = 20  # with text, each so soon after the one before: a flood, not one line of each rank


class Flood:
    """Waits a moment after each read of a flood.

    Args:
        clock: Returns the time on the monotonic clock, in seconds.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._last = 0.0  # when text was last read
        self._reads = 0

    def read(self, events: Iterable[RunEvent]) -> None:
        """Note what was read, and wait if it belongs to a flood."""
        if not any(isinstance(event, Stream) for event in events):
            return
        is_soon = self._clock() - self._last < GATHER_S
        self._reads = self._reads + 1 if is_soon else 0
        if self._reads > READS:
            self._sleep(GATHER_S)
        self._last = self._clock()

"""What the ranks of a session say while no cell runs."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ddp_magic.wire.kernel_events import Note, PulledValues, RunEvent, Stream
from ddp_magic.wire.worker_events import ClearOutput, DisplayData


class BetweenCells:
    """Keeps what a person should see until the next cell, which shows it; the rest is dropped."""

    def __init__(self) -> None:
        self._kept: list[RunEvent] = []

    def keep(self, events: Iterable[RunEvent]) -> None:
        """Keep what has come."""
        shown = (Stream, DisplayData, ClearOutput, Note)
        for event in events:
            if isinstance(event, shown):
                self._kept.append(event)
            else:
                discard(event)

    def take(self) -> list[RunEvent]:
        """Return what was kept, once."""
        kept, self._kept = self._kept, []
        return kept


def discard(event: RunEvent) -> None:
    """Let go of an event that nobody waits for, and of the memory that comes with it."""
    if isinstance(event, PulledValues) and event.fd is not None:
        os.close(event.fd)

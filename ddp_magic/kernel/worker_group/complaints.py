"""Lines for the user about connections that make no sense."""

from __future__ import annotations

from ddp_magic.wire.kernel_events import Note, RunEvent

MAX_COMPLAINTS = 5  # for a group


class Complaints:
    """Says no more than a few."""

    def __init__(self) -> None:
        self._count = 0

    def note(self, text: str) -> list[RunEvent]:
        """Return a line, unless there were enough of them."""
        self._count += 1
        if self._count == MAX_COMPLAINTS:
            text += " (further messages like this are not shown)"
        return [Note(text=text)] if self._count <= MAX_COMPLAINTS else []

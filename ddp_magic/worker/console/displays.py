"""Rich outputs of a rank: sent as events, and marked in its text where they belong."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from typing import Any

from ddp_magic.wire.channel import Channel
from ddp_magic.wire.events import Event
from ddp_magic.wire.worker_events import ClearOutput, DisplayData
from ddp_magic.worker import interrupts
from ddp_magic.worker.console.streams import TextPipe, flush


class Displays:
    """Where the shell's `display()` and `clear_output()` go (`shell.Outlet`)."""

    def __init__(self, rank: int, channel: Channel, pipe: TextPipe) -> None:
        self._rank = rank
        self._channel = channel
        self._pipe = pipe
        self._mark = 0
        self._lock = threading.Lock()

    @property
    def connected(self) -> bool:
        """False in a forked child of a rank, which has no connection of its own."""
        return not self._channel.closed

    def display(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None,
        display_id: str | None,
        *,
        update: bool,
    ) -> None:
        """Send a rich output, and mark its place in the text."""
        self.send_marked(
            lambda mark: DisplayData(
                rank=self._rank,
                mark=mark,
                data=encoded(data),
                metadata=metadata or {},
                display_id=display_id,
                update=update,
            )
        )

    def clear_output(self, *, wait: bool) -> None:
        """Remove this rank's output; with `wait`, when something follows."""
        self.send_marked(lambda mark: ClearOutput(rank=self._rank, mark=mark, wait=wait))

    def send_marked(self, event: Callable[[int], Event]) -> bool:
        """Send an event, and mark its place in the text; return whether the kernel is there."""
        flush()
        # An interrupt here would leave half a frame, and the kernel could read nothing after it.
        with interrupts.held_back(), self._lock:
            self._mark += 1
            # The event first: when the kernel reads the mark, the event is there already.
            sent = self._channel.send(event(self._mark))
            if sent:
                self._pipe.write_mark(self._mark)
            return sent


def encoded(data: dict[str, Any]) -> dict[str, Any]:
    """Return a display with what is binary, such as a PIL image, in Jupyter's form: base64."""
    return {
        kind: base64.b64encode(content).decode() if isinstance(content, bytes) else content
        for kind, content in data.items()
    }

"""Stand-ins for what a rank talks to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ddp_magic.wire.commands import Command
from ddp_magic.wire.events import Event


class FakeChannel:
    """A connection that remembers what it was given.

    Args:
        open_: Whether the other end is there.
    """

    def __init__(self, *, open_: bool = True) -> None:
        self.sent: list[Any] = []
        self.received_fds: list[int] = []
        self.closed = not open_
        self.owned = True  # its descriptor is still its own

    def send_together(self, messages: Iterable[Command | Event]) -> bool:
        for message in messages:
            self.send(message)
        return not self.closed

    def send(self, message: Command | Event, fd: int | None = None) -> bool:
        del fd
        if not self.closed:
            self.sent.append(message)
        return not self.closed

    def intact(self) -> bool:
        return self.owned

"""Connections to a group's socket that have not said who they are."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ddp_magic.wire.channel import MAX_FRAME_BYTES, Channel

HELLO_S = 30.0  # for one to say who it is
HELLO_BYTES = 64 * 1024  # longest first message
MAX_STRANGERS = 16  # connected at once, beside the ranks and their keepers


class Strangers:
    """Remembers them, in the order in which they came.

    Args:
        hello_s: How long one may send nothing, in seconds; also an attribute.
    """

    def __init__(self, hello_s: float) -> None:
        self.hello_s = hello_s
        self._since: dict[Channel, float] = {}  # monotonic, s

    def __contains__(self, channel: Channel) -> bool:
        return channel in self._since

    def __iter__(self) -> Iterator[Channel]:
        return iter(self._since)

    def add(self, channel: Channel) -> None:
        """Take a connection that has just been made."""
        self._since[channel] = time.monotonic()

    def too_many(self, nproc: int) -> Channel | None:
        """Return the first to go if there are too many beside so many ranks; None if not."""
        return next(iter(self._since)) if len(self._since) > 2 * nproc + MAX_STRANGERS else None

    def silent(self) -> list[Channel]:
        """Return those that have sent nothing for too long."""
        now = time.monotonic()
        return [channel for channel, since in self._since.items() if now - since > self.hello_s]

    def prove(self, channel: Channel) -> None:
        """Accept that one is what it says: it may send long messages now."""
        self.forget(channel)
        channel.max_frame_bytes = MAX_FRAME_BYTES

    def forget(self, channel: Channel) -> None:
        """Forget a connection, which may be nobody's of these."""
        self._since.pop(channel, None)

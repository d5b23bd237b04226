"""What a test reads from the other end of a channel."""

from __future__ import annotations

from ddp_magic.wire.channel import Channel
from ddp_magic.wire.commands import Command
from ddp_magic.wire.events import Event


def received(channel: Channel) -> list[Command | Event]:
    """Wait for messages, and return them; none if the connection has ended."""
    messages: list[Command | Event] | None = []
    while messages == []:
        messages = channel.receive()
    return messages or []

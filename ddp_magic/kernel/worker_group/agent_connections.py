"""The connections of a group's agents: one, one for each node, or with torchrun for each rank."""

from __future__ import annotations

from ddp_magic.wire.channel import Channel


class AgentConnections:
    """Knows whose agents have reported their end.

    Attributes:
        channels: The connections; those that have ended too, until the ranks are restarted.
    """

    def __init__(self) -> None:
        self.channels: list[Channel] = []
        self._done: set[Channel] = set()

    def add(self, channel: Channel) -> None:
        """Take an agent's connection, once."""
        if channel not in self.channels:
            self.channels.append(channel)

    def finish(self, channel: Channel) -> None:
        """Note that an agent has reported its end."""
        self._done.add(channel)

    @property
    def lost(self) -> bool:
        """Whether a connection has ended without such a report."""
        return any(agent.closed and agent not in self._done for agent in self.channels)

    def forget_closed(self) -> None:
        """Forget those that have ended."""
        self.channels[:] = [agent for agent in self.channels if not agent.closed]

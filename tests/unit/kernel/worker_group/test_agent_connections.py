"""Which agents are there, and which have gone without a word."""

from __future__ import annotations

import socket

from ddp_magic.kernel.worker_group.agent_connections import AgentConnections
from ddp_magic.wire.channel import Channel


def _channel() -> Channel:
    ours, theirs = socket.socketpair()
    theirs.close()
    return Channel(ours)


def test_one_that_ends_without_a_report_is_lost() -> None:
    agents, channels = AgentConnections(), [_channel(), _channel()]
    for channel in (*channels, channels[0]):
        agents.add(channel)
    assert agents.channels == channels
    assert not agents.lost
    agents.finish(channels[0])
    channels[0].close()
    assert not agents.lost
    channels[1].close()
    assert agents.lost


def test_those_that_remain_serve_the_next_attempt() -> None:
    """Whoever looks at the connections sees it."""
    agents, channels = AgentConnections(), [_channel(), _channel()]
    for channel in channels:
        agents.add(channel)
    seen = agents.channels
    channels[0].close()
    agents.forget_closed()
    assert seen == [channels[1]]
    assert not agents.lost
    channels[1].close()

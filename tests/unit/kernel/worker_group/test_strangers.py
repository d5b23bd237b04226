"""Connections that have not said who they are; they need no other end here."""

from __future__ import annotations

import socket

from ddp_magic.kernel.worker_group.strangers import HELLO_BYTES, MAX_STRANGERS, Strangers
from ddp_magic.wire.channel import MAX_FRAME_BYTES, Channel


def _channel(max_frame_bytes: int = HELLO_BYTES) -> Channel:
    ours, theirs = socket.socketpair()
    theirs.close()
    return Channel(ours, max_frame_bytes)


def test_one_that_proves_itself_is_none_any_more() -> None:
    """Its messages may be long then."""
    strangers, channel = Strangers(30.0), _channel()
    strangers.add(channel)
    assert channel in strangers
    strangers.prove(channel)
    assert [*strangers] == []
    assert channel.max_frame_bytes == MAX_FRAME_BYTES
    strangers.forget(channel)
    channel.close()


def test_of_too_many_the_first_has_to_go() -> None:
    """As many as the ranks and their keepers, and some more, are not too many."""
    strangers, nproc = Strangers(30.0), 2
    channels = [_channel() for _ in range(2 * nproc + MAX_STRANGERS + 1)]
    for channel in channels:
        assert strangers.too_many(nproc) is None
        strangers.add(channel)
    assert strangers.too_many(nproc) is channels[0]
    for channel in channels:
        channel.close()


def test_those_that_say_nothing_for_too_long() -> None:
    for hello_s, silent in ((-1.0, True), (30.0, False)):
        strangers, channel = Strangers(hello_s), _channel()
        strangers.add(channel)
        assert strangers.silent() == [channel] * silent
        channel.close()

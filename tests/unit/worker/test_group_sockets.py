"""Closing the connections of process groups, and no others."""

from __future__ import annotations

import os
import socket

import pytest

from ddp_magic.worker.group_sockets import GroupSockets


def _is_cut(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False


def test_only_connections_of_groups_are_closed() -> None:
    """Not what was open before, nor what the cell has opened since."""
    sockets = GroupSockets()
    before = socket.socketpair()
    with sockets.opened_here():
        ours = socket.socketpair()
    after = socket.socketpair()
    sockets.cut()
    assert [_is_cut(pair[0]) for pair in (before, ours, after)] == [False, True, False]
    for pair in (before, ours, after):
        for end in pair:
            end.close()


def test_a_socket_that_listens_goes_on() -> None:
    """gloo aborts the process when its listening socket is shut down."""
    sockets = GroupSockets()
    with sockets.opened_here():
        listener = socket.create_server(("127.0.0.1", 0))
    sockets.cut()
    client = socket.create_connection(listener.getsockname(), timeout=60)
    listener.accept()[0].close()
    client.close()
    listener.close()


def test_a_failure_to_connect_leaves_what_was_opened_known() -> None:
    sockets = GroupSockets()
    pairs = []

    def connect() -> None:
        with sockets.opened_here():
            pairs.append(socket.socketpair())
            raise ConnectionError

    with pytest.raises(ConnectionError):
        connect()
    sockets.cut()
    assert _is_cut(pairs[0][0])
    for end in pairs[0]:
        end.close()


def test_closed_descriptors_do_no_harm() -> None:
    sockets = GroupSockets()
    with sockets.opened_here():
        one, other = socket.socketpair()
    os.close(one.detach())
    other.close()
    sockets.cut()

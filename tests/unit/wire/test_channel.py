"""Frames over a socket pair, which stands for a worker."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddp_magic.errors import ProtocolError
from ddp_magic.wire.channel import MAX_FRAME_BYTES, Channel, Listener, connect
from ddp_magic.wire.codec import encode
from ddp_magic.wire.commands import Exit, Kill
from ddp_magic.wire.worker_events import DisplayData
from tests.limits import HANG_S

SOON_S = 0.05


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Channel]]:
    """A raw socket and the channel at its other end."""
    raw, other = socket.socketpair()
    channel = Channel(other)
    yield raw, channel
    raw.close()
    channel.close()


def _frame(message: object) -> bytes:
    payload = encode(message)  # type: ignore[arg-type]
    return struct.pack("!I", len(payload)) + payload


def test_a_frame_in_pieces(pair: tuple[socket.socket, Channel]) -> None:
    """A header or payload that arrives byte by byte is one message, when it is complete."""
    raw, channel = pair
    seen = []
    for byte in _frame(Kill(ranks=(3,))):
        raw.sendall(bytes([byte]))
        seen.append(channel.receive())
    assert seen[:-1] == [[]] * (len(seen) - 1)
    assert seen[-1] == [Kill(ranks=(3,))]


def test_many_frames_at_once(pair: tuple[socket.socket, Channel]) -> None:
    """What arrives together is told apart, the rest is kept."""
    raw, channel = pair
    frames = _frame(Exit()) + _frame(Kill())
    raw.sendall(frames + frames[:3])
    assert channel.receive() == [Exit(), Kill()]
    raw.sendall(frames[3:])
    assert channel.receive() == [Exit(), Kill()]


def test_messages_sent_together_arrive_together(pair: tuple[socket.socket, Channel]) -> None:
    """In order, and nothing is sent for no message."""
    raw, channel = pair
    assert channel.send_together([Exit(), Kill(ranks=(1,))])
    assert raw.recv(4096) == _frame(Exit()) + _frame(Kill(ranks=(1,)))
    channel.send_together([])
    raw.setblocking(False)
    with pytest.raises(BlockingIOError):
        raw.recv(1)


def test_a_huge_length_is_refused(pair: tuple[socket.socket, Channel]) -> None:
    """Before anything of that size is read; `receive` takes it as the end of the stream."""
    raw, channel = pair
    raw.sendall(struct.pack("!I", MAX_FRAME_BYTES + 1))
    assert channel.read()
    with pytest.raises(ProtocolError, match="frame too long"):
        list(channel.frames())
    raw.sendall(b"x")
    assert channel.receive() is None


def test_garbage_is_refused(pair: tuple[socket.socket, Channel]) -> None:
    """A frame of no known message is taken as the end of the stream."""
    raw, channel = pair
    raw.sendall(struct.pack("!I", 4) + b"\x80\x04K.")  # a pickle
    assert channel.receive() is None


def test_the_end_of_the_stream(pair: tuple[socket.socket, Channel]) -> None:
    """A closed peer reads as None, and cannot be sent to."""
    raw, channel = pair
    raw.close()
    assert channel.receive() is None
    assert channel.send(Exit()) is False


def test_big_messages_from_many_threads() -> None:
    """Frames of several threads do not mix."""
    left, right = (Channel(end) for end in socket.socketpair())
    big = [
        DisplayData(rank=i, mark=i, data={"text/plain": str(i) * 10**6}, metadata={})
        for i in range(4)
    ]
    threads = [threading.Thread(target=left.send, args=(message,)) for message in big]
    for thread in threads:
        thread.start()
    seen: list[object] = []
    while len(seen) < len(big):
        seen += right.receive() or []
    for thread in threads:
        thread.join()
    assert sorted(m.rank for m in seen) == [0, 1, 2, 3]  # type: ignore[attr-defined]
    assert all(m in big for m in seen)
    left.close()
    right.close()


def test_a_descriptor_travels_with_a_frame(tmp_path: Path) -> None:
    """The read end of a pipe goes over a listening socket in a directory."""
    listener = Listener(tmp_path / "socket")
    client = connect(str(listener.path))
    server = listener.accept()
    read_end, write_end = os.pipe()
    client.send(Exit(), fd=read_end)
    os.close(read_end)
    os.write(write_end, b"text")
    assert server.receive() == [Exit()]
    assert os.read(server.received_fds[0], 10) == b"text"
    for end in (client, server, listener):
        end.close()
    os.close(write_end)
    os.close(server.received_fds[0])
    assert not listener.path.exists()


def test_a_forked_child_closes_what_it_inherited() -> None:
    """The peer reads the end of the stream though a child of the owner lives on."""
    left, right = (Channel(end) for end in socket.socketpair())
    pid = os.fork()
    if pid == 0:
        os._exit(0 if left.closed and not left.send(Exit()) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert left.send(Exit())
    assert right.receive() == [Exit()]
    left.close()
    right.close()


def test_a_listener_closes_where_its_directory_has_become_a_file(tmp_path: Path) -> None:
    """Whatever has happened to the socket's place, the end of a run goes on."""
    directory = tmp_path / "run"
    directory.mkdir()
    listener = Listener(directory / "socket")
    listener.path.unlink()
    directory.rmdir()
    directory.write_text("in its place")
    listener.close()


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    """It is said with the remedy, not as an OSError of the operating system."""
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    with pytest.raises(ProtocolError, match="TMPDIR"):
        Listener(deep / "socket")


def test_more_connect_at_once_than_the_listener_has_room_for(tmp_path: Path) -> None:
    """They wait for their turn."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        made: list[Channel] = []
        threads = [
            threading.Thread(target=lambda: made.append(connect(path)), daemon=True)
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        accepted = [listener.accept()[0] for _ in threads]
        for thread in threads:
            thread.join(HANG_S)
        assert len(made) == len(threads)
        for end in (*made, *accepted):
            end.close()


def test_nobody_waits_for_ever_to_connect(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        first = connect(path)
        with pytest.raises(OSError, match="temporarily unavailable"):
            connect(path, SOON_S)
        first.close()

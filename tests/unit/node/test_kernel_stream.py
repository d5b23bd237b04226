"""The far relay's two streams, which are pipes here."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ddp_magic.node.kernel_stream import KernelStream
from ddp_magic.wire.relay_frames import ALL, Frame, FrameReader, Kind, LineReader

NODE = 1


class Streams:
    """A node's stream, and the kernel's ends of it."""

    def __init__(self) -> None:
        stdin, self.to_node = os.pipe()
        self.from_node, stdout = os.pipe()
        self.stream = KernelStream(NODE, stdin, stdout)
        self._fds = [stdin, stdout, self.to_node, self.from_node]

    def said(self) -> list[Frame]:
        """Return what the kernel hears."""
        pieces = LineReader().feed(os.read(self.from_node, 2**20))
        return list(FrameReader().feed(b"".join(piece for _, piece in pieces)))

    def close(self, *fds: int) -> None:
        for fd in fds or self._fds:
            os.close(fd)
        self._fds = [fd for fd in self._fds if fd not in fds]


@pytest.fixture
def streams() -> Iterator[Streams]:
    streams = Streams()
    yield streams
    streams.close()


def test_what_is_meant_for_this_node_is_heard(streams: Streams) -> None:
    """An engine may give every node the same stream; a frame may come in pieces."""
    frames = [Frame(node, Kind.MESSAGE, 3, b"x") for node in (0, NODE, ALL)]
    sent = b"".join(frame.encode() for frame in frames)
    os.write(streams.to_node, sent[:-1])
    assert list(streams.stream.read()) == [frames[1]]
    assert list(streams.stream.read()) == []
    os.write(streams.to_node, sent[-1:])
    assert list(streams.stream.read()) == [frames[2]]
    assert not streams.stream.ended


def test_the_end_of_the_stream_is_the_end_of_the_kernel(streams: Streams) -> None:
    streams.close(streams.to_node)
    assert list(streams.stream.read()) == []
    assert streams.stream.ended


def test_what_is_told_is_written_at_once_with_a_flush(streams: Streams) -> None:
    streams.stream.tell(Kind.ALIVE)
    streams.stream.tell(Kind.TEXT, 7, b"abc")
    assert streams.stream.silent_s > 1.0
    streams.stream.flush()
    assert streams.said() == [Frame(NODE, Kind.ALIVE), Frame(NODE, Kind.TEXT, 7, b"abc")]
    assert streams.stream.silent_s < 1e6
    streams.stream.flush()
    os.set_blocking(streams.from_node, False)
    with pytest.raises(BlockingIOError):
        streams.said()


def test_a_stream_that_is_gone_is_the_end_of_the_kernel(streams: Streams) -> None:
    """The engine has closed it."""
    streams.close(streams.from_node)
    streams.stream.tell(Kind.ALIVE)
    streams.stream.flush()
    assert streams.stream.ended

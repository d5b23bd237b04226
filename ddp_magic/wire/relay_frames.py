r"""What the two relays of a node say to each other over the byte streams of an engine.

A frame has a header of 11 bytes (node, kind, connection, length; big-endian) and a payload. To the
nodes, frames go as they are; an engine may give every node the same stream, so each takes what is
addressed to it. From the nodes they come in lines, because several nodes may share a stream, and a
site's own scripts write there too: `\x1e`, node, number of the line, base64. Slurm's `srun` takes
lines of at most 1024 bytes apart from each other; a label that it puts before a line does no harm.
"""

from __future__ import annotations

import base64
import binascii
import enum
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ddp_magic.errors import ProtocolError

ALL = 0xFFFF  # in place of a node: every node
MAX_NODES = 4096
PIECE_BYTES = 256 * 1024  # of what is long
LINE_BYTES = 960  # at most, with its end
_HEADER = struct.Struct("!HBII")
_MAX_PAYLOAD_BYTES = 2**28 + 2**20
_MARK = b"\x1e"
_RAW_BYTES = 684  # in a line: 912 in base64, and 48 for the rest
_MAX_TEXT_BYTES = 64 * 1024  # of a line that is not ours


class NodeEnd(enum.IntEnum):
    """How a node has ended."""

    DIED = 0  # its agent did not report its end
    REPORTED = 1
    TOLD = 2  # the stream from the kernel has ended


class Kind(enum.IntEnum):
    """What a frame is.

    START, HEAD and FILE are JSON; a FILE has its content behind a zero byte, and may say from which
    byte of the file on that is (`at`; below 0, the file is gone). `connection` is a
    number that the far relay has given it; of a SEGMENT, the segment's; of ENDED, a `NodeEnd`.
    """

    START = 0  # to the nodes: what to run
    HEAD = 1  # from node 0 and to all nodes: where the store of the rendezvous listens
    MESSAGE = 2  # a frame of `wire.channel`, without its length
    CLOSED = 3  # that connection has ended
    TEXT = 4  # what a rank wrote
    TEXT_ENDED = 5
    SEGMENT = 6  # a piece of shared memory: to the nodes once for all ranks; from them for one
    FILE = 7  # a file of the run
    LOG = 8  # from the nodes: what the agent wrote
    NODE = 9  # from the nodes: where the relay runs
    ALIVE = 11  # from the nodes: every second
    ENDED = 10  # from the nodes: the agent has ended, and this is the last frame
    SIGNALED = 12  # from the nodes: the relay got this signal, as all processes of a job may


@dataclass(frozen=True)
class Frame:
    """One frame."""

    node: int
    kind: Kind
    connection: int = 0
    payload: bytes = b""

    def encode(self) -> bytes:
        """Return its bytes."""
        head = _HEADER.pack(self.node, self.kind, self.connection, len(self.payload))
        return head + self.payload


class FrameReader:
    """Puts the frames of one stream together."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take bytes, and yield the frames that they complete.

        Raises:
            ProtocolError: They are no frame.
        """
        self._buffer += data
        done = 0
        while len(self._buffer) - done >= _HEADER.size:
            node, kind, connection, length = _HEADER.unpack_from(self._buffer, done)
            if length > _MAX_PAYLOAD_BYTES or kind > max(Kind):
                raise ProtocolError(f"invalid frame of a relay: kind {kind}, {length:,} bytes")
            end = done + _HEADER.size + length
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[done + _HEADER.size : end])
            done = end
            yield Frame(node, Kind(kind), connection, payload)
        del self._buffer[:done]


def write_all(fd: int, data: bytes) -> None:
    """Write bytes to a descriptor that blocks."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class LineWriter:
    """Turns the bytes of a node's stream into lines.

    Args:
        node: Number of the node.
    """

    def __init__(self, node: int) -> None:
        self._node = node
        self._number = 0

    def lines(self, data: bytes) -> bytes:
        """Return the lines that carry these bytes."""
        written = []
        for start in range(0, len(data), _RAW_BYTES):
            text = base64.b64encode(data[start : start + _RAW_BYTES])
            written.append(b"\x1e%x %x %s\n" % (self._node, self._number, text))
            self._number += 1
        return b"".join(written)


class LineReader:
    """Takes the lines of all nodes apart."""

    def __init__(self) -> None:
        self._buffer = b""
        self._next: dict[int, int] = {}

    def feed(self, data: bytes) -> Iterator[tuple[int | None, bytes]]:
        """Yield (node, bytes of its stream) in order; for a line that is not ours, None and it.

        Raises:
            ProtocolError: A line of a node is missing or broken.
        """
        *lines, rest = (self._buffer + data).split(b"\n")
        self._buffer = b""
        yield from self._decoded(lines)
        if len(rest) > _MAX_TEXT_BYTES and _MARK not in rest:
            yield None, rest
            rest = b""
        self._buffer = rest

    def end(self) -> bytes:
        """Return what is left, at the end of the stream."""
        rest, self._buffer = self._buffer, b""
        return rest

    def _decoded(self, lines: list[bytes]) -> Iterator[tuple[int | None, bytes]]:
        for line in lines:
            before, mark, ours = line.rpartition(_MARK)
            if not mark:
                yield None, line + b"\n"
                continue
            if before and not before.strip().rstrip(b":").isdigit():  # else srun's label
                yield None, before + b"\n"
            yield self._piece(ours)

    def _piece(self, ours: bytes) -> tuple[int, bytes]:
        try:
            words = ours.split()
            node, number = int(words[0], 16), int(words[1], 16)
            piece = base64.b64decode(words[2], validate=True)
        except (ValueError, IndexError, binascii.Error):
            node, number, piece = 0, -1, b""
        expected = self._next.get(node, 0)
        if number != expected or node >= MAX_NODES:
            problem = "the output of the nodes arrives incomplete"
            raise ProtocolError(f"{problem}, after line {expected} of node {node}: {ours[:60]!r}")
        self._next[node] = expected + 1
        return node, piece

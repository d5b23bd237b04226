"""The half of the near relay that carries what the kernel sends to the nodes, in its own thread.

Shared memory and a cell's file go to all nodes once, however many ranks the kernel sends them to.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddp_magic.errors import ProtocolError
from ddp_magic.wire.channel import Channel
from ddp_magic.wire.codec import decode, type_name
from ddp_magic.wire.commands import Captured, RunCell, SharedMemory
from ddp_magic.wire.relay_frames import ALL, PIECE_BYTES, Frame, Kind

_HEEDED = ("SharedMemory", "Captured", "RunCell")  # by the relay itself


@dataclass
class Far:
    """A connection of another node's, as the kernel sees it."""

    node: int
    number: int
    channel: Channel
    pipe: int = -1  # write end of its text
    values: int = -1  # shared memory that comes with its next message


class ToNodes:
    """Reads the kernel's connections, and writes frames to the nodes' stream.

    Args:
        folders: Directories of the cells that were sent, by name; kept up to date.
    """

    def __init__(self, folders: dict[str, Path]) -> None:
        self._folders = folders
        self._by_fd: dict[int, Far] = {}
        self._sent_segments: set[int] = set()
        self._queue: deque[Iterator[bytes]] = deque()
        self._piece = memoryview(b"")
        self._epoll = select.epoll()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._stdin = -1

    def put(self, frame: Frame) -> None:
        """Send a frame; from any thread."""
        self._queue.append(iter((frame.encode(),)))
        self._wake(b"w")

    def _wake(self, what: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, what)

    def add(self, far: Far) -> None:
        """Carry what the kernel sends over this connection; from any thread."""
        self._by_fd[far.channel.fileno()] = far
        self._epoll.register(far.channel.fileno(), select.EPOLLIN)

    def forget(self, far: Far) -> None:
        """Carry nothing more of a connection."""
        self._by_fd.pop(far.channel.fileno(), None)

    def carry(self, stdin: int) -> None:
        """Carry what comes, until `end`.

        Args:
            stdin: Descriptor of the nodes' stream.
        """
        self._stdin = stdin
        os.set_blocking(stdin, False)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        waits = False
        while True:
            more = self._write()
            if more != waits and self._stdin >= 0:
                waits = more
                if waits:
                    self._epoll.register(self._stdin, select.EPOLLOUT)
                else:
                    self._epoll.unregister(self._stdin)
            for fd, _ in self._epoll.poll():
                if fd == self._wake_read:
                    if b"e" in os.read(self._wake_read, 4096):
                        return
                elif (far := self._by_fd.get(fd)) is not None:
                    self._read(far)

    def end(self) -> None:
        """Let `carry` return."""
        self._wake(b"e")

    def close(self) -> None:
        """Release what is held, after `carry` has returned."""
        for fd in (self._wake_read, self._wake_write):
            os.close(fd)
        self._epoll.close()

    def _write(self) -> bool:
        """Write what waits; return whether something is left."""
        while self._stdin >= 0:
            if not self._piece:
                if not self._queue:
                    return False
                piece = next(self._queue[0], None)
                if piece is None:
                    self._queue.popleft()
                    continue
                self._piece = memoryview(piece)
            try:
                self._piece = self._piece[os.write(self._stdin, self._piece) :]
            except BlockingIOError:
                return True
            except OSError:  # the job has ended
                self._piece = memoryview(b"")
                self._queue.clear()
                return False
        return False

    def _read(self, far: Far) -> None:
        alive = far.channel.read()
        try:
            for payload in far.channel.frames():
                self._pass_on(far, payload)
        except ProtocolError:
            alive = False
        if not alive:
            self._by_fd.pop(far.channel.fileno(), None)
            self._epoll.unregister(far.channel.fileno())
            self.put(Frame(far.node, Kind.CLOSED, far.number))

    def _pass_on(self, far: Far, payload: bytes) -> None:
        if type_name(payload) in _HEEDED:
            match decode(payload):
                case SharedMemory(number=number):
                    fd = far.channel.take_fd()
                    if number in self._sent_segments:  # for another rank: once for all nodes
                        os.close(fd)
                    else:
                        self._sent_segments.add(number)
                        self._queue.append(_segment(number, fd))
                case Captured(segments=segments):
                    self._sent_segments &= segments
                case RunCell(path=path):
                    self._send_cell(Path(path))
        self.put(Frame(far.node, Kind.MESSAGE, far.number, payload))

    def _send_cell(self, path: Path) -> None:
        """Send a cell's file to every node, once."""
        if path.parent.name in self._folders:
            return
        self._folders[path.parent.name] = path.parent
        head = json.dumps({"path": str(path)}).encode()
        self.put(Frame(ALL, Kind.FILE, 0, head + b"\0" + path.read_bytes()))


def _segment(number: int, fd: int) -> Iterator[bytes]:
    """Yield shared memory as frames, and close it."""
    size, done = os.fstat(fd).st_size, 0
    try:
        while done < size:
            piece = os.pread(fd, PIECE_BYTES, done)
            done += len(piece)
            yield Frame(ALL, Kind.SEGMENT, number, piece).encode()
    finally:
        os.close(fd)

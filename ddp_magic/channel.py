"""The connection between a kernel and its workers and agents: frames over a Unix socket.

A frame is a length (four bytes, big-endian) and that many bytes of JSON. The socket lies in a
directory that only its owner may enter, which is the authentication; nothing that arrives is
unpickled. A file descriptor can travel with a frame (SCM_RIGHTS).
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from ddp_magic.errors import ProtocolError
from ddp_magic.events import Command, Event, decode, encode

_LENGTH = struct.Struct("!I")
MAX_FRAME_BYTES = 256 * 2**20
_CHUNK_BYTES = 256 * 1024
_MAX_PATH_BYTES = 100  # sun_path holds 108


class Channel:
    """One end of a connection.

    `send` may be called from any thread; `receive` from one. In a forked child a channel is
    closed at once: what a `DataLoader` worker or an `mp.Process` inherits must neither hold the
    connection open after its owner's death nor write into its owner's frames.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Take over a connected socket."""
        self._socket = sock
        self._send_lock = threading.Lock()
        self._inode = os.fstat(sock.fileno()).st_ino
        self._buffer = bytearray()
        self.received_fds: list[int] = []
        self.closed = False
        _open_channels.add(self)

    def fileno(self) -> int:
        """Descriptor, for `selectors`; -1 once closed."""
        return self._socket.fileno()

    def send(self, message: Command | Event, fd: int | None = None) -> bool:
        """Send one message, and a descriptor with it.

        Returns:
            False if the other end is gone or this one is closed.
        """
        payload = encode(message)
        frame = _LENGTH.pack(len(payload)) + payload
        try:
            with self._send_lock:
                if fd is None:
                    self._socket.sendall(frame)
                else:
                    sent = socket.send_fds(self._socket, [frame], [fd])
                    self._socket.sendall(frame[sent:])
        except OSError:
            return False
        return True

    def receive(self) -> list[Command | Event] | None:
        """Read what has arrived, blocking until something has.

        Returns:
            The messages that are now complete (perhaps none); None at the end of the stream.

        Raises:
            ProtocolError: A frame is longer than `MAX_FRAME_BYTES` or no known message.
        """
        try:
            data, fds, _flags, _address = socket.recv_fds(self._socket, _CHUNK_BYTES, 1)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            return None
        self.received_fds.extend(fds)
        if not data:
            return None
        self._buffer += data
        return list(self._frames())

    def _frames(self) -> Iterator[Command | Event]:
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise ProtocolError(f"a frame of {length} bytes was announced")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield decode(payload)

    def move(self, place: Callable[[int], int]) -> None:
        """Move the descriptor, before another thread uses the channel.

        Args:
            place: Takes a descriptor; returns the one that takes its place.
        """
        self._socket = socket.socket(fileno=place(self._socket.detach()))
        self._inode = os.fstat(self._socket.fileno()).st_ino

    def intact(self) -> bool:
        """Tell whether the descriptor is still this channel's, and not closed by somebody else.

        Its number may be another file's by now.
        """
        try:
            return os.fstat(self._socket.fileno()).st_ino == self._inode
        except OSError:
            return False

    def close(self) -> None:
        """Close this end; the other one reads the end of the stream."""
        self.closed = True
        self._socket.close()

    def _close_in_child(self) -> None:
        # Another thread of the parent may have held the lock at the moment of the fork; here
        # nobody is left to release it.
        self._send_lock = threading.Lock()
        self.close()


class Listener:
    """The kernel's listening end.

    Args:
        directory: A directory of mode 0700.
    """

    def __init__(self, directory: Path) -> None:
        """Listen on a socket in `directory`."""
        self.path = directory / "socket"
        if len(os.fsencode(self.path)) > _MAX_PATH_BYTES:
            raise ProtocolError(
                f"{self.path} is too long for a Unix socket; set TMPDIR to a shorter path"
            )
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self.path))
        self._socket.listen(1024)
        _open_channels.add(self)

    def fileno(self) -> int:
        """Descriptor, for `selectors`; -1 once closed."""
        return self._socket.fileno()

    def accept(self) -> Channel:
        """Take the next connection."""
        return Channel(self._socket.accept()[0])

    def close(self) -> None:
        """Stop listening and remove the socket's file."""
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _close_in_child(self) -> None:
        self._socket.close()


def connect(path: str, timeout_s: float = 30.0) -> Channel:
    """Connect to a `Listener`.

    Raises:
        OSError: Nobody listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    sock.connect(path)
    sock.settimeout(None)
    return Channel(sock)


_open_channels: weakref.WeakSet[Channel | Listener] = weakref.WeakSet()


def close_inherited() -> None:
    """Close every channel that a forked process has inherited (it runs in each child by itself)."""
    for end in list(_open_channels):
        end._close_in_child()
    _open_channels.clear()


os.register_at_fork(after_in_child=close_inherited)

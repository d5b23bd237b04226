"""The connection between a kernel and its workers and agents: frames over a Unix socket.

A frame is a length (four bytes, big-endian) and that many bytes of JSON. The socket lies in a
directory that only its owner can enter, which is the authentication; nothing that arrives is
unpickled. A file descriptor can be sent with a frame (SCM_RIGHTS).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ddp_magic.errors import ProtocolError
from ddp_magic.wire.codec import MAX_BYTES, decode, encode
from ddp_magic.wire.commands import Command
from ddp_magic.wire.events import Event

_LENGTH = struct.Struct("!I")
_PEER = struct.Struct("3i")  # pid, uid, gid
MAX_FRAME_BYTES = MAX_BYTES
_CHUNK_BYTES = 256 * 1024
_MAX_PATH_BYTES = 103  # sun_path holds 104 or 108, with a zero at the end


def peer_pid(connection: socket.socket) -> int | None:
    """Return the pid of the process at the other end; None if the system does not report it."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return int(_PEER.unpack(credentials)[0])


def _frame(payload: bytes) -> bytes:
    return _LENGTH.pack(len(payload)) + payload


class Channel:
    """One end of a connection.

    `send` may be called from any thread, `receive` from one. A forked child closes its channels at
    once: a `DataLoader` worker or an `mp.Process` must neither hold the connection open after its
    owner's death nor write into its owner's frames.

    Args:
        sock: A connected socket, which the channel closes.
        max_frame_bytes: Longest frame to receive, bytes.

    Attributes:
        received_fds: The descriptors that came with frames.
        lost_fd: Whether one came, and this process can open no more files.
        closed: Whether it was closed.
    """

    def __init__(self, sock: socket.socket, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._socket = sock
        self.max_frame_bytes = max_frame_bytes  # of what is received
        self._send_lock = threading.Lock()
        self._inode = os.fstat(sock.fileno()).st_ino
        self._buffer = bytearray()
        self.received_fds: list[int] = []
        self.lost_fd = False
        self.closed = False
        _open_channels.add(self)

    def fileno(self) -> int:
        """Return the descriptor, for `selectors`; -1 once closed."""
        return self._socket.fileno()

    def send(self, message: Command | Event, fd: int | None = None) -> bool:
        """Send one message, optionally with a descriptor.

        Returns:
            False if the other end is gone or this one is closed.
        """
        return self.send_payload(encode(message), fd)

    def send_together(self, messages: Iterable[Command | Event]) -> bool:
        """Send messages in one write, so that the other end wakes once; return as `send` does."""
        return self._write(b"".join(map(_frame, map(encode, messages))))

    def send_payload(self, payload: bytes, fd: int | None = None) -> bool:
        """Send the bytes of one message, optionally with a descriptor; return as `send` does."""
        return self._write(_frame(payload), fd)

    def _write(self, frame: bytes, fd: int | None = None) -> bool:
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
        """Wait for data, and read the messages that it completes.

        Returns:
            The messages (possibly none); None at the end of the stream, and after a frame that is
            too long or not a known message: where the next frame begins is not known then.
        """
        try:
            return [decode(payload) for payload in self.frames()] if self.read() else None
        except ProtocolError:
            return None

    def read(self) -> bool:
        """Wait for data and read it; return False at the end of the stream."""
        try:
            data, fds, flags, _address = socket.recv_fds(self._socket, _CHUNK_BYTES, 1)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        self.received_fds.extend(fds)
        self.lost_fd |= bool(flags & socket.MSG_CTRUNC) and not fds
        self._buffer += data
        return bool(data)

    def frames(self) -> Iterator[bytes]:
        """Yield the payloads of the complete frames.

        Raises:
            ProtocolError: The next one is longer than `max_frame_bytes`.
        """
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > self.max_frame_bytes:
                raise ProtocolError(
                    f"frame too long: {length:,} bytes; the limit is {self.max_frame_bytes:,}"
                )
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield payload

    @property
    def unfinished(self) -> bool:
        """Whether a frame has arrived only in part."""
        return bool(self._buffer)

    def take_fd(self) -> int:
        """Return the descriptor that came with a frame.

        Raises:
            ProtocolError: None came, or this process has too many files open to receive it.
        """
        if not self.received_fds:
            raise ProtocolError(
                "no descriptor came with it, or too many files are open (see ulimit -n)"
            )
        return self.received_fds.pop(0)

    def drop_fds(self) -> None:
        """Close the descriptors that came with frames that do not need one."""
        while self.received_fds:
            os.close(self.received_fds.pop())

    def peer_pid(self) -> int | None:
        """Return the pid of the process at the other end; None if the system does not report it."""
        return peer_pid(self._socket)

    def move(self, place: Callable[[int], int]) -> None:
        """Move the descriptor, before another thread uses the channel.

        Args:
            place: Is called with the descriptor; returns the one that replaces it.
        """
        self._socket = socket.socket(fileno=place(self._socket.detach()))
        self._inode = os.fstat(self._socket.fileno()).st_ino

    def intact(self) -> bool:
        """Return whether the descriptor is still this channel's.

        The user's code may have closed it, and its number may belong to another file by now.
        """
        try:
            return os.fstat(self._socket.fileno()).st_ino == self._inode
        except OSError:
            return False

    def shutdown(self) -> None:
        """End the stream in both directions, in a thread that does not read from it."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end; the other end reads the end of the stream."""
        self.closed = True
        self._socket.close()

    def _close_in_child(self) -> None:
        # Another thread of the parent may have held the lock at the fork; that thread does not
        # exist here, so the lock would never be released.
        self._send_lock = threading.Lock()
        self.close()


class Listener:
    """The kernel's listening end.

    Args:
        path: Path of the socket, in a directory of mode 0700.

    Raises:
        ProtocolError: The path is too long.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if len(os.fsencode(self.path)) > _MAX_PATH_BYTES:
            raise ProtocolError(
                f"{self.path} is too long for a Unix socket; set TMPDIR to a shorter path"
            )
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self.path))
        self._socket.listen(1024)
        _open_channels.add(self)

    def fileno(self) -> int:
        """Return the descriptor, for `selectors`; -1 once closed."""
        return self._socket.fileno()

    def accept(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> Channel:
        """Accept the next connection."""
        return Channel(self._socket.accept()[0], max_frame_bytes)

    def close(self) -> None:
        """Stop listening and remove the socket's file."""
        self._socket.close()
        # It may have been removed, or the disk may have become read-only.
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _close_in_child(self) -> None:
        self._socket.close()


def connect(path: str, timeout_s: float = 30.0) -> Channel:
    """Connect to a `Listener`.

    Raises:
        OSError: No process listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # With a timeout of Python's, the socket does not block: where more connect at once than the
    # listener's backlog has room for (a thousand ranks), it would be refused.
    sock.setblocking(True)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(timeout_s))
    sock.connect(path)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(0.0))
    return Channel(sock)


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), round(seconds % 1 * 1e6))


_open_channels: weakref.WeakSet[Channel | Listener] = weakref.WeakSet()


def close_inherited() -> None:
    """Close every inherited channel; runs in each forked child by itself."""
    for end in list(_open_channels):
        end._close_in_child()
    _open_channels.clear()


os.register_at_fork(after_in_child=close_inherited)

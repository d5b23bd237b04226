"""The far relay's two streams: frames from the kernel, and lines that carry frames to it."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator

from ddp_magic.wire.relay_frames import ALL, PIECE_BYTES, Frame, FrameReader, Kind, LineWriter


class KernelStream:
    """Says what it is told to, all at once with `flush`, and hears what is meant for this node.

    Args:
        node: Number of this node.
        stdin: Descriptor of what comes from the kernel.
        stdout: Descriptor of what goes to it.

    Attributes:
        ended: Whether the kernel is gone.
    """

    def __init__(self, node: int, stdin: int = 0, stdout: int = 1) -> None:
        self.ended = False
        self._node = node
        self._stdin, self._stdout = stdin, stdout
        self._lines = LineWriter(node)
        self._frames = FrameReader()
        self._out: list[bytes] = []
        self._told = 0.0  # when something was last said, monotonic, s
        os.set_blocking(stdin, False)

    def fileno(self) -> int:
        """Return the descriptor that is readable when something has come."""
        return self._stdin

    def read(self) -> Iterator[Frame]:
        """Yield the frames that have come for this node."""
        try:
            data = os.read(self._stdin, PIECE_BYTES)
        except BlockingIOError:
            return
        if not data:
            self.ended = True
            return
        for frame in self._frames.feed(data):
            if frame.node in (self._node, ALL):
                yield frame

    @property
    def silent_s(self) -> float:
        """How long ago something was last said, in seconds."""
        return time.monotonic() - self._told

    def tell(self, kind: Kind, connection: int = 0, payload: bytes = b"") -> None:
        """Say something, with the next `flush`."""
        self._out.append(Frame(self._node, kind, connection, payload).encode())

    def flush(self) -> None:
        """Write what was said, however long that takes."""
        if not self._out:
            return
        self._told = time.monotonic()
        view = memoryview(self._lines.lines(b"".join(self._out)))
        self._out = []
        while view:
            try:
                view = view[os.write(self._stdout, view) :]
            except BlockingIOError:
                select.select([], [self._stdout], [])
            except OSError:  # the engine's stream is gone
                self.ended = True
                return

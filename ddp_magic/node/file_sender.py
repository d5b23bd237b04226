"""When the files that a node's ranks write go to where the kernel is."""

from __future__ import annotations

import time

from ddp_magic.node.kernel_stream import KernelStream
from ddp_magic.node.node_directory import NodeDirectory
from ddp_magic.wire.relay_frames import Kind

SOON_S = 0.05
STACKS_S = 1.0  # for a rank to write its stack


class FileSender:
    """Sends new files, at certain moments, or soon while a rank is about to write one.

    Args:
        directory: Where the ranks write.
        stream: To the kernel.

    Attributes:
        checks: Whether the ranks write what they call, all the time.
    """

    def __init__(self, directory: NodeDirectory, stream: KernelStream) -> None:
        self.checks = False
        self._directory = directory
        self._stream = stream
        self._stacks_until = 0.0  # a rank is about to write its stack
        self._sent = 0.0  # monotonic, s

    @property
    def expects(self) -> bool:
        """Whether a rank is about to write something."""
        return self.checks or time.monotonic() < self._stacks_until

    def expect_stack(self) -> None:
        """Expect the stack of a rank."""
        self._stacks_until = time.monotonic() + STACKS_S

    def send(self) -> None:
        """Send what is new."""
        self._sent = time.monotonic()
        for payload in self._directory.new_files():
            self._stream.tell(Kind.FILE, 0, payload)

    def send_soon(self) -> None:
        """Send what is new, unless that has just been done."""
        if time.monotonic() - self._sent > SOON_S:
            self.send()

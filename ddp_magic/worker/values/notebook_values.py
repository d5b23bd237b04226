"""Keeps the notebook's values, and the shared memory that holds them, until a cell reads them."""

from __future__ import annotations

from collections.abc import Sequence

from ddp_magic.wire.commands import Captured
from ddp_magic.wire.memory import Segment
from ddp_magic.worker.inheritance import Inheritance
from ddp_magic.worker.shell import CellShell
from ddp_magic.worker.values import received_values


class NotebookValues:
    """What the kernel has sent of the notebook's values.

    The listener's thread puts in what arrives; the main thread takes it when a cell starts.

    Args:
        for_children: What the rank leaves for its `multiprocessing` children, who get them too.
    """

    def __init__(self, for_children: Inheritance) -> None:
        self._for_children = for_children
        self._segments: dict[int, Segment] = {}
        self._next: Captured | None = None

    def add_segment(self, number: int, fd: int, sizes: Sequence[int]) -> None:
        """Keep shared memory that has arrived."""
        self._segments[number] = Segment(fd, sizes)

    def announce(self, command: Captured) -> None:
        """Keep the description of the next cell's values."""
        self._next = command

    def provide(self, shell: CellShell) -> None:
        """Put the values for this cell into its namespace, and free memory that is not needed.

        Raises:
            CaptureError: A value cannot be made here.
        """
        command, self._next = self._next, None
        if command is None:
            return
        shell.know_sources(command.sources)  # before a value's own code may raise
        received_values.receive(command, self._segments, shell.user_ns)
        described = received_values.for_children(command, self._segments)
        self._for_children.add_captured(described, command.names)
        needed = self._for_children.drop_captured(command.keep)
        for number in set(self._segments) - {*needed, *command.keep}:
            self._segments.pop(number).close()

"""Commands to the ranks of one group, also to those that are not up yet."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ddp_magic.kernel.worker_group.member import Member
from ddp_magic.wire.commands import Command, SharedMemory
from ddp_magic.wire.memory import Segment


class Outbox:
    """Sends commands to every rank; a rank that connects later gets what was sent before.

    Args:
        members: The ranks that are connected, or were; kept up to date by the connections.
        nproc: Number of ranks.
    """

    def __init__(self, members: Mapping[int, Member], nproc: int) -> None:
        self._members = members
        self._nproc = nproc
        self._welcomed: set[int] = set()
        self._kept: list[tuple[Command, int | None]] = []
        self._segments: set[int] = set()

    def send(self, command: Command, fd: int | None = None) -> None:
        """Send a command, and a descriptor with it, to every rank."""
        for rank in self._welcomed:
            self._members[rank].channel.send(command, fd)
        if len(self._welcomed) < self._nproc:
            self._kept.append((command, None if fd is None else os.dup(fd)))

    def send_to(self, rank: int, command: Command) -> None:
        """Send a command to one rank, if it has connected."""
        if (member := self._members.get(rank)) is not None:
            member.channel.send(command)

    def share(self, number: int, segment: Segment) -> None:
        """Send shared memory to every rank, unless it was sent before."""
        if number not in self._segments:
            self.send(SharedMemory(number=number, sizes=segment.sizes), segment.fd)
            self._segments.add(number)

    def welcome(self, rank: int) -> None:
        """Send a rank that has just connected what was sent before."""
        if rank not in self._members:  # it has ended already, and was restarted
            return
        for command, fd in self._kept:
            self._members[rank].channel.send(command, fd)
        # Not all members: several may connect at once, and be welcomed one after the other.
        self._welcomed.add(rank)
        if len(self._welcomed) == self._nproc:
            self.close()

    def resize(self, nproc: int) -> None:
        """Take another number of ranks."""
        self._nproc = nproc
        if len(self._welcomed) == nproc:
            self.close()

    def restart(self) -> None:
        """Forget the ranks and what was sent to them: others take their places."""
        self.close()
        self._welcomed.clear()
        self._segments.clear()

    def close(self) -> None:
        """Keep nothing for ranks that have not connected."""
        for _, fd in self._kept:
            if fd is not None:
                os.close(fd)
        self._kept = []

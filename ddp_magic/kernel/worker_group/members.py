"""The ranks of a group that are connected, or were: who they are, what they write, their logs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from ddp_magic.kernel.worker_group.member import Member
from ddp_magic.kernel.worker_group.open_ends import OpenEnds
from ddp_magic.system.run_directory import RunDirectory, append
from ddp_magic.wire.channel import Channel
from ddp_magic.wire.kernel_events import Note, RunEvent
from ddp_magic.wire.worker_events import WorkerHello

_READ_BYTES = 256 * 1024


class Members:
    """The ranks of one attempt after the other.

    Args:
        directory: Where the logs go.
        ends: What the group reads from; the ranks' text pipes are among it.

    Attributes:
        by_rank: All of this attempt.
    """

    def __init__(self, directory: RunDirectory, ends: OpenEnds) -> None:
        self.by_rank: dict[int, Member] = {}
        self._directory = directory
        self._ends = ends
        self._ranks: dict[Channel, int] = {}
        self._log_is_lost = False

    def welcome(self, hello: WorkerHello, channel: Channel) -> None:
        """Take a rank that has said hello on a connection.

        Raises:
            ProtocolError: The read end of its stdout and stderr did not come with the message.
        """
        member = Member.of(hello, channel, self._directory.rank_log(hello.rank))
        self._ranks[channel] = hello.rank
        self.by_rank[hello.rank] = member
        self._ends.add(member.pipe, self._read_pipe)

    def rank_of(self, channel: Channel) -> int | None:
        """Return whose connection this is; None if it is no rank's."""
        return self._ranks.get(channel)

    def lose(self, channel: Channel) -> None:
        """Note that a connection has ended, if it is a rank's."""
        if channel in self._ranks:
            self.by_rank[self._ranks[channel]].unconnected_since = time.monotonic()

    def connected(self) -> list[int]:
        """Return the ranks whose connections have not ended."""
        return [rank for rank, member in self.by_rank.items() if not member.channel.closed]

    def open_ends(self) -> set[Channel | int]:
        """Return their connections and text pipes, from which something may come."""
        ends = {end for member in self.by_rank.values() for end in (member.channel, member.pipe)}
        return ends & {*self._ends}

    def take_ends(self) -> Iterator[RunEvent]:
        """Yield all that is left: nothing more will come."""
        for member in self.by_rank.values():
            yield from member.take_end()
            yield from self._lost_log(member)

    def begin_attempt(self, nproc: int, mark: str) -> None:
        """Forget the ranks: others take their places.

        Args:
            nproc: Number of ranks.
            mark: A line for their logs.
        """
        for end in self.open_ends():
            self._ends.remove(end)
        self.close()
        for rank in range(nproc):
            with contextlib.suppress(OSError):
                append(self._directory.rank_log(rank), f"\n{mark}\n".encode())
        self.by_rank.clear()
        self._ranks.clear()

    def close(self) -> None:
        """Close their connections and pipes."""
        for member in self.by_rank.values():
            member.close()

    # --- text ---------------------------------------------------------------------------------

    def _read_pipe(self, pipe: int) -> list[RunEvent]:
        member = next(m for m in self.by_rank.values() if m.pipe == pipe)
        try:
            data = os.read(pipe, _READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            self._ends.remove(member.pipe)
            os.close(member.pipe)
            member.pipe = -1
        return [*member.take_text(data), *self._lost_log(member)]

    def _lost_log(self, member: Member) -> list[RunEvent]:
        if member.log_error is None or self._log_is_lost:
            return []
        self._log_is_lost = True
        why = member.log_error.strerror
        return [Note(text=f"the ranks' logs in {self._directory} are incomplete: {why}")]

"""The attempts of a group's ranks, one after the other: a restart begins the next one."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ddp_magic.kernel.worker_group.admission import Standing
from ddp_magic.kernel.worker_group.members import Members
from ddp_magic.kernel.worker_group.open_ends import OpenEnds
from ddp_magic.wire.channel import Channel
from ddp_magic.wire.events import AgentHello
from ddp_magic.wire.kernel_events import RunEvent
from ddp_magic.wire.worker_events import WorkerHello


class Attempts:
    """Knows which attempt this is, and reads what is left of it before the next one.

    Args:
        nproc: Number of ranks.
        members: Those of this attempt.
        agents: The connections of the agents; kept up to date.
        ends: What the group reads from.
        max_restarts: How often the ranks may be restarted.
        end_s: How long to wait for their end before they are, in seconds.
        agents_stay: Whether several agents (of several nodes) outlive an attempt of their ranks.

    Attributes:
        nproc: Number of ranks; of several nodes, it may become known later.
        number: How often the ranks were restarted.
        exited: The ranks whose end an agent has reported.
        is_ending: Whether what is left of the attempt is being read.
    """

    def __init__(
        self,
        nproc: int,
        members: Members,
        agents: Sequence[Channel],
        ends: OpenEnds,
        *,
        max_restarts: int,
        end_s: float,
        agents_stay: bool,
    ) -> None:
        self.nproc = nproc
        self.number = 0
        self.exited: set[int] = set()
        self.is_ending = False
        self._max_restarts = max_restarts
        self._is_unused = False  # an agent has begun this attempt, and no rank has connected
        self._members, self._agents, self._ends = members, agents, ends
        self._end_s = end_s
        self._agents_stay = agents_stay

    def standing(self, channel: Channel) -> Standing:
        """Return what is known of a connection, and of the others."""
        return Standing(
            nproc=self.nproc,
            present=self._members.by_rank,
            exited=self.exited,
            rank=self._members.rank_of(channel),
            agent=channel in self._agents,
            attempt=self.number,
            max_restarts=self._max_restarts,
        )

    def is_over(self, hello: AgentHello | WorkerHello) -> bool:
        """Return whether a hello belongs to an earlier attempt."""
        return hello.attempt < self.number

    def use(self) -> None:
        """Note that a rank of this attempt has connected."""
        self._is_unused = False

    @property
    def may_begin_again(self) -> bool:
        """Whether the ranks may be placed again, as a restart or instead of one."""
        return self._is_unused or self.number < self._max_restarts

    def read_rest(self, beginner: Channel) -> list[RunEvent]:
        """Return what the ranks had left, once their processes have ended.

        Args:
            beginner: The connection that says that the ranks are restarted.
        """
        self.is_ending = True
        events: list[RunEvent] = []
        deadline = time.monotonic() + self._end_s
        while left := self._left() - {beginner}:
            if time.monotonic() > deadline:
                break
            events += self._ends.read(0.05, only=left)
        events += self._members.take_ends()
        self.is_ending = False
        return events

    def _left(self) -> set[Channel | int]:
        """Return the open ends from which something of this attempt may come."""
        ranks, agents = self._members.open_ends(), {*self._agents} & {*self._ends}
        if not self._agents_stay:
            return {*ranks, *agents}
        return {*ranks, *agents} if ranks or set(self._members.by_rank) - self.exited else set()

    def begin(self) -> None:
        """Begin the next attempt, because an agent has."""
        self._begin(self.number + 1)
        self._is_unused = True

    def begin_again(self) -> None:
        """Begin an attempt on other nodes.

        Agents of nodes that are there may have begun a restart because of the loss: it is this.
        """
        self._begin(self.number + (not self._is_unused))
        self._is_unused = False

    def _begin(self, number: int) -> None:
        self.number = number
        self._members.begin_attempt(self.nproc, f"--- restart {number} of {self._max_restarts} ---")
        self.exited.clear()

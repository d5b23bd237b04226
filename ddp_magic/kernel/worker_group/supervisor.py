"""What a group does by itself when something happens to its ranks or agents.

It ends a rank that lives without a connection, an agent that outlives its ranks, and the agents of
other nodes when one node fails: nobody else would. A restart after Stop does not take place.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from ddp_magic.kernel.worker_group.agents import Agents
from ddp_magic.kernel.worker_group.connections import Connections
from ddp_magic.kernel.worker_group.outbox import Outbox
from ddp_magic.kernel.worker_group.patience import Patience
from ddp_magic.kernel.worker_group.placement import Placement
from ddp_magic.wire.commands import Interrupt
from ddp_magic.wire.events import AgentDone, WorkerExited
from ddp_magic.wire.kernel_events import ConnectionLost, Restarted, RunEvent
from ddp_magic.wire.specs import AgentSpec
from ddp_magic.wire.worker_events import WorkerHello


class Supervisor:
    """Ends what would hang, and lets agents be placed again.

    Args:
        spec: What the group asks of its engine.
        connections: The group's.
        agents: Its agents.
        outbox: Commands to its ranks.
        patience: How long to wait for their ends.

    Attributes:
        is_stopped: Whether the kernel ends the group.
    """

    def __init__(
        self,
        spec: AgentSpec,
        connections: Connections,
        agents: Agents,
        outbox: Outbox,
        patience: Patience,
    ) -> None:
        self._spec = spec
        self._connections, self._agents, self._outbox = connections, agents, outbox
        self._placement = Placement(spec, agents, connections, outbox)
        self._patience = patience
        self._exited: dict[int, WorkerExited] = {}  # of this attempt
        self._interrupted = False
        self.is_stopped = False

    @property
    def first_exit(self) -> WorkerExited | None:
        """The end of the rank that ended first; None if no rank's end was reported."""
        return min(self._exited.values(), key=lambda event: event.time, default=None)

    # --- what the kernel wants ----------------------------------------------------------------

    def interrupt(self) -> None:
        """Let the agents, and ranks that connect later, know that the ranks are interrupted."""
        self._interrupted = self.is_stopped = True
        self._agents.send(Interrupt())

    def kill(self, ranks: tuple[int, ...]) -> None:
        """End some ranks at once, or the whole group where none is named."""
        self.is_stopped = self.is_stopped or not ranks
        self._agents.kill(ranks)

    # --- what happens -------------------------------------------------------------------------

    def heed(self, events: Iterable[RunEvent]) -> list[RunEvent]:
        """Do what follows from events; return them, after the number of nodes if that is new.

        It is known before a rank connects.
        """
        heeded = [*self._placement.news(), *events]
        for event in heeded:
            self._heed(event)
        return heeded

    def _heed(self, event: RunEvent) -> None:
        match event:
            case WorkerHello(rank=rank):
                self._outbox.welcome(rank)
                if self._interrupted:
                    self._outbox.send_to(rank, Interrupt())  # it was starting when others got it
            case Restarted():
                self._restart()
            case AgentDone():
                self._agents.take_report(event)
                if self._spec.nnodes > 1 and self._has_failed:
                    self._agents.kill_ranks()  # the other nodes do not know
            case WorkerExited(rank=rank):
                self._exited[rank] = event
                if self._all_exited:
                    self._end_agents()
            case _:
                pass

    @property
    def _all_exited(self) -> bool:
        return len(self._exited) == self._placement.nproc

    @property
    def _has_failed(self) -> bool:
        return any(end.code for end in self._exited.values())

    def _end_agents(self) -> None:
        if self._interrupted:
            # torchrun's keepers of ranks that were interrupted wait for the others' end.
            self._agents.kill_ranks()
        if not (self._spec.max_restarts and self._has_failed):
            self._agents.expect_end(self._patience.agent_end_s)

    def _restart(self) -> None:
        self._forget_ranks()
        self._agents.begin_attempt()
        if self._interrupted or self._agents.killed:
            self._agents.end()  # torchrun does not know that the run is stopped

    def _forget_ranks(self) -> None:
        self._outbox.restart()
        self._exited.clear()

    def place_again(self) -> Restarted | None:
        """Have agents placed again without the nodes that were lost, since all have ended.

        Returns:
            The restart; None if the kernel has ended the run, all ranks have succeeded, or there
            can be none (`Placement.place_again`).
        """
        if self.is_stopped or (self._all_exited and not self._has_failed):
            return None
        if (restarted := self._placement.place_again()) is not None:
            self._forget_ranks()
        return restarted

    # --- what does not happen -----------------------------------------------------------------

    def look(self) -> list[RunEvent]:
        """End what is not heard of any more; return what a user should know of it."""
        if not self._connections.lost_agent:
            return self._kill_lost()
        # Nothing is expected of an agent that died: its ranks have ended with it.
        if self._spec.nnodes > 1 and not self._agents.killed:
            self._agents.kill(())  # the other nodes do not know
        return []

    def _kill_lost(self) -> list[RunEvent]:
        """End ranks that live and have no connection.

        An agent that does not report the end of a rank's process is ended: somebody has stopped it.
        """
        events: list[RunEvent] = []
        patience = self._patience
        for rank, member in self._connections.members.items():
            since = member.unconnected_since
            lost_s = time.monotonic() - since if since is not None else 0.0
            if since is None or rank in self._exited or lost_s < patience.lost_s:
                continue
            if member.lives():
                member.unconnected_since = None  # once
                events.append(ConnectionLost(rank=rank, time=time.time()))
                self._agents.kill((rank,))
            elif lost_s > patience.lost_s + patience.report_s:
                self._agents.end()
        return events

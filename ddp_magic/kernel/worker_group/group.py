"""A worker group: an agent and its ranks. Commands go in, a stream of events comes out.

A group serves cells: one, or in a session one after the other. It has no thread; everything
happens in the thread that calls it. Nobody but the group touches its processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import replace

from ddp_magic.engines import Engine
from ddp_magic.kernel.worker_group.agents import KILL_PATIENCE_S, Agents
from ddp_magic.kernel.worker_group.between_cells import BetweenCells, discard
from ddp_magic.kernel.worker_group.connections import Connections
from ddp_magic.kernel.worker_group.outbox import Outbox
from ddp_magic.kernel.worker_group.patience import PATIENCE, Patience
from ddp_magic.kernel.worker_group.supervisor import Supervisor
from ddp_magic.system.gpu_locks import GpuLocks
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.commands import Answer, Command, DumpStack, Exit, Interrupt, NewGroup
from ddp_magic.wire.events import WorkerExited
from ddp_magic.wire.kernel_events import OutsideEnd, RunEvent
from ddp_magic.wire.memory import Segment
from ddp_magic.wire.specs import AgentSpec, WorkerSettings

POLL_S = 0.05  # longest wait for news of a group
DRAIN_S = 1.0  # for the end of the text once all processes are gone


class WorkerGroup:
    """The ranks of one run, or of one session.

    Args:
        directory: Where the socket and the logs go; of mode 0700.
        nproc: Number of ranks; the most, if the cluster chooses.
        nnodes: Number of nodes, each with as many ranks; the most, if the cluster chooses.
        min_nodes: The fewest, if the cluster chooses; 0 if it does not.
        device: "cuda" or "cpu".
        backend: Backend of the default process group; None for the device's own.
        timeout_s: Timeout for collectives, in seconds; None for torch's default.
        init_process_group: Whether to create the default process group.
        kept: Whether the ranks are a session's.
        max_restarts: How often the agent restarts the ranks after a failure.
        gpu_locks: The GPUs that the ranks hold; they are released with the group.
        patience: How long to wait for ranks and agents to end by themselves.

    Attributes:
        ended: Whether every process of the group has ended.
        outside: How it was ended from outside; None if it was not, as far as is known.
    """

    def __init__(  # noqa: PLR0913 -- each is independent of the others
        self,
        directory: RunDirectory,
        *,
        nproc: int,
        nnodes: int = 1,
        min_nodes: int = 0,
        device: str,
        backend: str | None = None,
        timeout_s: float | None = None,
        init_process_group: bool = True,
        kept: bool = False,
        max_restarts: int = 0,
        gpu_locks: GpuLocks | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        self.directory = directory
        self.kept = kept
        self.ended = False
        self.outside: OutsideEnd | None = None
        self._gpu_locks = gpu_locks or GpuLocks()
        self._spec = AgentSpec(
            run_id=directory.id,
            kernel_pid=os.getpid(),
            nproc=nproc // nnodes,
            nnodes=nnodes,
            min_nodes=min_nodes,
            sys_path=(),
            worker=WorkerSettings(
                socket=str(directory.socket),
                directory=str(directory),
                device=device,
                backend=backend,
                timeout_s=timeout_s,
                init_process_group=init_process_group,
                kept=kept,
            ),
            max_restarts=max_restarts,
        )
        self._connections = Connections(
            directory,
            nproc,
            max_restarts=max_restarts,
            attempt_end_s=patience.attempt_end_s,
            agents_stay=nnodes > 1,
        )
        self._outbox = Outbox(self._connections.members, nproc)
        self._agents = Agents(self._connections.agents, directory)
        self._supervisor = Supervisor(
            self._spec, self._connections, self._agents, self._outbox, patience
        )
        self._between_cells = BetweenCells()
        self._renewals = 0

    # --- commands -----------------------------------------------------------------------------

    def start(
        self, engine: Engine, env: dict[str, str], sys_path: list[str], prelude: tuple[str, ...]
    ) -> None:
        """Start the agent, which starts the ranks. Returns before they are up.

        Args:
            engine: What places the agent.
            env: The ranks' whole environment; see `environment.rank_environment`.
            sys_path: Their module search path.
            prelude: Names of the prelude that the first cell reads.

        Raises:
            LaunchError: The group's socket cannot be created.
        """
        self._connections.listen()
        spec = replace(self._spec, sys_path=tuple(sys_path), prelude=prelude)
        self._agents.start(engine, spec, env)

    @property
    def where(self) -> str:
        """On which nodes its agents run, in words; empty for this machine."""
        return self._agents.where

    @property
    def started(self) -> bool:
        """Whether `start` has been called."""
        return self._agents.started

    @property
    def placed(self) -> bool:
        """Whether the agent runs: the forkserver may have libraries to import before it forks."""
        return self._agents.placed

    def send(self, command: Command, fd: int | None = None) -> None:
        """Send a command, and a descriptor with it, to every rank.

        Ranks that are not up yet get it when they are.
        """
        self._outbox.send(command, fd)

    def answer(self, rank: int, answer: Answer) -> None:
        """Send a rank the answer to its question."""
        self._outbox.send_to(rank, answer)

    def share(self, number: int, segment: Segment) -> None:
        """Send shared memory to every rank, unless they have it already."""
        self._outbox.share(number, segment)

    def renew_process_group(self) -> None:
        """Let the ranks create their default process group again; each answers WorkerReady."""
        self._renewals += 1
        self.send(NewGroup(number=self._renewals))

    def interrupt(self, ranks: Collection[int], *, keep: bool) -> None:
        """Raise KeyboardInterrupt in these ranks.

        Args:
            ranks: Which.
            keep: They are to outlive it, and abort collectives. Otherwise those that do not answer
                end with the others.
        """
        if not keep:
            self._supervisor.interrupt()
        for rank in ranks:
            self._outbox.send_to(rank, Interrupt(abort_collectives=keep))

    def kill(self, ranks: tuple[int, ...] = ()) -> None:
        """End some ranks at once, or the whole group where none is named."""
        self._supervisor.kill(ranks)

    def dump_stack(self, rank: int) -> None:
        """Let a rank write its stack to its file; C code that holds the interpreter lock too."""
        member = self._connections.members.get(rank)
        if member is not None and not member.dump_stack() and member.node:
            self._agents.send(DumpStack(rank=rank))

    # --- events -------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> list[RunEvent]:
        """Return what has happened, after waiting at most `timeout_s` for something to happen."""
        events = self._supervisor.heed(self._connections.poll(timeout_s))
        if not self.started or self.ended:
            return events
        events += self._agents.news(stopped=self._supervisor.is_stopped)
        events += self._supervisor.look()
        self._connections.watch(self._agents.fileno())
        if self._agents.ended():
            events += self._finish()
        return events

    def drain(self) -> list[RunEvent]:
        """Return what has arrived and was not read, without waiting."""
        events: list[RunEvent] = []
        deadline = time.monotonic() + DRAIN_S  # a thread of a session's rank may go on writing
        while not self.ended and self._connections.pending() and time.monotonic() < deadline:
            events += self.poll(0)
        for member in self._connections.members.values():
            events += member.end_log()
        return events

    def rejoin(self) -> list[RunEvent]:
        """Begin another cell of a session.

        Returns:
            What the ranks wrote since their last cell, and `Rejoined` for each rank.
        """
        self.look()
        ranks = [member.rejoined() for member in self._connections.members.values()]
        return [*self._between_cells.take(), *ranks]

    def look(self) -> None:
        """Take what has happened between two cells, and notice the end of the ranks."""
        events = self.drain()
        if not self.ended:
            events += self.poll(0)
        self._between_cells.keep(events)
        if any(member.channel.closed for member in self._connections.members.values()):
            self._wait_until_ended(KILL_PATIENCE_S)  # a rank is gone: the agent ends the others
            self.close()
        elif self.ended:
            self.close()

    @property
    def pids(self) -> Mapping[int, int]:
        """The ranks' process ids, by rank, as far as they are known."""
        members = list(self._connections.members.items())  # another thread may ask, for a status
        return {rank: member.process.pid for rank, member in members if member.process}

    @property
    def first_exit(self) -> WorkerExited | None:
        """The end of the rank that ended first; None if no rank's end was reported."""
        return self._supervisor.first_exit

    # --- the end ------------------------------------------------------------------------------

    def finish(self, timeout_s: float) -> bool:
        """Tell the ranks that no other cell comes.

        Returns:
            Whether they ended within `timeout_s` seconds.
        """
        self.send(Exit())
        self._wait_until_ended(timeout_s)
        return self.ended

    def close(self) -> None:
        """End whatever is left of the group and release everything it holds."""
        try:
            if self.started and not self.ended:
                self._end_processes()
        finally:
            self.ended = True
            self._release()

    def _end_processes(self) -> None:
        try:
            self.kill()
            self._wait_until_ended(KILL_PATIENCE_S + DRAIN_S)
        finally:  # to listen fails if this process can open no more files
            self._agents.end()
        self._agents.sweep(self.pids.values())

    def _release(self) -> None:
        self._gpu_locks.release()
        if self.kept:
            self.directory.tidy()
        self._connections.close()
        self._outbox.close()
        self._agents.close()

    def _finish(self) -> list[RunEvent]:
        """Collect what is left once the agent has ended, and end what it could not.

        If a node was lost, others may take the places of its ranks: then it is not the end.
        """
        if self._agents.died:
            self._agents.sweep(self.pids.values())
        events = self._supervisor.heed(self._connections.read_rest(DRAIN_S))
        if (restarted := self._supervisor.place_again()) is not None:
            return [*events, restarted]
        self.ended = True
        end = self._agents.end_event()  # their reports may be among the rest
        self.outside = end.outside
        return [*events, end]

    def _wait_until_ended(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.ended and time.monotonic() < deadline:
            for event in self.poll(POLL_S):
                discard(event)

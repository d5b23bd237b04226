"""A worker group: an agent and its ranks. Commands go in, a stream of events comes out.

A group serves cells: one, or in a session one after the other. It has no thread; everything
happens in the thread that calls it. Nobody but the group touches its processes.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterable, Mapping

from ddp_magic.engines import Engine
from ddp_magic.kernel.worker_group.agents import KILL_PATIENCE_S, Agents
from ddp_magic.kernel.worker_group.attempts import END_S
from ddp_magic.kernel.worker_group.connections import Connections
from ddp_magic.kernel.worker_group.outbox import Outbox
from ddp_magic.system import processes
from ddp_magic.system.gpu_locks import GpuLocks
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.commands import Answer, Command, DumpStack, Exit, Interrupt, NewGroup
from ddp_magic.wire.events import AgentDone, WorkerExited
from ddp_magic.wire.kernel_events import (
    ConnectionLost,
    NodesGranted,
    Note,
    OutsideEnd,
    PulledValues,
    Rejoined,
    Restarted,
    RunEvent,
    Stream,
)
from ddp_magic.wire.memory import Segment
from ddp_magic.wire.specs import AgentSpec, WorkerSettings
from ddp_magic.wire.worker_events import ClearOutput, DisplayData, WorkerHello, WorkerReady

POLL_S = 0.05  # longest wait for news of a group
AGENT_S = 3.0  # more for an agent to report a rank's end, before it is killed
AGENT_END_S = 60.0  # for the agents to end what the ranks left behind, and themselves
LOST_S = 2.0  # between the end of a rank's connection and the news of its process's end
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
        lost_s: How long a rank may live without a connection, in seconds.
        attempt_end_s: How long to wait for the end of ranks that are restarted, in seconds.
        agent_end_s: How long an agent may live when all ranks have ended, in seconds.

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
        lost_s: float = LOST_S,
        attempt_end_s: float = END_S,
        agent_end_s: float = AGENT_END_S,
    ) -> None:
        self.directory = directory
        self.nproc = nproc
        self._nnodes = nnodes
        self._min_nodes = min_nodes
        self._granted = 0 if min_nodes else nnodes
        self._nproc_per_node = nproc // nnodes
        self.kept = kept
        self.ended = False
        self.outside: OutsideEnd | None = None
        self.max_restarts = max_restarts
        self._gpu_locks = gpu_locks
        self._lost_s = lost_s
        self._agent_end_s = agent_end_s
        self._settings = WorkerSettings(
            socket=str(directory.socket),
            directory=str(directory),
            device=device,
            backend=backend,
            timeout_s=timeout_s,
            init_process_group=init_process_group,
            kept=kept,
        )
        self._connections = Connections(
            directory,
            nproc,
            max_restarts=max_restarts,
            attempt_end_s=attempt_end_s,
            agents_stay=nnodes > 1,
        )
        self._outbox = Outbox(self._connections.members, nproc)
        self._agents = Agents(self._connections.agents, directory)
        self._renewals = 0
        self._ready: dict[int, WorkerReady] = {}
        self._exited: dict[int, WorkerExited] = {}
        self._between_cells: list[RunEvent] = []
        self._interrupted = False
        self._is_stopped = False  # the kernel ends it

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
        self._agents.start(
            engine,
            AgentSpec(
                run_id=self.directory.id,
                kernel_pid=os.getpid(),
                nproc=self._nproc_per_node,
                nnodes=self._nnodes,
                min_nodes=self._min_nodes,
                sys_path=tuple(sys_path),
                worker=self._settings,
                prelude=prelude,
                max_restarts=self.max_restarts,
            ),
            env,
        )

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
        if (member := self._connections.members.get(rank)) is not None:
            member.channel.send(answer)

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
            self._interrupted = self._is_stopped = True
            self._agents.send(Interrupt())
        for rank in ranks:
            if (member := self._connections.members.get(rank)) is not None:
                member.channel.send(Interrupt(abort_collectives=keep))

    def kill(self, ranks: tuple[int, ...] = ()) -> None:
        """End some ranks at once, or the whole group where none is named."""
        self._is_stopped = self._is_stopped or not ranks
        self._agents.kill(ranks)

    def dump_stack(self, rank: int) -> None:
        """Let a rank write its stack to its file; C code that holds the interpreter lock too."""
        member = self._connections.members.get(rank)
        if member is not None and member.process is not None:
            processes.kill(member.process, signal.SIGUSR1)
        elif member is not None and member.node:
            self._agents.send(DumpStack(rank=rank))

    # --- events -------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> list[RunEvent]:
        """Return what has happened, after waiting at most `timeout_s` for something to happen."""
        events = self._heeded(self._connections.poll(timeout_s))
        if not self.started or self.ended:
            return events
        events += self._agents.news()
        events += self._kill_lost()
        if self._nnodes > 1 and self._connections.lost_agent and not self._agents.killed:
            self._agents.kill(())  # the other nodes do not know
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
        events, self._between_cells = self._between_cells, []
        for rank, member in self._connections.members.items():
            ready = self._ready.get(rank)
            events.append(
                Rejoined(
                    rank=rank,
                    pid=member.pid,
                    node=member.node,
                    device=ready.device if ready else "",
                    log_bytes=member.written,
                )
            )
        return events

    def look(self) -> None:
        """Take what has happened between two cells, and notice the end of the ranks."""
        events = self.drain()
        if not self.ended:
            events += self.poll(0)
        shown = (Stream, DisplayData, ClearOutput, Note)
        self._between_cells += [event for event in events if isinstance(event, shown)]
        _discard(events)
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
        return min(self._exited.values(), key=lambda event: event.time, default=None)

    def _heeded(self, events: list[RunEvent]) -> list[RunEvent]:
        """Note what has happened; return it, after the number of nodes if that is new.

        It is known before a rank connects.
        """
        if not self._granted and (nnodes := self._agents.granted()):
            self._granted = nnodes
            self._resize(nnodes)
            events = [NodesGranted(nnodes=nnodes, nproc=self.nproc), *events]
        for event in events:
            self._heed(event)
        return events

    def _resize(self, nnodes: int) -> None:
        self.nproc = nnodes * self._nproc_per_node
        self._connections.resize(self.nproc)
        self._outbox.resize(self.nproc)

    def _heed(self, event: RunEvent) -> None:
        match event:
            case WorkerHello(rank=rank):
                self._outbox.welcome(rank)
                if self._interrupted and (member := self._connections.members.get(rank)):
                    member.channel.send(Interrupt())  # it was starting when the others got theirs
            case WorkerReady(rank=rank):
                self._ready[rank] = event
            case Restarted():
                self._restart()
            case AgentDone():
                self._agents.take_report(event)
                if self._nnodes > 1 and any(end.code for end in self._exited.values()):
                    self._agents.kill_ranks()  # the other nodes do not know that it has failed
            case WorkerExited(rank=rank):
                self._exited[rank] = event
                if len(self._exited) == self.nproc:
                    self._all_exited()
            case _:
                pass

    def _all_exited(self) -> None:
        if self._interrupted:
            # torchrun's keepers of ranks that were interrupted wait for the others' end.
            self._agents.kill_ranks()
        if self.max_restarts == 0 or not any(end.code for end in self._exited.values()):
            self._agents.expect_end(self._agent_end_s)

    def _place_again(self) -> Restarted | None:
        """Place agents without the nodes that were lost, since all have ended.

        Returns:
            The restart; None if no node was lost, no restart is left, the number of nodes is fixed,
            the kernel has ended the run, or all ranks have succeeded.
        """
        if not self._min_nodes or self._is_stopped or not self._connections.may_begin_again:
            return None
        all_ended = len(self._exited) == self.nproc
        if all_ended and not any(end.code for end in self._exited.values()):
            return None
        if (lost := self._agents.lost()) is None:
            return None
        restarted = self._connections.begin_again(lost.how)
        self._granted = 0
        self._resize(self._nnodes)
        self._forget_ranks()
        self._agents.place_again(restarted.number, lost.nodes)
        return restarted

    def _forget_ranks(self) -> None:
        self._outbox.restart()
        self._ready.clear()
        self._exited.clear()

    def _restart(self) -> None:
        self._forget_ranks()
        self._agents.begin_attempt()
        if self._interrupted or self._agents.killed:
            self._agents.end()  # torchrun does not know that the run is stopped

    def _kill_lost(self) -> list[RunEvent]:
        """End ranks that live and have no connection: nobody would ever hear of them.

        An agent that does not report the end of a rank's process is ended: somebody has stopped it.
        Nothing is expected of an agent that died: its ranks have ended with it.
        """
        events: list[RunEvent] = []
        if self._connections.lost_agent:
            return events
        for rank, member in self._connections.members.items():
            since = member.unconnected_since
            lost_s = time.monotonic() - since if since is not None else 0.0
            if since is None or rank in self._exited or lost_s < self._lost_s:
                continue
            if member.lives():
                member.unconnected_since = None  # once
                events.append(ConnectionLost(rank=rank, time=time.time()))
                self.kill((rank,))
            elif lost_s > self._lost_s + AGENT_S:
                self._agents.end()
        return events

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
        if self._gpu_locks is not None:
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
        events = self._heeded(self._connections.read_rest(DRAIN_S))
        if (restarted := self._place_again()) is not None:
            return [*events, restarted]
        self.ended = True
        end = self._agents.end_event()  # their reports may be among the rest
        self.outside = end.outside
        return [*events, end]

    def _wait_until_ended(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.ended and time.monotonic() < deadline:
            _discard(self.poll(POLL_S))


def _discard(events: Iterable[RunEvent]) -> None:
    for event in events:
        if isinstance(event, PulledValues) and event.fd is not None:
            os.close(event.fd)

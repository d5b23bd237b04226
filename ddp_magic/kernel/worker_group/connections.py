"""The kernel's end of one group's connections: its ranks, its agents, and strangers.

Each connection is a stranger's (`strangers`) until its first message says who it is, and that makes
sense (`admission`). Whatever a connection sends, the others are unharmed.

Everything happens in the thread that calls `poll`: it reads the listening socket, the connections
and the text pipes (`open_ends`, `members`).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ddp_magic.errors import LaunchError, ProtocolError
from ddp_magic.kernel.worker_group import admission
from ddp_magic.kernel.worker_group.agent_connections import AgentConnections
from ddp_magic.kernel.worker_group.attempts import Attempts
from ddp_magic.kernel.worker_group.complaints import Complaints
from ddp_magic.kernel.worker_group.member import Member
from ddp_magic.kernel.worker_group.members import Members
from ddp_magic.kernel.worker_group.open_ends import End, OpenEnds
from ddp_magic.kernel.worker_group.strangers import HELLO_BYTES, HELLO_S, Strangers
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.channel import Channel, Listener
from ddp_magic.wire.codec import decode
from ddp_magic.wire.commands import Command
from ddp_magic.wire.events import AgentDone, AgentHello, Event, WorkerExited
from ddp_magic.wire.kernel_events import OutsideEnd, Restarted, RunEvent
from ddp_magic.wire.worker_events import WorkerHello

MAX_UNUSED_FDS = 4  # that a connection may have sent without a use


class Connections:
    """Hands out what agents and ranks say, in order, as events.

    Args:
        directory: Where the socket and the logs go; of mode 0700.
        nproc: Number of ranks.
        hello_s: How long a connection may send nothing, in seconds.
        max_restarts: How often the ranks may be restarted.
        attempt_end_s: How long to wait for their end before they are, in seconds.
        agents_stay: Whether several agents (of several nodes) outlive an attempt of their ranks.

    Attributes:
        members: The ranks that are connected, or were.
        agents: The connections of the agent, or with torchrun of each rank's keeper.
    """

    def __init__(
        self,
        directory: RunDirectory,
        nproc: int,
        hello_s: float = HELLO_S,
        max_restarts: int = 0,
        attempt_end_s: float = 0.0,
        agents_stay: bool = False,
    ) -> None:
        self._ends = OpenEnds(self._order)
        self._members = Members(directory, self._ends)
        self.members: Mapping[int, Member] = self._members.by_rank
        self._agents = AgentConnections()
        self.agents: Sequence[Channel] = self._agents.channels
        self._directory = directory
        self._strangers = Strangers(hello_s)
        self._complaints = Complaints()
        self._attempts = Attempts(
            nproc,
            self._members,
            self.agents,
            self._ends,
            max_restarts=max_restarts,
            end_s=attempt_end_s,
            agents_stay=agents_stay,
        )
        self._listener: Listener | None = None

    def listen(self) -> None:
        """Open the socket.

        Raises:
            LaunchError: It cannot be created.
        """
        try:
            self._directory.make_again()
            self._listener = Listener(self._directory.socket)
        except OSError as error:
            raise LaunchError(
                f"cannot create the ranks' socket in {self._directory}: {error.strerror}"
            ) from error
        self._ends.add(self._listener, self._accept)

    def resize(self, nproc: int) -> None:
        """Take another number of ranks."""
        self._attempts.nproc = nproc

    def watch(self, fd: int) -> None:
        """Let `poll` return when this descriptor becomes readable; -1 for no descriptor."""
        self._ends.watch(fd)

    def poll(self, timeout_s: float) -> list[RunEvent]:
        """Return what has happened, after waiting at most `timeout_s` for something to happen.

        Raises:
            OSError: This process can open no more files, and a rank could not connect.
        """
        return [*self._ends.read(timeout_s), *self._close_silent()]

    def _order(self, end: End) -> int:
        # Agents first: they say that ranks are restarted before those connect. Pipes last: an
        # output is there before the text that marks its place.
        return 0 if end in self.agents else 2 if isinstance(end, int) else 1

    @property
    def lost_agent(self) -> bool:
        """Whether an agent's connection has ended without a report of its end."""
        return self._agents.lost

    def pending(self) -> bool:
        """Return whether something has arrived that was not read."""
        return self._ends.pending()

    def read_rest(self, limit_s: float) -> list[RunEvent]:
        """Return what is left once every process has ended.

        Args:
            limit_s: Longest to wait for the end of the connections, in seconds.
        """
        self.watch(-1)
        events: list[RunEvent] = []
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            waiting = {*self._ends} - {self._listener, *self._strangers}
            if not waiting and not self.pending():
                break
            events += self.poll(0.05 if waiting else 0)
        return [*events, *self._members.take_ends()]

    def close(self) -> None:
        """Close everything."""
        self._members.close()
        for channel in (*self.agents, *self._strangers):
            channel.drop_fds()
            channel.close()
        if self._listener is not None:
            self._listener.close()
        self._ends.close()

    # --- connections --------------------------------------------------------------------------

    def _accept(self, listener: Listener) -> list[RunEvent]:
        try:
            channel = listener.accept(HELLO_BYTES)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and self._awaits_ranks:
                raise  # they would wait for ever
            return self._complaints.note(f"could not accept a connection: {error}")
        self._strangers.add(channel)
        self._ends.add(channel, self._read_channel)
        if (first := self._strangers.too_many(self._attempts.nproc)) is not None:
            return self._refuse(first, "too many did not say who they are")
        return []

    def _read_channel(self, channel: Channel) -> list[RunEvent]:
        if not channel.read():
            return self._lost(channel)
        if channel.lost_fd and self._awaits_ranks:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        events: list[RunEvent] = []
        try:
            for payload in channel.frames():
                events += self._take_payload(channel, payload)
                if channel.closed:
                    return events
        except ProtocolError as error:  # where the next frame begins is not known any more
            return events + self._refuse(channel, str(error))
        if len(channel.received_fds) > MAX_UNUSED_FDS:
            channel.drop_fds()
        return events

    @property
    def _awaits_ranks(self) -> bool:
        return len(self.members) < self._attempts.nproc

    def _lost(self, channel: Channel) -> list[RunEvent]:
        unfinished = channel in self._strangers and channel.unfinished
        self._drop(channel)
        self._members.lose(channel)
        if unfinished:
            return self._complaints.note("a connection ended in the middle of its first message")
        return []

    def _take_payload(self, channel: Channel, payload: bytes) -> list[RunEvent]:
        """Take a message that makes sense, and makes sense from there.

        A stranger that sends another kind is disconnected. A rank or an agent is not, because
        losing its connection would end it; its message is ignored.
        """
        try:
            message = decode(payload)
            standing = self._attempts.standing(channel)
            hello = message if isinstance(message, AgentHello | WorkerHello) else None
            if hello is not None and self._attempts.is_over(hello) and channel in self._strangers:
                self._drop(channel)
                return []
            admission.check(message, standing)
            if hello is not None and standing.is_restart(hello):
                return self._restart(channel, hello)
            return self._take(channel, message)
        except ProtocolError as error:
            if channel in self._strangers:
                return self._refuse(channel, str(error))
            who = self._who(channel)
            return self._complaints.note(f"an invalid message of {who} was ignored: {error}")

    def _take(self, channel: Channel, message: Command | Event) -> list[RunEvent]:
        if (rank := self._members.rank_of(channel)) is not None:
            return self.members[rank].take(message)  # type: ignore[arg-type]  # checked: a rank's
        match message:
            case AgentHello():
                self._strangers.prove(channel)
                self._agents.add(channel)
            case AgentDone():
                self._agents.finish(channel)
            case WorkerHello():
                self._members.welcome(message, channel)
                self._strangers.prove(channel)
                self._attempts.use()
            case WorkerExited(rank=rank):
                self._attempts.exited.add(rank)
            case _:
                pass
        return [message]  # type: ignore[list-item]  # commands never come up

    def _who(self, channel: Channel) -> str:
        rank = self._members.rank_of(channel)
        return "the agent" if rank is None else f"rank {rank}"

    def _refuse(self, channel: Channel, why: str) -> list[RunEvent]:
        """Close a connection, and say so."""
        who = "" if channel in self._strangers else f" of {self._who(channel)}"
        self._drop(channel)
        why = f"it sent an invalid message: {why}"
        return self._complaints.note(f"a connection{who} was closed because {why}")

    def _drop(self, channel: Channel) -> None:
        self._strangers.forget(channel)
        self._ends.remove(channel)
        channel.drop_fds()
        channel.close()

    def _close_silent(self) -> Iterator[RunEvent]:
        """Close connections that have not said who they are for a while."""
        for channel in self._strangers.silent():
            self._drop(channel)
            why = f"it sent nothing for {self._strangers.hello_s:g} s"
            yield from self._complaints.note(f"a connection was closed because {why}")

    # --- restarts -----------------------------------------------------------------------------

    @property
    def may_begin_again(self) -> bool:
        """Whether the ranks may be placed again, as a restart or instead of one."""
        return self._attempts.may_begin_again

    def begin_again(self, lost: OutsideEnd) -> Restarted:
        """Forget agents and ranks, which have ended: others are placed.

        Args:
            lost: How a node was lost.
        """
        for agent in {*self.agents} & {*self._ends}:
            self._drop(agent)
        self._attempts.begin_again()
        return replace(self._restarted(), lost=lost)

    def _restart(self, channel: Channel, hello: AgentHello | WorkerHello) -> list[RunEvent]:
        if self._attempts.is_ending:
            return []  # of several nodes, another one was the first to say so
        events = self._attempts.read_rest(channel)
        connected = self._members.connected()
        if connected and channel in self._strangers:
            why = f"it begins attempt {hello.attempt} while rank {connected[0]} is connected"
            return events + self._refuse(channel, why)
        self._attempts.begin()
        return [*events, self._restarted(), *self._take(channel, hello)]

    def _restarted(self) -> Restarted:
        agent_died = self._agents.lost
        self._agents.forget_closed()
        return Restarted(number=self._attempts.number, agent_died=agent_died)

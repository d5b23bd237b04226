"""The kernel's end of one group's connections: its ranks, its agents, and strangers.

Each connection is a stranger's until its first message says who it is, and that makes sense
(`admission`). Whatever a connection sends, the others are unharmed.

Everything happens in the thread that calls `poll`: it reads the listening socket, the connections
and the text pipes (`open_ends`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import replace

from ddp_magic.errors import LaunchError, ProtocolError
from ddp_magic.kernel.worker_group import admission
from ddp_magic.kernel.worker_group.admission import Standing
from ddp_magic.kernel.worker_group.member import Member
from ddp_magic.kernel.worker_group.open_ends import End, OpenEnds
from ddp_magic.system.run_directory import RunDirectory, append
from ddp_magic.wire.channel import MAX_FRAME_BYTES, Channel, Listener
from ddp_magic.wire.codec import decode
from ddp_magic.wire.commands import Command
from ddp_magic.wire.events import AgentDone, AgentHello, Event, WorkerExited
from ddp_magic.wire.kernel_events import Note, OutsideEnd, PulledValues, Restarted, RunEvent
from ddp_magic.wire.worker_events import ClearOutput, DisplayData, Question, Results, WorkerHello

HELLO_S = 30.0  # for a connection to say who it is
HELLO_BYTES = 64 * 1024  # longest first message
MAX_STRANGERS = 16  # connected at once, beside the ranks and their keepers
MAX_UNUSED_FDS = 4  # that a connection may have sent without a use
ATTEMPT_END_S = 3.0  # for the end of the ranks' connections and text before they are restarted
MAX_COMPLAINTS = 5  # about connections, for a group
_READ_BYTES = 256 * 1024


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
        attempt_end_s: float = ATTEMPT_END_S,
        agents_stay: bool = False,
    ) -> None:
        self.members: dict[int, Member] = {}
        self.agents: list[Channel] = []
        self._directory = directory
        self._nproc = nproc
        self._hello_s = hello_s
        self._attempt, self._max_restarts = 0, max_restarts
        self._attempt_end_s = attempt_end_s
        self._agents_stay = agents_stay
        self._is_ending = False  # what is left of an attempt is read
        self._is_unused = False  # an agent has begun this attempt, and no rank has connected
        self._exited: set[int] = set()
        self._done: set[Channel] = set()  # agents that have reported their end
        self._ranks: dict[Channel, int] = {}
        self._strangers: dict[Channel, float] = {}  # and when each connected, monotonic, s
        self._ends = OpenEnds()
        self._listener: Listener | None = None
        self._watched_fd = -1
        self._complaints = 0
        self._log_is_lost = False

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
        self._nproc = nproc

    def watch(self, fd: int) -> None:
        """Let `poll` return when this descriptor becomes readable; -1 for no descriptor."""
        if fd == self._watched_fd:
            return
        if self._watched_fd >= 0:
            self._ends.remove(self._watched_fd)
        if fd >= 0:
            self._ends.add(fd, lambda _fd: [])
        self._watched_fd = fd

    def poll(self, timeout_s: float) -> list[RunEvent]:
        """Return what has happened, after waiting at most `timeout_s` for something to happen.

        Raises:
            OSError: This process can open no more files, and a rank could not connect.
        """
        return [*self._ends.read(timeout_s, self._order), *self._close_silent()]

    def _order(self, end: End) -> int:
        # Agents first: they say that ranks are restarted before those connect. Pipes last: an
        # output is there before the text that marks its place.
        return 0 if end in self.agents else 2 if isinstance(end, int) else 1

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
        return [*events, *self._take_ends()]

    def _take_ends(self) -> Iterator[RunEvent]:
        for member in self.members.values():
            yield from member.take_end()
            yield from self._lost_log(member)

    def close(self) -> None:
        """Close everything."""
        for member in self.members.values():
            member.close()
        for channel in (*self.agents, *self._strangers):
            channel.drop_fds()
            channel.close()
        if self._listener is not None:
            self._listener.close()
        self._ends.close()

    @property
    def lost_agent(self) -> bool:
        """Whether an agent's connection has ended without a report of its end."""
        return any(agent.closed and agent not in self._done for agent in self.agents)

    # --- connections --------------------------------------------------------------------------

    def _accept(self, listener: Listener) -> list[RunEvent]:
        try:
            channel = listener.accept(HELLO_BYTES)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and self._awaits_ranks:
                raise  # they would wait for ever
            return self._complain(f"could not accept a connection: {error}")
        self._strangers[channel] = time.monotonic()
        self._ends.add(channel, self._read_channel)
        if len(self._strangers) > 2 * self._nproc + MAX_STRANGERS:
            return self._refuse(next(iter(self._strangers)), "too many did not say who they are")
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
        return len(self.members) < self._nproc

    def _lost(self, channel: Channel) -> list[RunEvent]:
        unfinished = channel in self._strangers and channel.unfinished
        self._drop(channel)
        if channel in self._ranks:
            self.members[self._ranks[channel]].unconnected_since = time.monotonic()
        if unfinished:
            return self._complain("a connection ended in the middle of its first message")
        return []

    def _take_payload(self, channel: Channel, payload: bytes) -> list[RunEvent]:
        """Take a message that makes sense, and makes sense from there.

        A stranger that sends another kind is disconnected. A rank or an agent is not, because
        losing its connection would end it; its message is ignored.
        """
        try:
            message = decode(payload)
            standing = self._standing(channel)
            hello = message if isinstance(message, AgentHello | WorkerHello) else None
            if hello is not None and hello.attempt < self._attempt and channel in self._strangers:
                self._drop(channel)  # of an earlier attempt: it has ended
                return []
            admission.check(message, standing)
            if hello is not None and standing.is_restart(hello):
                return self._restart(channel, hello)
            return self._take(channel, message)
        except ProtocolError as error:
            if channel in self._strangers:
                return self._refuse(channel, str(error))
            who = self._who(channel)
            return self._complain(f"an invalid message of {who} was ignored: {error}")

    def _restart(self, channel: Channel, hello: AgentHello | WorkerHello) -> list[RunEvent]:
        if self._is_ending:
            return []  # of several nodes, another one was the first to say so
        self._is_ending = True
        events = self._end_attempt(channel)
        self._is_ending = False
        connected = [r for r, member in self.members.items() if not member.channel.closed]
        if connected and channel in self._strangers:
            why = f"it begins attempt {hello.attempt} while rank {connected[0]} is connected"
            return events + self._refuse(channel, why)
        begun = self._begin_attempt(self._attempt + 1)
        self._is_unused = True
        return [*events, begun, *self._take(channel, hello)]

    def _standing(self, channel: Channel) -> Standing:
        return Standing(
            nproc=self._nproc,
            present=self.members,
            exited=self._exited,
            rank=self._ranks.get(channel),
            agent=channel in self.agents,
            attempt=self._attempt,
            max_restarts=self._max_restarts,
        )

    def _take(self, channel: Channel, message: Command | Event) -> list[RunEvent]:
        match message:
            case AgentHello():
                self._prove(channel)
                if channel not in self.agents:
                    self.agents.append(channel)
            case AgentDone():
                self._done.add(channel)
            case WorkerHello():
                self._welcome(channel, message)
            case WorkerExited(rank=rank):
                self._exited.add(rank)
            case Results(names=(_, *_)):
                fd = admission.take_buffers(channel, message.sizes)
                return [PulledValues(results=message, fd=fd)]
            case Results():
                return [PulledValues(results=message, fd=None)]
            case DisplayData() | ClearOutput() | Question():
                return list(self.members[message.rank].take_output(message))
            case _:
                pass
        return [message]  # type: ignore[list-item]  # commands never come up

    def _welcome(self, channel: Channel, hello: WorkerHello) -> None:
        member = Member.of(hello, channel, self._directory.rank_log(hello.rank))
        self._prove(channel)
        self._is_unused = False
        self._ranks[channel] = hello.rank
        self.members[hello.rank] = member
        self._ends.add(member.pipe, self._read_pipe)

    def _prove(self, channel: Channel) -> None:
        """Accept that a stranger is what it says."""
        self._strangers.pop(channel, None)
        channel.max_frame_bytes = MAX_FRAME_BYTES

    def _who(self, channel: Channel) -> str:
        return f"rank {self._ranks[channel]}" if channel in self._ranks else "the agent"

    def _refuse(self, channel: Channel, why: str) -> list[RunEvent]:
        """Close a connection, and say so."""
        who = "" if channel in self._strangers else f" of {self._who(channel)}"
        self._drop(channel)
        return self._complain(
            f"a connection{who} was closed because it sent an invalid message: {why}"
        )

    def _drop(self, channel: Channel) -> None:
        self._strangers.pop(channel, None)
        self._ends.remove(channel)
        channel.drop_fds()
        channel.close()

    def _complain(self, text: str) -> list[RunEvent]:
        """Return a line for the user; no more than a few of this kind."""
        self._complaints += 1
        if self._complaints == MAX_COMPLAINTS:
            text += " (further messages like this are not shown)"
        return [Note(text=text)] if self._complaints <= MAX_COMPLAINTS else []

    def _close_silent(self) -> Iterator[RunEvent]:
        """Close connections that have not said who they are for a while."""
        for channel, since in list(self._strangers.items()):
            if time.monotonic() - since > self._hello_s:
                self._drop(channel)
                yield from self._complain(
                    f"a connection was closed because it sent nothing for {self._hello_s:g} s"
                )

    # --- restarts -----------------------------------------------------------------------------

    def _end_attempt(self, beginner: Channel) -> list[RunEvent]:
        """Return what the ranks had left, once their processes have ended.

        Args:
            beginner: The connection that says that the ranks are restarted.
        """
        events: list[RunEvent] = []
        deadline = time.monotonic() + self._attempt_end_s
        while left := self._left_of_attempt() - {beginner}:
            if time.monotonic() > deadline:
                break
            events += self._ends.read(0.05, self._order, only=left)
        return [*events, *self._take_ends()]

    def _left_of_attempt(self) -> set[Channel | int]:
        """Return the open ends from which something of this attempt may come."""
        ranks, agents = {*self._rank_ends()} & {*self._ends}, {*self.agents} & {*self._ends}
        if not self._agents_stay:
            return {*ranks, *agents}
        return {*ranks, *agents} if ranks or set(self.members) - self._exited else set()

    @property
    def may_begin_again(self) -> bool:
        """Whether the ranks may be placed again, as a restart or instead of one."""
        return self._is_unused or self._attempt < self._max_restarts

    def begin_again(self, lost: OutsideEnd) -> Restarted:
        """Forget agents and ranks, which have ended: others are placed.

        Args:
            lost: How a node was lost.
        """
        for agent in {*self.agents} & {*self._ends}:
            self._drop(agent)
        # Agents of nodes that are there may have begun a restart because of the loss: it is this.
        restarted = self._begin_attempt(self._attempt + (not self._is_unused))
        self._is_unused = False
        return replace(restarted, lost=lost)

    def _begin_attempt(self, number: int) -> Restarted:
        """Forget the ranks: others take their places."""
        self._attempt = number
        for end in {*self._rank_ends()} & {*self._ends}:
            self._ends.remove(end)
        for member in self.members.values():
            member.close()
        for rank in range(self._nproc):
            mark = f"\n--- restart {self._attempt} of {self._max_restarts} ---\n"
            with contextlib.suppress(OSError):
                append(self._directory.rank_log(rank), mark.encode())
        self.members.clear()
        self._ranks.clear()
        self._exited.clear()
        agent_died = self.lost_agent
        self.agents[:] = [agent for agent in self.agents if not agent.closed]
        return Restarted(number=self._attempt, agent_died=agent_died)

    def _rank_ends(self) -> Iterator[Channel | int]:
        for member in self.members.values():
            yield from (member.channel, member.pipe)

    # --- text ---------------------------------------------------------------------------------

    def _read_pipe(self, pipe: int) -> list[RunEvent]:
        member = next(m for m in self.members.values() if m.pipe == pipe)
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

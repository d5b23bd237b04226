"""A worker group: its processes, and the kernel's end of their connections.

Everything happens in the thread that calls `poll`: one selector over the listening socket, the
connections and the text pipes. A group has no thread of its own.
"""

from __future__ import annotations

import codecs
import dataclasses
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ddp_magic.display.rank_text import MarkSplitter
from ddp_magic.engines import Engine, PlacedAgent
from ddp_magic.errors import LaunchError, ProtocolError
from ddp_magic.kernel import admission
from ddp_magic.kernel.admission import Standing
from ddp_magic.system import processes
from ddp_magic.system.run_directory import RunDirectory, append
from ddp_magic.wire.channel import MAX_FRAME_BYTES, Channel, Listener
from ddp_magic.wire.messages import (
    AgentDone,
    AgentHello,
    ClearOutput,
    Command,
    ConnectionLost,
    DisplayData,
    Event,
    Exit,
    Idle,
    Interrupt,
    Kill,
    NewGroup,
    Results,
    Stream,
    WorkerExited,
    WorkerHello,
    WorkerReady,
    decode,
)
from ddp_magic.wire.specs import AgentSpec, WorkerSettings

KILL_PATIENCE_S = 2.0  # for the agent to carry out a Kill, before the kernel does it itself
LOST_S = 2.0  # between the end of a rank's connection and the news of its process's end
DRAIN_S = 1.0  # for the end of the text once all processes are gone
HELLO_S = 30.0  # for a connection to say who it is
HELLO_BYTES = 64 * 1024  # longest message of one that has not
MAX_STRANGERS = 16  # connected at once, beside the ranks and their keepers
MAX_UNUSED_FDS = 4  # that a connection may have sent without a use
MAX_COMPLAINTS = 5  # about connections, for a group
_READ_BYTES = 256 * 1024


@dataclass
class Member:
    """One rank as its kernel sees it: the connection, the text pipe, the process."""

    rank: int
    channel: Channel
    pipe: int
    process: psutil.Process | None
    splitter: MarkSplitter
    log: Path
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )
    text: deque[bytes | int] = field(default_factory=deque)
    outputs: dict[int, DisplayData | ClearOutput] = field(default_factory=dict)
    last_mark: int = 0  # of the outputs that have come, which come in their order
    written: int = 0  # to the log, bytes
    unconnected_since: float | None = None  # on the monotonic clock, s

    def ordered(self, *, final: bool = False) -> Iterator[Event]:
        """Yield text and rich outputs in the order in which the rank made them.

        Args:
            final: Nothing more will come: do not wait for the output that belongs to a mark.
        """
        while self.text:
            item = self.text[0]
            if isinstance(item, int):
                if item not in self.outputs and item > self.last_mark and not final:
                    return
                if item in self.outputs:
                    yield self.outputs.pop(item)
            elif text := self.decoder.decode(item):
                yield Stream(rank=self.rank, text=text)
            self.text.popleft()
        if final:
            if text := self.decoder.decode(b"", final=True):
                yield Stream(rank=self.rank, text=text)
            yield from (self.outputs.pop(mark) for mark in sorted(self.outputs))


class WorkerGroup:
    """The ranks of one run, or of one session.

    Args:
        directory: Where the socket and the logs go; of mode 0700.
        nproc: Number of ranks.
        device: "cuda" or "cpu".
        backend: Of the default process group; None for the device's own.
        timeout_s: Of collectives, s; None for torch's default.
        init_process_group: Whether to make the default process group.
        kept: Whether the ranks are a session's.
    """

    def __init__(
        self,
        directory: RunDirectory,
        *,
        nproc: int,
        device: str,
        backend: str | None = None,
        timeout_s: float | None = None,
        init_process_group: bool = True,
        kept: bool = False,
    ) -> None:
        """Describe a group; `start` starts it."""
        self.directory = directory
        self.nproc = nproc
        self.members: dict[int, Member] = {}
        self.ended = False
        self.agent_error = ""
        self.agent_died = False
        self.swept = 0
        self._settings = WorkerSettings(
            socket=str(directory.socket),
            directory=str(directory.path),
            device=device,
            backend=backend,
            timeout_s=timeout_s,
            init_process_group=init_process_group,
            kept=kept,
        )
        self.kept = kept
        self.ready: dict[int, WorkerReady] = {}
        self.unseen: list[Event] = []  # between the cells of a session
        self._renewals = 0
        self.sent: set[int] = set()  # numbers of shared memory
        self.cell_files: set[str] = set()  # what the cells of a session call themselves
        self._selector = selectors.DefaultSelector()
        self._listener: Listener | None = None
        self._master_port: socket.socket | None = None
        self._agent: PlacedAgent | None = None
        # One, or with torchrun one for each rank's keeper.
        self._agent_channels: list[Channel] = []
        self._agents_done = 0
        self._watched_fd = -1
        self.exited: dict[int, WorkerExited] = {}
        self._has_group: dict[int, bool] = {}
        self._interrupted = False
        self._first_commands: list[tuple[Command, int | None]] = []
        self.result_fds: dict[int, int] = {}
        self._strangers: dict[Channel, float] = {}  # since when they have not said who they are
        self._ranks: dict[Channel, int] = {}
        self._complaints = 0
        self._log_is_lost = False
        self._kill_deadline: float | None = None
        self._started = 0.0

    def start(
        self, engine: Engine, env: dict[str, str], sys_path: list[str], prelude: tuple[str, ...]
    ) -> None:
        """Start the agent, which starts the ranks. Returns before they are up.

        Args:
            engine: What places the agent.
            env: The ranks' whole environment; see `environment.rank_environment`.
            sys_path: Their module search path.
            prelude: Names of the prelude that the first cell reads.
        """
        self._started = time.time() - 1.0  # a process's own time is rounded to ticks
        try:
            self.directory.make_again()
            self._listener = Listener(self.directory.socket)
        except OSError as error:
            raise LaunchError(
                f"the ranks' socket could not be made in {self.directory}: {error.strerror}"
            ) from error
        # Bound and not listening: ours to keep, and free for the store of what the ranks start.
        self._master_port = socket.socket()
        self._master_port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._master_port.bind(("127.0.0.1", 0))
        port = self._master_port.getsockname()[1]
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._agent = engine.start(
            AgentSpec(
                run_id=self.directory.id,
                kernel_pid=os.getpid(),
                nproc=self.nproc,
                sys_path=tuple(sys_path),
                worker=dataclasses.replace(self._settings, master_port=port),
                prelude=prelude,
            ),
            env,
        )

    # --- commands -----------------------------------------------------------------------------

    def send(self, command: Command, fd: int | None = None) -> None:
        """Send a command, and a descriptor with it, to every rank.

        Those that are not up yet get it when they are.
        """
        for member in self.members.values():
            member.channel.send(command, fd)
        if len(self.members) < self.nproc:
            self._first_commands.append((command, None if fd is None else os.dup(fd)))

    @property
    def has_process_group(self) -> bool:
        """Whether every rank of a session still had its default group after its last cell."""
        return all(self._has_group.values())

    def renew(self) -> None:
        """Let the ranks make their process group anew; each answers with WorkerReady."""
        self._has_group.clear()
        self._renewals += 1
        self.send(NewGroup(number=self._renewals))

    @property
    def started(self) -> bool:
        """Whether `start` has been called."""
        return self._agent is not None

    def interrupt(self, ranks: Collection[int], *, keep: bool) -> None:
        """Raise KeyboardInterrupt in these ranks.

        Args:
            ranks: Which.
            keep: They are to outlive it, and let go of collectives; else those that answer no
                longer end with the others.
        """
        if not keep:
            self._interrupted = True
            for channel in self._agent_channels:
                channel.send(Interrupt())
        for rank in ranks:
            if rank in self.members:
                self.members[rank].channel.send(Interrupt(abort_collectives=keep))

    def kill(self, ranks: tuple[int, ...] = ()) -> None:
        """End some ranks at once, or the whole group where none is named."""
        for channel in self._agent_channels:
            channel.send(Kill(ranks=ranks))
        if (
            not self._agent_channels and self._agent is not None
        ):  # not connected yet: there are no ranks to care for
            self._agent.kill()
        if not ranks and self._kill_deadline is None:
            self._kill_deadline = time.monotonic() + KILL_PATIENCE_S

    def signal(self, rank: int, sig: int) -> None:
        """Send a signal to one rank's process."""
        member = self.members.get(rank)
        if member is not None and member.process is not None:
            processes.kill(member.process, sig)

    # --- events -------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> list[Event]:
        """Return what has happened, waiting at most `timeout_s` for something to happen."""
        events: list[Event] = []
        ready = self._selector.select(timeout_s)
        # Connections before pipes: an output is there before the text that marks its place.
        for key, _ in sorted(ready, key=lambda item: item[0].data == self._read_pipe):
            if key.fileobj in self._selector.get_map():
                events += key.data(key.fileobj)
        self._close_silent()
        if self._agent is None or self.ended:
            return events
        events += self._kill_lost()
        self._watch(self._agent)
        if self._agent.ended():
            events += self._finish()
        elif self._kill_deadline is not None and time.monotonic() > self._kill_deadline:
            self._kill_deadline = None
            self._agent.kill()
        return events

    def _watch(self, agent: PlacedAgent) -> None:
        """Let the agent's end wake us."""
        if self._watched_fd < 0 and (fd := agent.fileno()) >= 0:
            self._watched_fd = fd
            self._selector.register(fd, selectors.EVENT_READ, self._nothing)

    @staticmethod
    def _nothing(_fd: int) -> list[Event]:
        return []

    def _accept(self, listener: Listener) -> list[Event]:
        try:
            channel = listener.accept(HELLO_BYTES)
        except OSError as error:
            self._complain(f"a connection could not be accepted: {error}")
            return []
        self._strangers[channel] = time.monotonic()
        self._selector.register(channel, selectors.EVENT_READ, self._read_channel)
        if len(self._strangers) > 2 * self.nproc + MAX_STRANGERS:
            self._refuse(next(iter(self._strangers)), "too many have not said who they are")
        return []

    def _read_channel(self, channel: Channel) -> list[Event]:
        if not channel.read():
            if channel in self._strangers and channel.unfinished:
                self._complain("a connection ended in the middle of its first message")
            self._drop(channel)
            if channel in self._ranks:
                self.members[self._ranks[channel]].unconnected_since = time.monotonic()
            return []
        events: list[Event] = []
        try:
            for payload in channel.frames():
                events += self._take_payload(channel, payload)
                if channel.closed:
                    return events
        except ProtocolError as error:  # where the next frame begins is not known any more
            self._refuse(channel, str(error))
            return events
        if len(channel.received_fds) > MAX_UNUSED_FDS:
            channel.drop_fds()
        return events

    def _take_payload(self, channel: Channel, payload: bytes) -> list[Event]:
        """Take a message that makes sense, and coming from there.

        A stranger that sends another kind is sent away. A rank or an agent is not, because losing
        its connection would end it; its message is left out.
        """
        try:
            message = decode(payload)
            admission.check(
                message,
                Standing(
                    nproc=self.nproc,
                    present=self.members,
                    exited=self.exited,
                    rank=self._ranks.get(channel),
                    agent=channel in self._agent_channels,
                ),
            )
            return self._take(channel, message)
        except ProtocolError as error:
            if channel in self._strangers:
                self._refuse(channel, str(error))
            else:
                self._complain(f"an invalid message of {self._who(channel)} was ignored: {error}")
            return []

    def _who(self, channel: Channel) -> str:
        return f"rank {self._ranks[channel]}" if channel in self._ranks else "the agent"

    def _refuse(self, channel: Channel, why: str) -> None:
        """Close a connection, and say so."""
        who = "" if channel in self._strangers else f" of {self._who(channel)}"
        self._complain(f"a connection{who} was closed, because it sent an invalid message: {why}")
        self._drop(channel)

    def _drop(self, channel: Channel) -> None:
        self._strangers.pop(channel, None)
        self._selector.unregister(channel)
        channel.drop_fds()
        channel.close()

    def _complain(self, text: str) -> None:
        """Say a line on the screen; not more than a few of this kind."""
        self._complaints += 1
        if self._complaints == MAX_COMPLAINTS:
            text += " (others like this one are not shown)"
        if self._complaints <= MAX_COMPLAINTS:
            self.notes.append(text)

    def _close_silent(self) -> None:
        """Close connections that have not said who they are for a while."""
        for channel, since in list(self._strangers.items()):
            if time.monotonic() - since > HELLO_S:
                self._complain(f"a connection was closed: it said nothing for {HELLO_S:g} s")
                self._drop(channel)

    def _take(self, channel: Channel, message: Command | Event) -> list[Event]:
        match message:
            case AgentHello():
                self._prove(channel)
                self._agent_channels.append(channel)
            case AgentDone():
                self._agents_done += 1
                self.agent_error = self.agent_error or message.error
                self.swept += message.swept
            case WorkerExited():
                self._note_exit(message)
            case WorkerHello():
                self._welcome(channel, message)
            case WorkerReady(rank=rank):
                self.ready[rank] = message
            case Idle(rank=rank, group=group):
                self._has_group[rank] = group
            case Results(rank=rank, names=(_, *_)):
                self._keep_results(rank, channel.take_fd(), message.sizes)
            case DisplayData() | ClearOutput():
                return self._take_output(message)
            case _:
                pass
        return [message]  # type: ignore[list-item]  # commands never come up

    def _note_exit(self, event: WorkerExited) -> None:
        self.exited[event.rank] = event
        if self._interrupted and len(self.exited) == self.nproc:
            # torchrun's keepers of ranks that were interrupted wait for the others' end.
            for keeper in self._agent_channels:
                keeper.send(Kill())

    def _take_output(self, event: DisplayData | ClearOutput) -> list[Event]:
        member = self.members[event.rank]
        member.outputs[event.mark] = event
        member.last_mark = max(member.last_mark, event.mark)
        return list(member.ordered())

    def _kill_lost(self) -> list[Event]:
        """End ranks that live and have no connection: nobody would ever hear of them."""
        events: list[Event] = []
        for rank, member in self.members.items():
            since = member.unconnected_since
            if since is None or rank in self.exited or time.monotonic() - since < LOST_S:
                continue
            member.unconnected_since = None  # once
            events.append(ConnectionLost(rank=rank, time=time.time()))
            self.kill((rank,))
        return events

    def _keep_results(self, rank: int, fd: int, sizes: tuple[int, ...]) -> None:
        try:
            admission.check_buffers(fd, sizes)
        except ProtocolError:
            os.close(fd)
            raise
        if rank in self.result_fds:
            os.close(self.result_fds[rank])
        self.result_fds[rank] = fd

    def _prove(self, channel: Channel) -> None:
        """Let a stranger be what it has said that it is."""
        self._strangers.pop(channel, None)
        channel.max_frame_bytes = MAX_FRAME_BYTES

    def _welcome(self, channel: Channel, hello: WorkerHello) -> None:
        pipe = channel.take_fd()
        try:
            admission.check_pipe(pipe)
        except ProtocolError:
            os.close(pipe)
            raise
        self._prove(channel)
        self._ranks[channel] = hello.rank
        os.set_blocking(pipe, False)
        process = None
        if channel.peer_pid() in (None, hello.pid):  # else it is not ours to signal
            try:
                process = psutil.Process(hello.pid)
            except psutil.NoSuchProcess:
                pass
        self.members[hello.rank] = Member(
            rank=hello.rank,
            channel=channel,
            pipe=pipe,
            process=process,
            splitter=MarkSplitter(hello.marker.encode()),
            log=self.directory.rank_log(hello.rank),
        )
        self._selector.register(pipe, selectors.EVENT_READ, self._read_pipe)
        for command, fd in self._first_commands:
            channel.send(command, fd)
        if len(self.members) == self.nproc:
            self._forget_first_commands()

    def _forget_first_commands(self) -> None:
        for _, fd in self._first_commands:
            if fd is not None:
                os.close(fd)
        self._first_commands = []

    def look(self) -> None:
        """Keep what has arrived for the next cell; notice the end of the ranks."""
        self.unseen += self.drain()
        if not self.ended:
            self.unseen += self.poll(0)
        if any(member.channel.closed for member in self.members.values()):
            self._poll_until_ended(KILL_PATIENCE_S)  # a rank is gone: the agent ends the others
            self.close()
        elif self.ended:
            self.close()

    def finish(self, timeout_s: float) -> bool:
        """Tell the ranks that no other cell comes; return whether they have ended in time."""
        self.send(Exit())
        self._poll_until_ended(timeout_s)
        return self.ended

    def drain(self) -> list[Event]:
        """Return what has arrived and not been read, without waiting."""
        events: list[Event] = []
        deadline = time.monotonic() + DRAIN_S  # a thread of a session's rank may go on writing
        while not self.ended and self._selector.select(0) and time.monotonic() < deadline:
            events += self.poll(0)
        return events

    def _read_pipe(self, pipe: int) -> list[Event]:
        member = next(m for m in self.members.values() if m.pipe == pipe)
        try:
            data = os.read(pipe, _READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            self._close_pipe(member)
        return list(self._take_text(member, data))

    def _take_text(self, member: Member, data: bytes) -> Iterator[Event]:
        for item in member.splitter.feed(data):
            if isinstance(item, bytes):
                self._write_log(member, item)
            member.text.append(item)
        yield from member.ordered()

    def _write_log(self, member: Member, text: bytes) -> None:
        try:
            member.written = append(member.log, text)
        except OSError as error:  # a full disk costs the log, not the run
            if not self._log_is_lost:
                self._log_is_lost = True
                self.notes.append(
                    f"not all that the ranks write is kept in {self.directory}: {error.strerror}"
                )

    def _close_pipe(self, member: Member) -> None:
        self._selector.unregister(member.pipe)
        os.close(member.pipe)
        member.pipe = -1

    # --- the end ------------------------------------------------------------------------------

    def _finish(self) -> list[Event]:
        """Collect what is left once the agent has ended, and end what it could not."""
        self.agent_died = self._agents_done < max(1, len(self._agent_channels))
        if self.agent_died:
            self._sweep_sessions()
        if self._watched_fd >= 0:
            self._selector.unregister(self._watched_fd)
            self._watched_fd = -1
        events: list[Event] = []
        deadline = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline:
            open_ends = [key.fileobj for key in self._selector.get_map().values()]
            waiting = set(open_ends) - {self._listener, *self._strangers}
            ready = self._selector.select(0.05 if waiting else 0)
            if not waiting and not ready:
                break
            for key, _ in sorted(ready, key=lambda item: item[0].data == self._read_pipe):
                if key.fileobj in self._selector.get_map():
                    events += key.data(key.fileobj)
        for member in self.members.values():
            if rest := member.splitter.end():
                events += self._take_text(member, rest)
            events += member.ordered(final=True)
        self.ended = True
        return events

    def _sweep_sessions(self) -> None:
        """End what the ranks had started, after an agent that was killed before it could."""
        pids = [member.process.pid for member in self.members.values() if member.process]
        for process in processes.session_members(pids):
            # A session's number is free again only when its last member is gone; one that was
            # there before this group is somebody else's.
            if process.create_time() >= self._started:
                processes.kill(process)

    def _poll_until_ended(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.ended and time.monotonic() < deadline:
            self.poll(0.05)

    def last_words(self) -> str:
        """Return what the agent said on its own stderr."""
        return self._agent.last_words() if self._agent is not None else ""

    def waits_for(self) -> str:
        """Say what the start waits for; empty if for nothing."""
        return self._agent.waits_for() if self._agent is not None else ""

    @property
    def notes(self) -> list[str]:
        """What is to be said of the start, once."""
        return self._agent.notes if self._agent is not None else []

    def close(self) -> None:
        """End whatever is left of the group and let go of everything it held."""
        if self._agent is not None and not self.ended:
            self.kill()
            self._poll_until_ended(KILL_PATIENCE_S + DRAIN_S)
            self._agent.kill()
            self._sweep_sessions()
        self.ended = True
        if self.kept:
            self.directory.tidy()
        for member in self.members.values():
            member.channel.close()
            if member.pipe >= 0:
                os.close(member.pipe)
                member.pipe = -1
        for channel in (*self._agent_channels, *self._strangers):
            channel.drop_fds()
            channel.close()
        for fd in self.result_fds.values():
            os.close(fd)
        self.result_fds = {}
        self._forget_first_commands()
        if self._listener is not None:
            self._listener.close()
        if self._master_port is not None:
            self._master_port.close()
        self._selector.close()
        if self._agent is not None:
            self._agent.close()

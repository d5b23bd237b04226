"""The far relay: on a node of several, it stands for the kernel, to the agent and to the ranks.

It listens on a Unix socket in a private directory of this node, and carries what comes in there
over its own stdin and stdout, which the engine connects with the near relay (`engines.near_relay`).
Descriptors cannot go that way: it reads the ranks' text pipes itself, keeps the notebook's values
in shared memory of its own, and writes the cell's file. No port is opened but one, by node 0: that
of the store of the rendezvous, on the node's own address.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from ddp_magic.errors import ProtocolError
from ddp_magic.node.agent_child import AgentProcess
from ddp_magic.node.node_directory import NodeDirectory
from ddp_magic.system import processes
from ddp_magic.wire.channel import MAX_FRAME_BYTES, Channel, Listener
from ddp_magic.wire.codec import decode, encode, type_name
from ddp_magic.wire.commands import Captured, RunCell, SharedMemory
from ddp_magic.wire.memory import anonymous_file
from ddp_magic.wire.relay_frames import (
    ALL,
    PIECE_BYTES,
    Frame,
    FrameReader,
    Kind,
    LineWriter,
    NodeEnd,
    write_all,
)
from ddp_magic.wire.worker_events import WorkerHello

HELLO_BYTES = 64 * 1024
SOON_S = 0.05
IDLE_S = 1.0
STACKS_S = 1.0  # for a rank to write its stack
OTHERS_S = 1.0  # for the kernel to end the ranks of the other nodes, and hear of their end
DRAIN_S = 1.0  # for the ranks' last words, after the agent's end
# After one of these messages, files of the run may be new that somebody reads where the kernel is.
_AFTER = ("Finished", "Error", "Results", "WorkerExited")
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # torch's agent ends by them


def main() -> NoReturn:
    """Be the relay of one node, until its agent has ended or the kernel is gone."""
    processes.adopt_orphans()
    relay = Relay(int(os.environ[sys.argv[1]]))
    try:
        code = relay.run()
    finally:
        relay.close()
    os._exit(code)


class Relay:
    """Carries frames between this node's ranks and the kernel.

    Args:
        node: Number of this node.
    """

    def __init__(self, node: int) -> None:
        self._node = node
        self._lines = LineWriter(node)
        self._frames = FrameReader()
        self._out: list[bytes] = []
        self._told = 0.0  # when something was last said, monotonic, s
        self._selector = selectors.DefaultSelector()
        self._directory = NodeDirectory()
        self._listener = Listener(self._directory.run.socket)
        self._connections: dict[int, Channel] = {}
        self._pipes: dict[int, int] = {}  # read ends of the ranks' text, and whose
        self._segments: dict[int, int] = {}
        self._ranks: dict[int, int] = {}  # by connection
        self._count = 0
        self._agent: AgentProcess | None = None
        self._is_done = False  # the agent has reported its end
        self._kernel_ended = False
        self._drained_by: float | None = None
        self._stacks_until = 0.0  # a rank is about to write its stack
        self._checks = False  # the ranks write what they call
        self._files_sent = 0.0  # monotonic, s
        self._signals = _catch_signals()

    def run(self) -> int:
        """Carry frames; return the exit code: 0 if the agent reported its end."""
        os.set_blocking(0, False)
        self._selector.register(0, selectors.EVENT_READ, self._read_kernel)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._signals, selectors.EVENT_READ, self._tell_signals)
        while not self._over():
            soon = self._checks or self._drained_by is not None
            soon = soon or time.monotonic() < self._stacks_until
            for key, _ in self._selector.select(SOON_S if soon else IDLE_S):
                if key.fileobj in self._selector.get_map():
                    key.data(key.fileobj)
            if soon and time.monotonic() - self._files_sent > SOON_S:
                self._send_files()
            if time.monotonic() - self._told > IDLE_S:
                self._tell(Kind.ALIVE)
            self._flush()
        how = NodeEnd.TOLD if self._kernel_ended else NodeEnd.DIED
        self._tell(Kind.ENDED, NodeEnd.REPORTED if self._is_done else how)
        self._flush()
        if not self._is_done and not self._kernel_ended:
            time.sleep(OTHERS_S)  # this node's failure ends the others at once
        return 0 if self._is_done else 1

    def close(self) -> None:
        """End the agent and its ranks, and remove what lies on this node."""
        if self._agent is not None:
            self._agent.kill()
        processes.sweep(grace_s=0.0)
        self._directory.remove()

    def _over(self) -> bool:
        if self._kernel_ended:
            return True
        if self._drained_by is None:
            return False
        waiting = self._pipes or any(not c.closed for c in self._connections.values())
        return not waiting or time.monotonic() > self._drained_by

    # --- to the kernel ------------------------------------------------------------------------

    def _tell(self, kind: Kind, connection: int = 0, payload: bytes = b"") -> None:
        self._out.append(Frame(self._node, kind, connection, payload).encode())

    def _flush(self) -> None:
        if not self._out:
            return
        self._told = time.monotonic()
        view = memoryview(self._lines.lines(b"".join(self._out)))
        self._out = []
        while view:
            try:
                view = view[os.write(1, view) :]
            except BlockingIOError:
                select.select([], [1], [])
            except OSError:  # the engine's stream is gone
                self._kernel_ended = True
                return

    def _tell_signals(self, fd: int) -> None:
        """Say that a signal came, before it is told what it did to the agent and the ranks."""
        for number in os.read(fd, 64):
            if number in _ENDS:
                self._tell(Kind.SIGNALED, number)

    # --- from the kernel ----------------------------------------------------------------------

    def _read_kernel(self, _fd: int) -> None:
        try:
            data = os.read(0, PIECE_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._kernel_ended = True
            return
        for frame in self._frames.feed(data):
            if frame.node in (self._node, ALL):
                self._obey(frame)

    def _obey(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.START:
                self._start(json.loads(frame.payload))
            case Kind.HEAD:
                self._begin_agent(json.loads(frame.payload))
            case Kind.SEGMENT:
                fd = self._segments.get(frame.connection, -1)
                if fd < 0:
                    fd = self._segments[frame.connection] = anonymous_file()
                write_all(fd, frame.payload)
            case Kind.FILE:
                self._directory.write(frame.payload)
            case Kind.MESSAGE:
                self._send(frame.connection, frame.payload)
            case Kind.CLOSED:
                self._drop(frame.connection)
            case _:
                pass

    def _send(self, number: int, payload: bytes) -> None:
        channel = self._connections.get(number)
        if channel is None or channel.closed:
            return
        match type_name(payload):
            case "SharedMemory":
                message = decode(payload)
                assert isinstance(message, SharedMemory)  # noqa: S101 -- its own name
                if (fd := self._segments.get(message.number)) is None:  # it is empty
                    fd = self._segments[message.number] = anonymous_file()
                channel.send(message, fd)
            case "Captured":
                message = decode(payload)
                assert isinstance(message, Captured)  # noqa: S101 -- as above
                for old in set(self._segments) - message.segments:
                    os.close(self._segments.pop(old))
                channel.send_payload(payload)
            case "RunCell":
                message = decode(payload)
                assert isinstance(message, RunCell)  # noqa: S101 -- as above
                path = self._directory.place_of(Path(message.path))
                self._checks = message.check
                if message.check and number in self._ranks:
                    self._directory.begin_calls(path, self._ranks[number])
                channel.send_payload(encode(dataclasses.replace(message, path=str(path))))
            case kind:
                if kind == "DumpStack":
                    self._stacks_until = time.monotonic() + STACKS_S
                channel.send_payload(payload)

    # --- the agent ----------------------------------------------------------------------------

    def _start(self, start: dict[str, Any]) -> None:
        """Start the agent, which imports torch meanwhile, and find out where the nodes meet."""
        self._agent = agent = AgentProcess(start, self._node, self._directory.run, _host())
        job = ".".join(filter(None, map(os.environ.get, start["job_variables"])))
        name = os.environ.get(start["node_name_variable"]) or _host()
        whereabouts = {"host": _host(), "name": name, "job": job, "nodes": agent.nnodes}
        self._tell(Kind.NODE, 0, json.dumps(whereabouts).encode())
        self._selector.register(agent.output, selectors.EVENT_READ, self._read_log)
        self._selector.register(agent.pidfd, selectors.EVENT_READ, self._agent_ended)
        if agent.head is not None:
            self._tell(Kind.HEAD, 0, json.dumps(agent.head).encode())
        elif agent.is_alone:
            self._begin_agent({"address": "", "port": 0})

    def _begin_agent(self, head: dict[str, Any]) -> None:
        assert self._agent is not None  # noqa: S101 -- START comes first
        self._agent.begin(head)

    def _read_log(self, fd: int) -> None:
        try:
            data = os.read(fd, PIECE_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._selector.unregister(fd)
            return
        self._tell(Kind.LOG, 0, data)

    def _agent_ended(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        self._drained_by = time.monotonic() + DRAIN_S
        self._selector.unregister(self._listener)
        if not self._is_done:
            processes.sweep(grace_s=0.0)  # what its ranks had started: it could not

    # --- agents and ranks ---------------------------------------------------------------------

    def _accept(self, listener: Listener) -> None:
        channel = listener.accept(HELLO_BYTES)
        self._count += 1
        number = self._count
        self._connections[number] = channel
        self._selector.register(
            channel, selectors.EVENT_READ, lambda _channel: self._read(number, channel)
        )

    def _read(self, number: int, channel: Channel) -> None:
        alive = channel.read()
        try:
            for payload in channel.frames():
                self._forward(number, channel, payload)
                channel.max_frame_bytes = MAX_FRAME_BYTES
        except ProtocolError:
            alive = False
        channel.drop_fds()
        if not alive:
            self._drop(number)
            self._tell(Kind.CLOSED, number)

    def _forward(self, number: int, channel: Channel, payload: bytes) -> None:
        kind = type_name(payload)
        if kind in _AFTER:
            self._send_files()
        if kind == "WorkerHello":
            hello = decode(payload)
            assert isinstance(hello, WorkerHello)  # noqa: S101 -- its own name
            self._ranks[number] = hello.rank
            pipe = channel.take_fd()
            os.set_blocking(pipe, False)
            self._pipes[pipe] = number
            self._selector.register(pipe, selectors.EVENT_READ, self._read_text)
        elif kind == "Results":
            if channel.received_fds:
                with os.fdopen(channel.take_fd(), "rb", buffering=0) as values:
                    values.seek(0)
                    while piece := values.read(PIECE_BYTES):
                        self._tell(Kind.SEGMENT, number, piece)
                        self._flush()
            payload = self._directory.without_its_path(payload)
        elif kind == "AgentDone":
            self._is_done = True
        self._tell(Kind.MESSAGE, number, payload)

    def _read_text(self, pipe: int) -> None:
        try:
            data = os.read(pipe, PIECE_BYTES)
        except BlockingIOError:
            return
        number = self._pipes[pipe]
        if data:
            self._tell(Kind.TEXT, number, data)
            return
        del self._pipes[pipe]
        self._selector.unregister(pipe)
        os.close(pipe)
        self._tell(Kind.TEXT_ENDED, number)

    def _drop(self, number: int) -> None:
        channel = self._connections.pop(number, None)
        if channel is not None:
            self._selector.unregister(channel)
            channel.drop_fds()
            channel.close()

    def _send_files(self) -> None:
        self._files_sent = time.monotonic()
        for payload in self._directory.new_files():
            self._tell(Kind.FILE, 0, payload)


def _catch_signals() -> int:
    """Survive what is sent to all processes of a job; return a descriptor that has the numbers.

    The kernel decides what becomes of the job. SIGUSR1 and SIGUSR2 are the ranks' own: `#SBATCH
    --signal=USR1@60` warns of the end.
    """
    read_end, write_end = os.pipe()
    for fd in (read_end, write_end):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for sig in (*_ENDS, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(sig, lambda *_: None)
    return read_end


def _host() -> str:
    return socket.gethostname().partition(".")[0]

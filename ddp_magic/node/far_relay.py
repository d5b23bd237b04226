"""The far relay: on a node of several, it stands for the kernel, to the agent and to the ranks.

It listens on a Unix socket in a private directory of this node (`node_connections`), and carries
what comes in there over its own stdin and stdout (`kernel_stream`), which the engine connects with
the near relay (`engines.near_relay`). Descriptors cannot go that way: it reads the ranks' text
pipes itself, keeps the notebook's values in shared memory of its own, writes the cell's file, and
sends what the ranks save (`file_sender`). No port is opened but one, by node 0: that of the store
of the rendezvous, on the node's own address.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import time
from typing import Any, NoReturn

from ddp_magic.node.agent_child import AgentProcess
from ddp_magic.node.file_sender import SOON_S, FileSender
from ddp_magic.node.kernel_stream import KernelStream
from ddp_magic.node.node_connections import NodeConnections
from ddp_magic.node.node_directory import NodeDirectory
from ddp_magic.system import processes
from ddp_magic.wire.relay_frames import PIECE_BYTES, Frame, Kind, NodeEnd

IDLE_S = 1.0
OTHERS_S = 1.0  # for the kernel to end the ranks of the other nodes, and hear of their end
DRAIN_S = 1.0  # for the ranks' last words, after the agent's end
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
        self._selector = selectors.DefaultSelector()
        self._directory = NodeDirectory()
        self._stream = KernelStream(node)
        self._files = FileSender(self._directory, self._stream)
        self._connections = NodeConnections(
            self._selector, self._directory, self._stream, self._files
        )
        self._agent: AgentProcess | None = None
        self._drained_by: float | None = None
        self._signals = _catch_signals()

    def run(self) -> int:
        """Carry frames; return the exit code: 0 if the agent reported its end."""
        stream = self._stream
        self._selector.register(stream, selectors.EVENT_READ, self._read_kernel)
        self._selector.register(self._signals, selectors.EVENT_READ, self._tell_signals)
        while not self._over():
            soon = self._files.expects or self._drained_by is not None
            for key, _ in self._selector.select(SOON_S if soon else IDLE_S):
                if key.fileobj in self._selector.get_map():
                    key.data(key.fileobj)
            if soon:
                self._files.send_soon()
            if stream.silent_s > IDLE_S:
                stream.tell(Kind.ALIVE)
            stream.flush()
        return self._end()

    def _over(self) -> bool:
        if self._stream.ended:
            return True
        if self._drained_by is None:
            return False
        return not self._connections.waiting or time.monotonic() > self._drained_by

    def _end(self) -> int:
        reported, kernel_ended = self._connections.agent_done, self._stream.ended
        how = NodeEnd.TOLD if kernel_ended else NodeEnd.DIED
        self._stream.tell(Kind.ENDED, NodeEnd.REPORTED if reported else how)
        self._stream.flush()
        if not reported and not self._stream.ended:
            time.sleep(OTHERS_S)  # this node's failure ends the others at once
        return 0 if reported else 1

    def close(self) -> None:
        """End the agent and its ranks, and remove what lies on this node."""
        if self._agent is not None:
            self._agent.kill()
        processes.sweep(grace_s=0.0)
        self._directory.remove()

    def _tell_signals(self, fd: int) -> None:
        """Say that a signal came, before it is told what it did to the agent and the ranks."""
        for number in os.read(fd, 64):
            if number in _ENDS:
                self._stream.tell(Kind.SIGNALED, number)

    def _read_kernel(self, stream: KernelStream) -> None:
        for frame in stream.read():
            self._obey(frame)

    def _obey(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.START:
                self._start(json.loads(frame.payload))
            case Kind.HEAD:
                self._begin_agent(json.loads(frame.payload))
            case Kind.SEGMENT:
                self._connections.keep(frame.connection, frame.payload)
            case Kind.FILE:
                self._directory.write(frame.payload)
            case Kind.MESSAGE:
                self._connections.send(frame.connection, frame.payload)
            case Kind.CLOSED:
                self._connections.drop(frame.connection)
            case _:
                pass

    # --- the agent ----------------------------------------------------------------------------

    def _start(self, start: dict[str, Any]) -> None:
        """Start the agent, which imports torch meanwhile, and find out where the nodes meet."""
        self._agent = agent = AgentProcess(start, self._node, self._directory.run, _host())
        job = ".".join(filter(None, map(os.environ.get, start["job_variables"])))
        name = os.environ.get(start["node_name_variable"]) or _host()
        whereabouts = {"host": _host(), "name": name, "job": job, "nodes": agent.nnodes}
        self._stream.tell(Kind.NODE, 0, json.dumps(whereabouts).encode())
        self._selector.register(agent.output, selectors.EVENT_READ, self._read_log)
        self._selector.register(agent.pidfd, selectors.EVENT_READ, self._agent_ended)
        if agent.head is not None:
            self._stream.tell(Kind.HEAD, 0, json.dumps(agent.head).encode())
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
        self._stream.tell(Kind.LOG, 0, data)

    def _agent_ended(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        self._drained_by = time.monotonic() + DRAIN_S
        self._connections.stop_listening()
        if not self._connections.agent_done:
            processes.sweep(grace_s=0.0)  # what its ranks had started: it could not


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

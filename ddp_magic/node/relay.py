"""The far relay: on a node of several, it stands for the kernel, to the agent and to the ranks.

It listens on a Unix socket in a private directory of this node, and carries what comes in there
over its own stdin and stdout, which the engine connects with the near relay (`engines.relay`).
Descriptors cannot go that way: it reads the ranks' text pipes itself, keeps the notebook's values
in shared memory of its own, and writes the cell's file. No port is opened but one, by node 0: that
of the store of the rendezvous, on the node's own address.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from ddp_magic.errors import ProtocolError
from ddp_magic.node.address import gloo_interface, own_address
from ddp_magic.system import processes
from ddp_magic.system.entry_points import NODE_AGENT, command
from ddp_magic.system.environment import LAUNCHER_VARIABLES
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.channel import MAX_FRAME_BYTES, Channel, Listener
from ddp_magic.wire.codec import decode, encode, type_name
from ddp_magic.wire.memory import anonymous_file
from ddp_magic.wire.messages import Captured, RunCell, SharedMemory
from ddp_magic.wire.relay import (
    ALL,
    PIECE_BYTES,
    Frame,
    FrameReader,
    Kind,
    LineWriter,
    write_all,
)
from ddp_magic.wire.specs import AgentSpec

_PREFIX = "ddp_magic_node-"
NEW_S = 60.0  # a directory of a relay that may be starting
HELLO_BYTES = 64 * 1024
SOON_S = 0.05
IDLE_S = 1.0
STACKS_S = 1.0  # for a rank to write its stack
OTHERS_S = 1.0  # for the kernel to end the ranks of the other nodes, and hear of their end
DRAIN_S = 1.0  # for the ranks' last words, after the agent's end
# Files of a run that somebody reads on the kernel's machine; sent after a message of one of these.
_FILES = ("profile*.jsonl", "*.rank*.pt", "*.rank*.txt", "rank*.stacks")
_AFTER = ("Finished", "Error", "Results", "WorkerExited")


def main() -> NoReturn:
    """Be the relay of one node, until its agent has ended or the kernel is gone."""
    for sig in (signal.SIGINT, signal.SIGTERM):  # of the whole step: the kernel decides
        signal.signal(sig, signal.SIG_IGN)
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
        self._directory = RunDirectory(_private_directory())
        self._lock = _lock(self._directory.path)
        remove_old(self._directory.path.parent)
        self._listener = Listener(self._directory.socket)
        self._connections: dict[int, Channel] = {}
        self._pipes: dict[int, int] = {}  # read ends of the ranks' text, and whose
        self._segments: dict[int, int] = {}
        self._sent_files: dict[Path, tuple[int, int]] = {}
        self._count = 0
        self._agent: subprocess.Popen[bytes] | None = None
        self._agent_pidfd = -1
        self._spec: AgentSpec | None = None
        self._store: socket.socket | None = None
        self._is_done = False  # the agent has reported its end
        self._kernel_ended = False
        self._drained_by: float | None = None
        self._stacks_until = 0.0  # a rank is about to write its stack

    def run(self) -> int:
        """Carry frames; return the exit code: 0 if the agent reported its end."""
        os.set_blocking(0, False)
        self._selector.register(0, selectors.EVENT_READ, self._read_kernel)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        while not self._over():
            soon = self._drained_by is not None or time.monotonic() < self._stacks_until
            for key, _ in self._selector.select(SOON_S if soon else IDLE_S):
                if key.fileobj in self._selector.get_map():
                    key.data(key.fileobj)
            if soon:
                self._send_files()
            if time.monotonic() - self._told > IDLE_S:
                self._tell(Kind.ALIVE)
            self._flush()
        self._tell(Kind.ENDED, int(self._is_done))
        self._flush()
        if not self._is_done and not self._kernel_ended:
            time.sleep(OTHERS_S)  # this node's failure ends the others at once
        return 0 if self._is_done else 1

    def close(self) -> None:
        """End the agent and its ranks, and remove what lies on this node."""
        if self._agent is not None and self._agent.poll() is None:
            self._agent.kill()  # its ranks carry PDEATHSIG
        processes.sweep(grace_s=0.0)
        shutil.rmtree(self._directory.path, ignore_errors=True)

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
                self._start_agent(json.loads(frame.payload))
            case Kind.SEGMENT:
                fd = self._segments.get(frame.connection, -1)
                if fd < 0:
                    fd = self._segments[frame.connection] = anonymous_file()
                write_all(fd, frame.payload)
            case Kind.FILE:
                head, _, content = frame.payload.partition(b"\0")
                path = self._path_here(Path(json.loads(head)["path"]))
                path.parent.mkdir(mode=0o700, exist_ok=True)
                path.write_bytes(content)
            case Kind.MESSAGE:
                self._send(frame.connection, frame.payload)
            case Kind.CLOSED:
                self._drop(frame.connection)
            case _:
                pass

    def _path_here(self, path: Path) -> Path:
        """Return where a file of a run lies on this node."""
        return self._directory.path / path.parent.name / path.name

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
                path = str(self._path_here(Path(message.path)))
                channel.send_payload(encode(dataclasses.replace(message, path=path)))
            case kind:
                if kind == "DumpStack":
                    self._stacks_until = time.monotonic() + STACKS_S
                channel.send_payload(payload)

    # --- the agent ----------------------------------------------------------------------------

    def _start(self, start: dict[str, Any]) -> None:
        """Start the agent, which imports torch meanwhile, and find out where the nodes meet."""
        self._tell(Kind.NODE, 0, json.dumps(_whereabouts(start["job_variables"])).encode())
        spec = AgentSpec.from_json(start["spec"])
        worker = dataclasses.replace(
            spec.worker,
            socket=str(self._directory.socket),
            directory=str(self._directory),
            node=_host(),
        )
        self._spec = dataclasses.replace(
            spec, worker=worker, node=self._node, kernel_pid=os.getpid()
        )
        fds: tuple[int, ...] = ()
        env = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
        address = ""
        if spec.nnodes > 1:
            address = own_address(os.environ, start["node_name_variable"], start["toward"])
            if interface := gloo_interface(env, address):
                env["GLOO_SOCKET_IFNAME"] = interface
            if self._node == 0:
                self._store = socket.create_server((address, 0), backlog=1024)
                fds = (self._store.fileno(),)
        self._agent = subprocess.Popen(
            command(NODE_AGENT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            pass_fds=fds,
            start_new_session=True,
        )
        assert self._agent.stdout is not None  # noqa: S101 -- PIPE was given
        os.set_blocking(self._agent.stdout.fileno(), False)
        self._selector.register(self._agent.stdout.fileno(), selectors.EVENT_READ, self._read_log)
        self._agent_pidfd = os.pidfd_open(self._agent.pid)
        self._selector.register(self._agent_pidfd, selectors.EVENT_READ, self._agent_ended)
        if self._store is not None:
            port = self._store.getsockname()[1]
            self._tell(Kind.HEAD, 0, json.dumps({"address": address, "port": port}).encode())
        elif spec.nnodes == 1:
            self._start_agent({"address": "", "port": 0})

    def _start_agent(self, head: dict[str, Any]) -> None:
        """Tell the agent what to run, once it is known where the nodes meet."""
        assert self._spec is not None  # noqa: S101 -- START comes first
        assert self._agent is not None  # noqa: S101 -- as above
        assert self._agent.stdin is not None  # noqa: S101 -- PIPE was given
        spec = dataclasses.replace(
            self._spec,
            head=head["address"],
            head_port=head["port"],
            head_fd=-1 if self._store is None else self._store.fileno(),
        )
        with contextlib.suppress(BrokenPipeError), self._agent.stdin as stdin:
            stdin.write(spec.to_json().encode())
        if self._store is not None:
            self._store.close()  # the agent has it

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
            payload = payload.replace(
                json.dumps(str(self._directory)).strip('"').encode(), b"<directory>"
            )
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
        """Send the files of the run that are new."""
        for path in self._files():
            with contextlib.suppress(OSError):
                status = path.stat()
                known = status.st_mtime_ns, status.st_size
                if self._sent_files.get(path) == known or not status.st_size:
                    continue
                self._sent_files[path] = known
                folder = "" if path.parent == self._directory.path else path.parent.name
                head = json.dumps({"folder": folder, "name": path.name}).encode()
                self._tell(Kind.FILE, 0, head + b"\0" + path.read_bytes())

    def _files(self) -> Iterator[Path]:
        for pattern in _FILES:
            yield from self._directory.path.glob(pattern)
            yield from self._directory.path.glob(f"*/{pattern}")


def _private_directory() -> Path:
    """Make a directory that is closed to others, where a socket's path is not too long."""
    for parent in (None, "/tmp", "/var/tmp", "/dev/shm"):  # noqa: S108 -- made fresh there
        try:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        except OSError:
            continue
        if len(os.fsencode(path)) < 80:
            return path
        path.rmdir()
    raise OSError("no place for the run's files on this node: set TMPDIR")


def remove_old(parent: Path) -> None:
    """Remove what relays have left that were killed before they could: nobody holds its lock.

    One that has just been made is not locked yet.
    """
    for path in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            is_new = time.time() - status.st_mtime < NEW_S
            if status.st_uid == os.getuid() and not is_new and _lock(path) is not None:
                shutil.rmtree(path, ignore_errors=True)


def _lock(path: Path) -> IO[bytes] | None:
    """Hold a directory for this process; None if another one does."""
    file = (path / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _whereabouts(job_variables: list[str]) -> dict[str, str]:
    job = ".".join(filter(None, map(os.environ.get, job_variables)))
    return {"host": _host(), "job": job}


def _host() -> str:
    return socket.gethostname().partition(".")[0]

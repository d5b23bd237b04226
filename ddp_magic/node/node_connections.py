"""The connections of one node's agent and ranks, which the far relay carries to the kernel."""

from __future__ import annotations

import dataclasses
import os
import selectors
from pathlib import Path

from ddp_magic.errors import ProtocolError
from ddp_magic.node.file_sender import FileSender
from ddp_magic.node.kernel_stream import KernelStream
from ddp_magic.node.node_directory import NodeDirectory
from ddp_magic.wire.channel import MAX_FRAME_BYTES, Channel, Listener
from ddp_magic.wire.codec import decode, encode, type_name
from ddp_magic.wire.commands import Captured, RunCell, SharedMemory
from ddp_magic.wire.memory import anonymous_file
from ddp_magic.wire.relay_frames import PIECE_BYTES, Kind, write_all
from ddp_magic.wire.worker_events import WorkerHello

HELLO_BYTES = 64 * 1024
# After one of these messages, files of the run may be new that somebody reads where the kernel is.
_AFTER = ("Finished", "Error", "Results", "WorkerExited")


class NodeConnections:
    """Stands for the kernel, to whoever connects on this node.

    What cannot leave the node stays here: the ranks' text pipes are read, and the notebook's values
    are kept in shared memory.

    Args:
        selector: Calls what reads a connection or a pipe.
        directory: Where the socket is.
        stream: To the kernel.
        files: Sends it what the ranks write.

    Attributes:
        agent_done: Whether the agent has reported its end.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        directory: NodeDirectory,
        stream: KernelStream,
        files: FileSender,
    ) -> None:
        self.agent_done = False
        self._selector = selector
        self._directory = directory
        self._stream = stream
        self._files = files
        self._listener = Listener(directory.run.socket)
        self._connections: dict[int, Channel] = {}
        self._pipes: dict[int, int] = {}  # read ends of the ranks' text, and whose
        self._segments: dict[int, int] = {}
        self._ranks: dict[int, int] = {}  # by connection
        self._count = 0
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    @property
    def waiting(self) -> bool:
        """Whether a rank or an agent may say more."""
        return bool(self._pipes) or any(not c.closed for c in self._connections.values())

    def stop_listening(self) -> None:
        """Let nobody else connect."""
        self._selector.unregister(self._listener)

    # --- from the kernel ----------------------------------------------------------------------

    def keep(self, segment: int, piece: bytes) -> None:
        """Keep a piece of shared memory, which the ranks are sent later."""
        write_all(self._segment(segment), piece)

    def _segment(self, number: int) -> int:
        fd = self._segments.get(number, -1)
        if fd < 0:
            fd = self._segments[number] = anonymous_file()
        return fd

    def send(self, number: int, payload: bytes) -> None:
        """Send a rank or an agent what the kernel sends it."""
        channel = self._connections.get(number)
        if channel is None or channel.closed:
            return
        match type_name(payload):
            case "SharedMemory":
                message = decode(payload)
                assert isinstance(message, SharedMemory)  # noqa: S101 -- its own name
                channel.send(message, self._segment(message.number))  # new if it is empty
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
                self._files.checks = message.check
                if message.check and number in self._ranks:
                    self._directory.begin_calls(path, self._ranks[number])
                channel.send_payload(encode(dataclasses.replace(message, path=str(path))))
            case kind:
                if kind == "DumpStack":
                    self._files.expect_stack()
                channel.send_payload(payload)

    def drop(self, number: int) -> None:
        """End a connection."""
        channel = self._connections.pop(number, None)
        if channel is not None:
            self._selector.unregister(channel)
            channel.drop_fds()
            channel.close()

    # --- to the kernel ------------------------------------------------------------------------

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
            self.drop(number)
            self._stream.tell(Kind.CLOSED, number)

    def _forward(self, number: int, channel: Channel, payload: bytes) -> None:
        kind = type_name(payload)
        if kind in _AFTER:
            self._files.send()
        if kind == "WorkerHello":
            self._welcome(number, channel, payload)
        elif kind == "Results":
            if channel.received_fds:
                self._send_values(number, channel.take_fd())
            payload = self._directory.without_its_path(payload)
        elif kind == "AgentDone":
            self.agent_done = True
        self._stream.tell(Kind.MESSAGE, number, payload)

    def _welcome(self, number: int, channel: Channel, payload: bytes) -> None:
        hello = decode(payload)
        assert isinstance(hello, WorkerHello)  # noqa: S101 -- its own name
        self._ranks[number] = hello.rank
        pipe = channel.take_fd()
        os.set_blocking(pipe, False)
        self._pipes[pipe] = number
        self._selector.register(pipe, selectors.EVENT_READ, self._read_text)

    def _send_values(self, number: int, fd: int) -> None:
        with os.fdopen(fd, "rb", buffering=0) as values:
            values.seek(0)
            while piece := values.read(PIECE_BYTES):
                self._stream.tell(Kind.SEGMENT, number, piece)
                self._stream.flush()

    def _read_text(self, pipe: int) -> None:
        try:
            data = os.read(pipe, PIECE_BYTES)
        except BlockingIOError:
            return
        number = self._pipes[pipe]
        if data:
            self._stream.tell(Kind.TEXT, number, data)
            return
        del self._pipes[pipe]
        self._selector.unregister(pipe)
        os.close(pipe)
        self._stream.tell(Kind.TEXT_ENDED, number)

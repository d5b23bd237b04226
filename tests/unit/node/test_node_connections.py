"""Agent and ranks of a node, which the test plays, and what the kernel hears of them."""

from __future__ import annotations

import dataclasses
import os
import selectors
from collections.abc import Iterator

import pytest

from ddp_magic.node.file_sender import FileSender
from ddp_magic.node.kernel_stream import KernelStream
from ddp_magic.node.node_connections import NodeConnections
from ddp_magic.node.node_directory import NodeDirectory
from ddp_magic.wire.channel import Channel, connect
from ddp_magic.wire.codec import decode, encode
from ddp_magic.wire.commands import Captured, DumpStack, Exit, RunCell, SharedMemory
from ddp_magic.wire.events import AgentDone, AgentHello
from ddp_magic.wire.memory import Segment
from ddp_magic.wire.relay_frames import Frame, FrameReader, Kind, LineReader
from ddp_magic.wire.worker_events import Results, WorkerHello
from tests.unit.channels import received
from tests.unit.fakes import finished


class Scene:
    """A node's connections, its files, and the kernel's ends of its streams."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.directory = NodeDirectory()
        self._from_kernel, self._to_node = os.pipe()
        self._from_node, self._to_kernel = os.pipe()
        os.set_blocking(self._from_node, False)
        self.stream = KernelStream(0, self._from_kernel, self._to_kernel)
        self.files = FileSender(self.directory, self.stream)
        self.connections = NodeConnections(self.selector, self.directory, self.stream, self.files)
        self._lines, self._frames = LineReader(), FrameReader()

    def connect(self) -> Channel:
        return connect(str(self.directory.run.socket))

    def rank(self) -> tuple[Channel, int]:
        """Let rank 3 connect, as connection 1; return its ends of connection and text pipe."""
        channel = self.connect()
        read_end, write_end = os.pipe()
        channel.send(WorkerHello(rank=3, pid=os.getpid(), marker="M;"), read_end)
        os.close(read_end)
        (hello,) = self.heard()
        assert (hello.kind, hello.connection) == (Kind.MESSAGE, 1)
        return channel, write_end

    def heard(self) -> list[Frame]:
        """Return what the kernel hears, once everything has been read."""
        while ready := self.selector.select(0):
            for key, _ in ready:
                key.data(key.fileobj)
        self.stream.flush()
        try:
            data = os.read(self._from_node, 2**20)
        except BlockingIOError:
            return []
        pieces = b"".join(piece for _, piece in self._lines.feed(data))
        return list(self._frames.feed(pieces))

    def close(self) -> None:
        self.selector.close()
        self.directory.remove()
        for fd in (self._from_kernel, self._to_node, self._from_node, self._to_kernel):
            os.close(fd)


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


def test_each_connection_has_a_number(scene: Scene) -> None:
    """By which the kernel answers, and by which it hears of its end."""
    agent, other = scene.connect(), scene.connect()
    agent.send(AgentHello())
    assert scene.heard() == [Frame(0, Kind.MESSAGE, 1, encode(AgentHello()))]
    scene.connections.send(1, encode(Exit()))
    assert received(agent) == [Exit()]
    assert scene.connections.waiting
    agent.close()
    assert scene.heard() == [Frame(0, Kind.CLOSED, 1)]
    scene.connections.drop(2)
    assert other.receive() is None
    assert not scene.connections.waiting
    scene.connections.send(2, encode(Exit()))  # it crossed the news of the end


def test_an_agent_reports_its_end(scene: Scene) -> None:
    agent = scene.connect()
    agent.send(AgentHello())
    scene.heard()
    assert not scene.connections.agent_done
    agent.send(AgentDone())
    scene.heard()
    assert scene.connections.agent_done
    agent.close()


def test_nobody_connects_any_more(scene: Scene) -> None:
    scene.connections.stop_listening()
    late = scene.connect()
    late.send(AgentHello())
    assert scene.heard() == []
    late.close()


def test_text_is_read_here(scene: Scene) -> None:
    """Also after the connection has ended."""
    rank, pipe = scene.rank()
    os.write(pipe, b"text")
    assert scene.heard() == [Frame(0, Kind.TEXT, 1, b"text")]
    rank.close()
    assert scene.heard() == [Frame(0, Kind.CLOSED, 1)]
    assert scene.connections.waiting
    os.close(pipe)
    assert scene.heard() == [Frame(0, Kind.TEXT_ENDED, 1)]
    assert not scene.connections.waiting


def test_values_of_the_notebook_are_kept_here(scene: Scene) -> None:
    """Until no cell needs them; some are empty."""
    rank, pipe = scene.rank()
    for piece in (b"abc", b"def"):
        scene.connections.keep(5, piece)
    for number, content in ((5, b"abcdef"), (6, b"")):
        scene.connections.send(1, encode(SharedMemory(number=number, sizes=(len(content),))))
        assert [type(message) for message in received(rank)] == [SharedMemory]
        fd = rank.take_fd()
        assert os.pread(fd, 100, 0) == content
        os.close(fd)
    captured = Captured(names=(), stream=6, parts=())
    scene.connections.send(1, encode(captured))
    assert received(rank) == [captured]
    scene.connections.send(1, encode(SharedMemory(number=5, sizes=(0,))))
    assert len(received(rank)) == 1
    fd = rank.take_fd()
    assert os.pread(fd, 100, 0) == b""
    for each in (fd, pipe):
        os.close(each)
    rank.close()


def test_values_of_a_rank_are_sent_before_their_names(scene: Scene) -> None:
    rank, pipe = scene.rank()
    segment = Segment.of([memoryview(b"abc")])
    rank.send(Results(rank=3, names=("x",), sizes=(3,)), segment.fd)
    values, names = scene.heard()
    assert values == Frame(0, Kind.SEGMENT, 1, b"abc")
    assert names.kind is Kind.MESSAGE
    segment.close()
    os.close(pipe)
    rank.close()


def test_a_cell_runs_from_its_file_on_this_node(scene: Scene) -> None:
    rank, pipe = scene.rank()
    cell = RunCell(path="/run/cell1/cell.py", check=True)
    scene.connections.send(1, encode(cell))
    there = scene.directory.run.path / "cell1" / "cell.py"
    assert received(rank) == [dataclasses.replace(cell, path=str(there))]
    assert scene.files.expects  # what the ranks call
    scene.connections.send(1, encode(dataclasses.replace(cell, check=False)))
    assert not scene.files.expects
    os.close(pipe)
    rank.close()


def test_what_a_rank_has_saved_is_sent_before_it_says_so(scene: Scene) -> None:
    rank, pipe = scene.rank()
    (scene.directory.run.path / "x.rank3.pt").write_bytes(b"saved")
    rank.send(finished(3))
    saved, said = scene.heard()
    assert (saved.kind, saved.payload.partition(b"\0")[2]) == (Kind.FILE, b"saved")
    assert decode(said.payload) == finished(3)
    os.close(pipe)
    rank.close()


def test_a_stack_is_expected_once_a_rank_is_asked_for_it(scene: Scene) -> None:
    rank, pipe = scene.rank()
    assert not scene.files.expects
    scene.connections.send(1, encode(DumpStack(rank=3)))
    assert scene.files.expects
    os.close(pipe)
    rank.close()


def test_whoever_sends_nonsense_is_disconnected(scene: Scene) -> None:
    stranger = scene.connect()
    os.write(stranger.fileno(), b"\xff" * 100)
    assert scene.heard() == [Frame(0, Kind.CLOSED, 1)]
    assert stranger.receive() is None

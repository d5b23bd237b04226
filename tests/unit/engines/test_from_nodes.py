"""What nodes say, as the kernel hears it: on connections to its socket, in pipes and files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddp_magic.engines.from_nodes import FromNodes
from ddp_magic.engines.to_nodes import ToNodes
from ddp_magic.wire.channel import Channel, Listener
from ddp_magic.wire.codec import encode
from ddp_magic.wire.events import AgentDone, AgentHello
from ddp_magic.wire.relay_frames import Frame, FrameReader, Kind
from ddp_magic.wire.worker_events import Results, WorkerHello
from tests.unit.channels import received

CONNECTION = 7


class Scene:
    """Nodes that say what a test wants, and the kernel's socket."""

    def __init__(self, directory: Path) -> None:
        self.listener = Listener(directory / "socket")
        self.folders = {"": directory}
        self.to_nodes = ToNodes(self.folders)
        self.from_nodes = FromNodes(str(self.listener.path), self.folders, self.to_nodes)

    def say(self, node: int, kind: Kind, payload: bytes = b"") -> None:
        self.from_nodes.take(node, Frame(node, kind, CONNECTION, payload))

    def rank(self, node: int = 0) -> tuple[Channel, int]:
        """Let a rank connect; return the kernel's end, and that of the rank's text."""
        hello = WorkerHello(rank=node, pid=os.getpid(), marker="M;", node=f"n{node}")
        self.say(node, Kind.MESSAGE, encode(hello))
        channel = self.listener.accept()
        assert received(channel) == [hello]
        return channel, channel.take_fd()

    def save(self, folder: str, name: str, content: bytes, at: int = 0) -> None:
        head = json.dumps({"folder": folder, "name": name, "at": at}).encode()
        self.say(1, Kind.FILE, head + b"\0" + content)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.from_nodes.close()
    scene.to_nodes.close()
    scene.listener.close()


def test_text_comes_through_a_pipe(scene: Scene) -> None:
    """Also after the connection has ended: a rank's last words."""
    rank, pipe = scene.rank()
    scene.say(0, Kind.TEXT, b"first ")
    scene.say(0, Kind.CLOSED)
    assert rank.receive() is None
    scene.say(0, Kind.TEXT, b"last words")
    scene.say(0, Kind.TEXT_ENDED)
    text = b""
    while piece := os.read(pipe, 1000):
        text += piece
    assert text == b"first last words"
    rank.close()
    os.close(pipe)


def test_text_that_nobody_reads_is_dropped(scene: Scene) -> None:
    rank, pipe = scene.rank()
    os.close(pipe)
    for _ in range(2):
        scene.say(0, Kind.TEXT, b"x")
    rank.close()


def test_values_come_back_as_shared_memory(scene: Scene) -> None:
    rank, pipe = scene.rank(1)
    for piece in (b"abc", b"defgh"):
        scene.say(1, Kind.SEGMENT, piece)
    results = Results(rank=1, names=("x",), sizes=(8,))
    scene.say(1, Kind.MESSAGE, encode(results))
    assert received(rank) == [results]
    fd = rank.take_fd()
    assert os.pread(fd, 100, 0) == b"abcdefgh"
    for each in (fd, pipe):
        os.close(each)
    rank.close()


def test_an_agent_has_not_reported_its_end_until_it_has(scene: Scene) -> None:
    """A rank is no agent."""
    rank, pipe = scene.rank(0)
    assert not scene.from_nodes.is_agent(0, CONNECTION)
    scene.say(1, Kind.MESSAGE, encode(AgentHello()))
    assert scene.from_nodes.is_agent(1, CONNECTION)
    scene.say(1, Kind.MESSAGE, encode(AgentDone()))
    assert not scene.from_nodes.is_agent(1, CONNECTION)
    rank.close()
    os.close(pipe)


def test_a_kernel_that_does_not_listen(scene: Scene) -> None:
    """The node hears that the connection is closed."""
    scene.listener.close()
    scene.say(1, Kind.MESSAGE, encode(AgentHello()))
    read_end, write_end = os.pipe()
    scene.to_nodes.end()
    scene.to_nodes.carry(write_end)
    frames = list(FrameReader().feed(os.read(read_end, 1000)))
    assert frames == [Frame(1, Kind.CLOSED, CONNECTION)]
    for fd in (read_end, write_end):
        os.close(fd)


def test_a_file_that_grows(scene: Scene, tmp_path: Path) -> None:
    """What continues a file that nobody wants any more is dropped; one that is gone is removed."""
    scene.save("", "a", b"one ")
    scene.save("", "a", b"two", at=4)
    scene.save("", "gone", b"x")
    scene.save("", "gone", b"", at=-1)
    scene.save("", "late", b"x", at=4)
    assert (tmp_path / "a").read_bytes() == b"one two"
    assert not (tmp_path / "gone").exists()
    assert not (tmp_path / "late").exists()


def test_a_file_is_beside_its_cell_and_nowhere_else(scene: Scene, tmp_path: Path) -> None:
    cell = scene.folders["run1"] = tmp_path / "run1"
    cell.mkdir()
    for folder, name in (("run1", "x.pt"), ("run1", "../evil"), ("other", "evil")):
        scene.save(folder, name, b"saved")
    assert (cell / "x.pt").read_bytes() == b"saved"
    assert not list(tmp_path.rglob("evil"))

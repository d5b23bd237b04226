"""The near relay between a kernel's socket and the streams of a job, both the test's own."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddp_magic.engines.near_relay import NearRelay
from ddp_magic.wire.channel import Channel, Listener
from ddp_magic.wire.codec import encode
from ddp_magic.wire.commands import Exit, RunCell, SharedMemory
from ddp_magic.wire.events import AgentDone, AgentHello
from ddp_magic.wire.memory import Segment
from ddp_magic.wire.relay_frames import ALL, Frame, FrameReader, Kind, LineWriter, NodeEnd
from ddp_magic.wire.specs import AgentSpec, WorkerSettings
from ddp_magic.wire.worker_events import WorkerHello
from tests.limits import HANG_S
from tests.unit.channels import received


class FakeJob:
    """Two pipes in place of the streams to all nodes."""

    def __init__(self) -> None:
        self.from_kernel, self.stdin = os.pipe()
        self.stdout, self.to_kernel = os.pipe()
        self.name = ""
        self.words = ""
        self.node = ""
        self.cancelled = False
        self.ended = threading.Event()

    def waits_for(self) -> str:
        return ""

    def running(self, job: str) -> None:
        self.name = job

    def fate(self) -> str:
        return self.words

    def lost(self) -> str:
        return self.node

    def cancel(self) -> None:
        self.cancelled = True
        self.end()

    def end(self) -> None:
        if not self.ended.is_set():
            self.ended.set()
            os.close(self.to_kernel)

    def wait(self) -> int:
        assert self.ended.wait(HANG_S)
        for fd in (self.stdin, self.stdout, self.from_kernel):
            os.close(fd)
        return 0


class Scene:
    """A relay, its kernel and its nodes."""

    def __init__(self, directory: Path) -> None:
        self.listener = Listener(directory / "socket")
        settings = WorkerSettings(
            socket=str(self.listener.path), directory=str(directory), device="cpu"
        )
        spec = AgentSpec(
            run_id="run", kernel_pid=1, nproc=1, sys_path=(), worker=settings, nnodes=2
        )
        self.job = FakeJob()
        self.relay = NearRelay(spec, {"job_variables": []}, lambda: self.job)
        self._lines = [LineWriter(node) for node in range(2)]
        self._reader = FrameReader()
        self._frames: list[Frame] = []
        assert self.next_frame().kind is Kind.START

    def say(self, node: int, kind: Kind, connection: int = 0, payload: bytes = b"") -> None:
        """Let a node say something."""
        frame = Frame(node, kind, connection, payload).encode()
        os.write(self.job.to_kernel, self._lines[node].lines(frame))

    def next_frame(self) -> Frame:
        """Return the next frame to the nodes."""
        while not self._frames:
            self._frames += self._reader.feed(os.read(self.job.from_kernel, 2**20))
        return self._frames.pop(0)

    def rank(self, node: int, rank: int) -> tuple[Channel, int]:
        """Let a rank connect; return the kernel's end, and that of the rank's text."""
        hello = WorkerHello(rank=rank, pid=os.getpid(), marker="M;", node=f"n{node}")
        self.say(node, Kind.MESSAGE, 7, encode(hello))
        channel = self.listener.accept()
        assert received(channel) == [hello]
        return channel, channel.take_fd()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.job.end()
    assert scene.relay.ended.wait(HANG_S)
    scene.listener.close()


def test_each_connection_is_one_of_the_kernels(scene: Scene) -> None:
    """Though those of different nodes have the same number; answers find their way back."""
    scene.say(0, Kind.MESSAGE, 7, encode(AgentHello()))
    agent = scene.listener.accept()
    assert received(agent) == [AgentHello()]
    rank, pipe = scene.rank(1, rank=1)
    agent.send(Exit())
    assert scene.next_frame() == Frame(0, Kind.MESSAGE, 7, encode(Exit()))
    rank.send(Exit())
    assert scene.next_frame() == Frame(1, Kind.MESSAGE, 7, encode(Exit()))
    for end in (agent, rank):
        end.close()
    os.close(pipe)


def test_values_go_to_the_nodes_once(scene: Scene) -> None:
    """Whatever number of ranks the kernel sends them to."""
    segment = Segment.of([memoryview(b"x" * 600_000)])
    share = SharedMemory(number=3, sizes=segment.sizes)
    sent = b""
    for node in range(2):
        rank, pipe = scene.rank(node, rank=node)
        rank.send(share, segment.fd)
        while (frame := scene.next_frame()).kind is Kind.SEGMENT:
            assert (frame.node, frame.connection) == (ALL, 3)
            sent += frame.payload
        assert frame == Frame(node, Kind.MESSAGE, 7, encode(share))
        rank.close()
        os.close(pipe)
        assert scene.next_frame().kind is Kind.CLOSED
    assert sent == b"x" * 600_000
    segment.close()


def test_the_cell_goes_to_the_nodes_once(scene: Scene, tmp_path: Path) -> None:
    """And what a node saves beside it comes back to where the cell is."""
    cell = tmp_path / "run1" / "cell.py"
    cell.parent.mkdir()
    cell.write_text("print(1)")
    for node in range(2):
        rank, pipe = scene.rank(node, rank=node)
        rank.send(RunCell(path=str(cell)))
        if node == 0:
            head, _, text = scene.next_frame().payload.partition(b"\0")
            assert (json.loads(head)["path"], text) == (str(cell), b"print(1)")
        assert scene.next_frame().kind is Kind.MESSAGE
        rank.close()
        os.close(pipe)
        assert scene.next_frame().kind is Kind.CLOSED
    for name in ("x.rank1.pt", "../evil"):
        head = json.dumps({"folder": "run1", "name": name}).encode()
        scene.say(1, Kind.FILE, 0, head + b"\0saved")
    scene.job.end()
    assert scene.relay.ended.wait(HANG_S)
    assert (cell.parent / "x.rank1.pt").read_text() == "saved"
    assert not (tmp_path / "evil").exists()


def test_a_broken_stream_ends_the_job(scene: Scene) -> None:
    """It says why, instead of waiting for what never comes."""
    os.write(scene.job.to_kernel, b"\x1e0 5 AAAA\n")
    assert scene.relay.ended.wait(HANG_S)
    assert scene.job.cancelled
    assert "arrives incomplete" in scene.relay.error


def test_a_cell_that_cannot_be_read_ends_the_job(scene: Scene, tmp_path: Path) -> None:
    """Somebody has removed its file."""
    rank, pipe = scene.rank(0, rank=0)
    rank.send(RunCell(path=str(tmp_path / "none" / "cell.py")))
    assert scene.relay.ended.wait(HANG_S)
    assert "cell.py" in scene.relay.error
    rank.close()
    os.close(pipe)


def test_what_the_site_writes_is_in_the_agents_log(scene: Scene, tmp_path: Path) -> None:
    os.write(scene.job.to_kernel, b"module cuda is loaded\n")
    scene.job.end()
    assert scene.relay.ended.wait(HANG_S)
    assert (tmp_path / "agent.log").read_bytes() == b"module cuda is loaded\n"


def test_a_job_that_cannot_be_started(tmp_path: Path) -> None:
    """There is no such program, say."""

    def launch() -> FakeJob:
        raise FileNotFoundError("no srun")

    settings = WorkerSettings(socket="", directory=str(tmp_path), device="cpu")
    spec = AgentSpec(run_id="r", kernel_pid=1, nproc=1, sys_path=(), worker=settings)
    relay = NearRelay(spec, {}, launch)
    assert relay.ended.wait(HANG_S)
    assert relay.error == "no srun"


def test_the_job_ends_with_a_node_that_is_gone(scene: Scene) -> None:
    scene.say(0, Kind.ALIVE)
    scene.say(1, Kind.ALIVE)
    while len(scene.relay.nodes.heard) < 2:
        pass
    scene.relay.nodes.heard[1] -= 31.0
    scene.relay.look()
    assert scene.relay.ended.wait(HANG_S)
    assert scene.job.cancelled
    assert scene.relay.error == "node 1 has said nothing for 30 s"
    assert scene.relay.nodes.lost == "node 1"


def test_a_job_that_does_not_end_with_its_nodes(scene: Scene) -> None:
    """All that its ranks have said is there: it is ended, and nothing was lost."""
    for node in range(2):
        scene.say(node, Kind.NODE, 0, b'{"host": "n", "job": "7", "nodes": 2, "name": "n"}')
        scene.say(node, Kind.ENDED, NodeEnd.REPORTED)
    while len(scene.relay.nodes.ended) < 2:
        pass
    scene.relay.look()
    assert not scene.job.cancelled
    scene.relay.nodes.missed(-31.0)
    scene.relay.look()
    assert scene.relay.ended.wait(HANG_S)
    assert scene.job.cancelled
    assert (scene.relay.error, scene.relay.nodes.outside_words()) == ("", "")


def test_nodes_that_nobody_listened_to_are_not_gone(scene: Scene) -> None:
    """The notebook's process was suspended, and looks before it has heard anything."""
    scene.say(0, Kind.ENDED, NodeEnd.REPORTED)
    scene.say(1, Kind.ALIVE)
    while len(scene.relay.nodes.heard) < 2:
        pass
    scene.relay.nodes.missed(-60.0)
    scene.relay._looked -= 60.0
    scene.relay.look()
    assert (scene.relay.error, scene.job.cancelled) == ("", False)


def test_a_node_says_how_many_there_are(scene: Scene) -> None:
    """The cluster has chosen."""
    assert scene.relay.nodes.count == 0
    scene.say(0, Kind.NODE, 0, b'{"host": "n1", "name": "n1", "job": "5.0", "nodes": 1}')
    while not scene.relay.nodes.hosts:
        pass
    assert scene.relay.nodes.count == 1


def _agent(scene: Scene, node: int) -> Channel:
    scene.say(
        node,
        Kind.NODE,
        0,
        b'{"host": "n%d", "name": "c%d", "job": "5.0", "nodes": 2}' % ((node + 1,) * 2),
    )
    scene.say(node, Kind.MESSAGE, 3, encode(AgentHello()))
    agent = scene.listener.accept()
    assert received(agent) == [AgentHello()]
    return agent


def test_an_agent_that_ends_without_a_report_is_a_node_that_is_lost(scene: Scene) -> None:
    """The first that does: the others are ended for it."""
    agents = [_agent(scene, node) for node in range(2)]
    scene.say(0, Kind.MESSAGE, 3, encode(AgentDone()))
    for node in (0, 1):
        scene.say(node, Kind.CLOSED, 3)
    assert agents[1].receive() is None
    nodes = scene.relay.nodes
    assert (nodes.lost, nodes.lost_how) == ("c2", "n2 was lost: its agent ended without a report")
    for agent in agents:
        agent.close()


def test_an_agent_that_ends_with_its_job_is_no_node_that_is_lost(scene: Scene) -> None:
    """Slurm sends SIGTERM to all processes, later SIGKILL: `scancel`, a time limit."""
    agent = _agent(scene, 0)
    scene.say(0, Kind.SIGNALED, signal.SIGTERM)
    scene.say(0, Kind.CLOSED, 3)
    assert agent.receive() is None
    assert scene.relay.nodes.lost == ""
    agent.close()


def test_what_the_cluster_has_lost_first_is_what_was_lost(scene: Scene) -> None:
    """The end of other agents follows from that."""
    agent = _agent(scene, 0)
    scene.job.node = "c2"
    scene.say(0, Kind.CLOSED, 3)
    assert agent.receive() is None
    assert scene.relay.nodes.lost == ""
    agent.close()


def test_a_signal_to_the_whole_job_is_noted(scene: Scene) -> None:
    """It came before the end of any agent, and the kernel had not cancelled the job."""
    scene.say(1, Kind.SIGNALED, signal.SIGTERM)
    scene.say(1, Kind.ENDED, 1)
    while not scene.relay.nodes.ended:
        pass
    assert scene.relay.nodes.signaled is not None
    assert scene.relay.nodes.signaled[0] == signal.SIGTERM

"""What connects to a group's socket, with fake ranks: frames that make no sense harm nobody."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ddp_magic.kernel.worker_group.complaints import MAX_COMPLAINTS
from ddp_magic.kernel.worker_group.connections import MAX_UNUSED_FDS, Connections
from ddp_magic.kernel.worker_group.group import WorkerGroup
from ddp_magic.kernel.worker_group.strangers import HELLO_BYTES, MAX_STRANGERS
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.channel import Channel, connect
from ddp_magic.wire.codec import encode
from ddp_magic.wire.commands import RunCell
from ddp_magic.wire.events import AgentDone, AgentHello, WorkerExited
from ddp_magic.wire.kernel_events import Note, Stream
from ddp_magic.wire.states import Phase
from ddp_magic.wire.worker_events import (
    ClearOutput,
    DisplayData,
    Error,
    Heartbeat,
    Idle,
    Results,
    WorkerHello,
    WorkerReady,
)
from tests.limits import within
from tests.unit.kernel.scene import NPROC, STEPS, FakeEngine, FakeRank, Scene, notes_of


def _frame(payload: bytes) -> bytes:
    return struct.pack("!I", len(payload)) + payload


def _json(**fields: object) -> bytes:
    return _frame(json.dumps(fields).encode())


def _hello(**fields: object) -> bytes:
    return _json(**{"type": "WorkerHello", "rank": 0, "pid": os.getpid(), "marker": "M;", **fields})


def _display(rank: int) -> DisplayData:
    return DisplayData(rank=rank, mark=1, data={"text/html": "x"}, metadata={})


NONSENSE = {
    "garbage": b"GET / HTTP/1.1\r\n\r\n",
    "a pickle": _frame(b"\x80\x04K."),
    "no JSON": _frame(b"garbage"),
    "nothing": _frame(b""),
    "a huge length": struct.pack("!I", 2**32 - 1),
    "a long hello": struct.pack("!I", HELLO_BYTES + 1) + b"x" * 1000,
    "nested": _frame(b"[" * 1000),
    "nested in a field": _hello(marker=json.loads("[" * 300 + "]" * 300)),
    "rank 99": _hello(rank=99),
    "rank 2": _hello(rank=NPROC),
    "rank -1": _hello(rank=-1),
    "a huge rank": _hello(rank=10**30),
    "text for a rank": _hello(rank="0"),
    "no rank": _hello(rank=None),
    "true as a rank": _hello(rank=True),
    "a list as a rank": _hello(rank=[0]),
    "no pid": _hello(pid=None),
    "pid -5": _hello(pid=-5),
    "no marker": _hello(marker=""),
    "a marker of an image's size": _hello(marker="x" * 5000),
    "half a character as marker": _hello(marker="\ud800"),
    "a replayed hello": _hello(),
    "a field too many": _hello(more=1),
    "a field too few": _json(type="WorkerHello", rank=0),
    "no type": _json(rank=0),
    "an unknown type": _json(type="Nothing"),
    "a late agent": _frame(encode(AgentHello())),
    "ready before hello": _frame(encode(WorkerReady(rank=0, time=0.0, device="cpu"))),
    "a display of a stranger": _frame(encode(_display(0))),
    "a display of an unknown rank": _frame(encode(_display(99))),
    "an error of a stranger": _frame(
        encode(Error(rank=0, time=0.0, ename="E", evalue="", traceback=()))
    ),
    "a rank's end, from a stranger": _frame(encode(WorkerExited(rank=0, time=0.0, code=1))),
    "the end of all, from a stranger": _frame(encode(AgentDone())),
    "results of a stranger": _frame(encode(Results(rank=0, names=("x",), sizes=(1,)))),
    "a command": _frame(encode(RunCell(path="/x"))),
    "text, which never comes so": _json(type="Stream", rank=0, text="x"),
}


@pytest.mark.parametrize("frame", NONSENSE.values(), ids=NONSENSE)
def test_a_stranger_is_sent_away(scene: Scene, frame: bytes) -> None:
    """Its connection is closed, a line says so, and both ranks go on."""
    raw = scene.stranger()
    raw.sendall(frame)
    assert scene.poll() == []
    try:
        assert raw.recv(1) == b""
    except ConnectionResetError:  # with some of it unread
        pass
    assert len(scene.notes) == 1
    assert "connection was closed" in scene.notes[0]
    assert len(scene.notes[0]) < 500
    assert sorted(scene.group.pids) == [0, 1]
    assert scene.is_unharmed()
    raw.close()


def test_a_stranger_that_goes_away_is_no_matter(scene: Scene) -> None:
    """Nothing is said of one that said nothing; a line of one that stopped in a message."""
    raw = scene.stranger()
    scene.poll()
    raw.close()
    scene.poll()
    assert scene.notes == []
    raw = scene.stranger()
    raw.sendall(b"\0\0")
    scene.poll()
    raw.close()
    scene.poll()
    assert "in the middle" in scene.notes[0]
    assert scene.is_unharmed()


def test_a_silent_stranger_holds_nobody_up(scene: Scene) -> None:
    """Half a header and no more: the group ends without waiting for the other half."""
    raw = scene.stranger()
    raw.sendall(b"\0\0")
    scene.poll()
    assert scene.is_unharmed()
    for rank in scene.ranks:
        rank.channel.close()
        os.close(rank.pipe)
    scene.ranks = []
    scene.agent.close()
    scene.engine.agent.dead = True
    began = time.monotonic()
    scene.poll()
    assert scene.group.ended
    assert within(time.monotonic() - began, 0.9)  # DRAIN_S is for the ranks' text
    scene.group.close()
    assert raw.recv(1) == b""
    raw.close()


def test_many_strangers(scene: Scene) -> None:
    """Beyond some, the first ones go; of all that goes wrong a few lines are said."""
    raws = [scene.stranger() for _ in range(100)]
    for _ in range(30):
        scene.poll()
    open_ones = 0
    for raw in raws:
        raw.setblocking(False)
        try:
            raw.recv(1)
        except BlockingIOError:
            open_ones += 1
    assert open_ones <= 2 * NPROC + MAX_STRANGERS
    assert len(scene.notes) == MAX_COMPLAINTS
    assert scene.is_unharmed()
    for raw in raws:
        raw.close()


@contextlib.contextmanager
def _files_left(count: int) -> Iterator[None]:
    """Let this process open so many."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0) for _ in range(count + 1)]
    for fd in free:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("left", [0, 1])
def test_ranks_that_cannot_connect_are_not_waited_for(tmp_path: Path, left: int) -> None:
    """The kernel can open no more files, for the connection or for the text: an error."""
    group = WorkerGroup(RunDirectory(tmp_path), nproc=NPROC, device="cpu")
    group.start(FakeEngine(), {}, [], ())
    rank = FakeRank(tmp_path / "socket", 0)
    with _files_left(left), pytest.raises(OSError, match="Too many open files"):
        [group.poll(0) for _ in range(STEPS)]
    rank.close()
    group.close()


def test_a_stranger_that_cannot_connect_harms_no_run(scene: Scene) -> None:
    """All ranks are connected."""
    raw = scene.stranger()
    with _files_left(0):
        assert scene.is_unharmed()
    assert "could not accept a connection: [Errno 24]" in scene.notes[0]
    raw.close()


def _some_file(tmp_path: Path) -> int:
    return os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)


def _write_end(_: Path) -> int:
    read_end, write_end = os.pipe()
    os.close(read_end)
    return write_end


@pytest.mark.parametrize("make", [None, _some_file, _write_end, lambda _: os.open("/dev/null", 0)])
def test_a_hello_needs_a_pipe(tmp_path: Path, make: Callable[[Path], int] | None) -> None:
    """None, a file, the wrong end: refused, and the true rank is welcome afterwards."""
    engine = FakeEngine()
    group = WorkerGroup(RunDirectory(tmp_path), nproc=1, device="cpu")
    group.start(engine, {}, [], ())
    stranger = connect(str(tmp_path / "socket"))
    fd = None if make is None else make(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    stranger.send(WorkerHello(rank=0, pid=os.getpid(), marker="M;"), fd=fd)
    (note,) = notes_of(event for _ in range(STEPS) for event in group.poll(0))
    assert stranger.receive() is None
    assert "descriptor" in note
    assert len(list(Path("/proc/self/fd").iterdir())) == before  # what it sent is closed
    rank = FakeRank(tmp_path / "socket", 0)
    for _ in range(STEPS):
        group.poll(0)
    assert list(group.pids) == [0]
    for end in (stranger, rank):
        end.close()
    if fd is not None:
        os.close(fd)
    engine.agent.dead = True
    group.close()


_OF_RANKS = {
    "another rank's display": _frame(encode(_display(1))),
    "an unknown rank's display": _frame(encode(_display(99))),
    "another rank's heartbeat": _frame(
        encode(Heartbeat(rank=1, time=0.0, phase=Phase.RUNNING, line=None, rss_mib=1.0))
    ),
    "another rank's end of a cell": _frame(encode(Idle(rank=1, time=0.0))),
    "another rank's error": _frame(
        encode(Error(rank=1, time=0.0, ename="E", evalue="", traceback=()))
    ),
    "another rank's output cleared": _frame(encode(ClearOutput(rank=99, mark=1))),
    "a second hello": _hello(),
    "an agent's hello": _frame(encode(AgentHello())),
    "a rank's end": _frame(encode(WorkerExited(rank=1, time=0.0, code=0))),
    "the end of all": _frame(encode(AgentDone())),
    "results without memory": _frame(encode(Results(rank=0, names=("x",), sizes=(1,)))),
    "a command": _frame(encode(RunCell(path="/x"))),
    "no JSON": _frame(b"garbage"),
    "nested": _frame(b"[" * 1000),
    "a time that is none": _json(type="Idle", rank=0, time="noon"),
    "an infinite time": _frame(b'{"type": "Idle", "rank": 0, "time": Infinity}'),
    "a display that is a list": _json(type="DisplayData", rank=0, mark=1, data=[], metadata={}),
}


@pytest.mark.parametrize("frame", _OF_RANKS.values(), ids=_OF_RANKS)
def test_a_ranks_nonsense_is_ignored(scene: Scene, frame: bytes) -> None:
    """A rank lives by its connection: what makes no sense is left out and said, the rest counts."""
    scene.ranks[0].channel._socket.sendall(frame)
    assert scene.poll() == []
    assert len(scene.notes) == 1
    assert "rank 0 was ignored" in scene.notes[0]
    assert scene.is_unharmed()


def test_what_an_agent_may_not_say(scene: Scene) -> None:
    """No end of an unknown rank, none twice, nothing of a rank's own."""
    for event in (
        WorkerExited(rank=99, time=0.0, code=0),
        Idle(rank=0, time=0.0),
        AgentHello(),
    ):
        scene.agent.send(event)
        assert scene.poll() == []
    assert len(scene.notes) == 3
    assert scene.group.first_exit is None
    end = WorkerExited(rank=1, time=0.0, code=0)
    scene.agent.send(end)
    scene.agent.send(WorkerExited(rank=1, time=1.0, code=9))
    assert scene.poll() == [end]
    assert scene.is_unharmed()


def test_results_without_room_for_them(scene: Scene, tmp_path: Path) -> None:
    """Memory that is smaller than what it should hold, or no file, is not read."""
    channel = scene.ranks[0].channel
    for fd in (_some_file(tmp_path), _write_end(tmp_path)):
        channel.send(Results(rank=0, names=("x",), sizes=(1, 2**40)), fd=fd)
        os.close(fd)
        assert scene.poll() == []
    assert scene.is_unharmed()


def test_the_text_goes_on_after_an_output_that_was_none(scene: Scene) -> None:
    """A mark whose output was left out does not hold back the text behind the next one."""
    rank = scene.ranks[0]
    rank.channel._socket.sendall(_json(type="DisplayData", rank=0, mark=1, data=5, metadata={}))
    rank.channel.send(DisplayData(rank=0, mark=2, data={"text/html": "y"}, metadata={}))
    os.write(rank.pipe, b"aM;1\abM;2\ac")
    shown = [e.text if isinstance(e, Stream) else "output" for e in scene.poll()]
    assert "".join(shown) == "aboutputc"


def test_a_rank_that_sends_garbage_is_named(scene: Scene) -> None:
    """Where its next frame begins is not known any more; the other rank goes on."""
    scene.ranks[0].channel._socket.sendall(b"\xff" * 100)
    scene.poll()
    assert "connection of rank 0 was closed" in scene.notes[0]
    assert scene.ranks[0].channel.receive() is None
    scene.ranks[1].channel.send(Idle(rank=1, time=1.0))
    assert scene.poll() == [Idle(rank=1, time=1.0)]


def test_frames_before_a_bad_one_count(scene: Scene) -> None:
    """What came with it in one piece is taken."""
    idle = Idle(rank=0, time=1.0)
    scene.ranks[0].channel._socket.sendall(_frame(encode(idle)) + _frame(b"x") + b"\xff" * 9)
    assert scene.poll() == [idle]


def test_a_full_disk_costs_the_log(scene: Scene) -> None:
    """It is said once; all text is shown, and what fits later is kept again."""
    log = scene.group.directory.rank_log(0)
    log.symlink_to("/dev/full")
    for _ in range(3):
        assert scene.is_unharmed()
    (note,) = scene.notes
    assert "No space left on device" in note
    log.unlink()
    assert scene.is_unharmed()
    assert log.read_text() == "text\n"
    assert len(scene.notes) == 1


def test_a_removed_directory_is_made_again(scene: Scene) -> None:
    """The log goes on, in a directory as private as before."""
    directory = scene.group.directory
    assert scene.is_unharmed()
    shutil.rmtree(directory)
    os.write(scene.ranks[1].pipe, b"text\n")
    (text,) = scene.poll()
    assert isinstance(text, Stream)
    assert text.log_bytes == len("text\n")
    assert directory.rank_log(1).read_text() == "text\n"
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert scene.notes == []


def test_a_channel_keeps_what_nobody_took(tmp_path: Path) -> None:
    """Descriptors that came without a use are closed with a word of their owner."""
    left, right = socket.socketpair()
    ours, theirs = Channel(left), Channel(right)
    theirs.send(Idle(rank=0, time=0.0), fd=_some_file(tmp_path))
    assert ours.receive() == [Idle(rank=0, time=0.0)]
    (fd,) = ours.received_fds
    ours.drop_fds()
    assert ours.received_fds == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    ours.close()
    theirs.close()


def test_a_silent_connection_is_closed(tmp_path: Path) -> None:
    """After a while; that is said."""
    directory = RunDirectory(tmp_path)
    connections = Connections(directory, nproc=1, hello_s=0.0)
    connections.listen()
    stranger = connect(str(directory.socket))
    (note,) = connections.poll(0)
    assert note == Note(text="a connection was closed because it sent nothing for 0 s")
    assert stranger.receive() is None
    stranger.close()
    connections.close()


def test_descriptors_without_a_use_are_closed(scene: Scene, tmp_path: Path) -> None:
    """A rank that sends one with each message must not use up the kernel's."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    fd = _some_file(tmp_path)
    for _ in range(3 * MAX_UNUSED_FDS):
        scene.ranks[0].channel.send(Idle(rank=0, time=1.0), fd=fd)
        scene.poll()
    os.close(fd)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + MAX_UNUSED_FDS

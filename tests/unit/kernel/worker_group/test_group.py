"""A worker group with fake ranks and a fake agent: commands go in, events come out."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ddp_magic.errors import LaunchError
from ddp_magic.kernel.worker_group.group import WorkerGroup
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.channel import Channel, connect
from ddp_magic.wire.commands import Command, Exit, Interrupt, Kill, NewGroup, SharedMemory
from ddp_magic.wire.events import AgentDone, AgentHello, Event
from ddp_magic.wire.kernel_events import (
    Doing,
    GroupEnded,
    Note,
    PulledValues,
    Rejoined,
    Stream,
)
from ddp_magic.wire.memory import Segment
from ddp_magic.wire.worker_events import Results
from tests.limits import HANG_S, within
from tests.unit.fakes import exited, ready
from tests.unit.kernel.scene import FakeEngine, FakeRank, Scene


def _received(channel: Channel) -> list[Command | Event]:
    return channel.receive() or []


def _shared_memories() -> int:
    """Return how many descriptors of shared memory this process holds."""
    paths = list(Path("/proc/self/fd").iterdir())
    return sum("memfd:ddp_magic" in str(path.readlink()) for path in paths if path.is_symlink())


def _end(scene: Scene, *codes: int) -> None:
    """Let the ranks and the agent end, as they do when all is well."""
    for rank, code in enumerate(codes):
        scene.agent.send(exited(rank, code))
    scene.agent.send(AgentDone(swept=1))
    scene.close_ends()


def test_a_group_that_cannot_listen_any_more_is_ended(tmp_path: Path) -> None:
    """When this process can open no more files, its agent is killed and all is closed."""

    def fails() -> list[str]:
        raise OSError("Too many open files")

    scene = Scene(tmp_path)
    scene.engine.agent.take_notes = fails  # type: ignore[method-assign]
    with pytest.raises(OSError, match="Too many"):
        scene.group.close()
    assert scene.engine.agent.dead
    assert not scene.path.exists()
    scene.close_ends()


def test_a_group_that_has_not_started(tmp_path: Path) -> None:
    """It can be closed."""
    group = WorkerGroup(RunDirectory(tmp_path), nproc=2, device="cpu")
    assert not group.started
    group.close()
    assert group.ended


def test_commands_reach_every_rank(scene: Scene) -> None:
    scene.group.send(Exit())
    for rank in scene.ranks:
        assert _received(rank.channel) == [Exit()]


def test_a_rank_that_comes_later_gets_what_was_sent(tmp_path: Path) -> None:
    """In its order; the descriptor too."""
    engine = FakeEngine()
    group = WorkerGroup(RunDirectory(tmp_path), nproc=2, device="cpu")
    group.start(engine, {}, [], ())
    segment = Segment.of([memoryview(b"abc")])
    group.share(7, segment)
    segment.close()
    group.send(Exit())
    ranks = [FakeRank(tmp_path / "socket", rank) for rank in range(2)]
    for _ in range(5):
        group.poll(0)
    for rank in ranks:
        received: list[Command | Event] = []
        while len(received) < 2:
            received += _received(rank.channel)
        assert received == [SharedMemory(number=7, sizes=(3,)), Exit()]
        (fd,) = rank.channel.received_fds
        assert os.pread(fd, 3, 0) == b"abc"
        rank.channel.drop_fds()
        rank.close()
    engine.agent.dead = True
    group.close()


def test_shared_memory_is_sent_once(scene: Scene) -> None:
    """A session's later cells name it by its number."""
    segment = Segment.of([memoryview(b"abc")])
    for _ in range(2):
        scene.group.share(1, segment)
    scene.group.send(Exit())
    # What comes with a descriptor ends a read.
    received = [*_received(scene.ranks[0].channel), *_received(scene.ranks[0].channel)]
    assert received == [SharedMemory(number=1, sizes=(3,)), Exit()]
    scene.ranks[0].channel.drop_fds()
    segment.close()


def test_each_renewal_has_a_number_of_its_own(scene: Scene) -> None:
    """All ranks must mean the same process group."""
    scene.group.renew_process_group()
    scene.group.renew_process_group()
    for rank in scene.ranks:
        assert _received(rank.channel) == [NewGroup(number=1), NewGroup(number=2)]


def test_an_interrupt_reaches_the_ranks_that_are_named(scene: Scene) -> None:
    """And the agent, which then lets them answer."""
    scene.group.interrupt([1], keep=False)
    scene.group.send(Exit())
    assert _received(scene.agent) == [Interrupt()]
    assert _received(scene.ranks[0].channel) == [Exit()]
    assert _received(scene.ranks[1].channel) == [Interrupt(), Exit()]


def test_ranks_that_are_kept_abort_their_collectives(scene: Scene) -> None:
    """The agent is not told: they are to outlive it."""
    scene.group.interrupt([0], keep=True)
    scene.group.kill((1,))
    assert _received(scene.ranks[0].channel) == [Interrupt(abort_collectives=True)]
    assert _received(scene.agent) == [Kill(ranks=(1,))]


def test_a_start_that_is_killed(tmp_path: Path) -> None:
    """Before the agent has connected, it is ended by its engine."""
    engine = FakeEngine()
    group = WorkerGroup(RunDirectory(tmp_path), nproc=2, device="cpu")
    group.start(engine, {}, [], ())
    group.kill()
    assert engine.agent.dead
    assert [type(event) for event in group.poll(0)] == [GroupEnded]
    group.close()


def test_the_end_of_a_group(scene: Scene) -> None:
    """Each rank's end, the last text, and how the group ended."""
    os.write(scene.ranks[1].pipe, b"last words")
    _end(scene, 0, 3)
    scene.engine.agent.words = "agent's log"
    events = scene.poll()
    assert events[-1] == GroupEnded(agent_words="agent's log", swept=1)
    assert [e.text for e in events if isinstance(e, Stream)] == ["last words"]
    assert exited(1, 3) in events
    assert scene.group.ended
    first = scene.group.first_exit
    assert first is not None
    assert first.rank == 0


def test_an_agent_that_died(scene: Scene) -> None:
    """It has not reported the end."""
    scene.close_ends()
    (ended,) = [event for event in scene.poll() if isinstance(event, GroupEnded)]
    assert ended.agent_died


def test_news_of_the_start(scene: Scene) -> None:
    """What the engine says, and what it waits for, once each."""
    scene.engine.agent.notes.append("transformers is left to the ranks")
    scene.engine.agent.waiting = "importing torch"
    assert scene.poll() == [Doing(text="importing torch")]
    assert scene.notes == ["transformers is left to the ranks"]
    scene.engine.agent.waiting = ""
    assert scene.poll() == [Doing(text="")]
    assert scene.poll() == []


def test_another_cell_of_a_session(scene: Scene) -> None:
    """What its ranks wrote meanwhile, and that they are there."""
    scene.ranks[0].channel.send(ready(0, "cuda:0"))
    scene.poll()
    os.write(scene.ranks[0].pipe, b"late\n")
    late, *rejoined = scene.group.rejoin()
    assert late == Stream(rank=0, text="late\n", log_bytes=5)
    assert rejoined == [
        Rejoined(rank=0, pid=os.getpid(), device="cuda:0", log_bytes=5),
        Rejoined(rank=1, pid=os.getpid(), device="", log_bytes=0),
    ]


def test_values_that_come_between_cells_are_dropped(scene: Scene) -> None:
    """Nobody waits for them; their memory is let go."""
    segment = Segment.of([memoryview(b"abc")])
    before = _shared_memories()
    scene.ranks[0].channel.send(Results(rank=0, names=("x",), sizes=(3,)), fd=segment.fd)
    scene.group.look()
    assert _shared_memories() == before
    assert not [e for e in scene.group.rejoin() if isinstance(e, PulledValues)]
    segment.close()


def test_a_session_whose_rank_is_gone_has_ended(scene: Scene) -> None:
    """The agent ends the others."""
    scene.ranks[1].channel.close()
    _end(scene, -9, -15)
    scene.group.look()
    assert scene.group.ended


def test_all_that_has_arrived_is_drained(scene: Scene) -> None:
    """Without waiting."""
    for i in range(3):
        os.write(scene.ranks[0].pipe, f"{i}\n".encode())
    events = scene.group.drain()
    assert "".join(e.text for e in events if isinstance(e, Stream)) == "0\n1\n2\n"
    assert scene.group.drain() == []


def test_finishing(scene: Scene) -> None:
    """The ranks are told; whether they ended in time is the answer."""
    assert not scene.group.finish(0.0)
    assert _received(scene.ranks[0].channel) == [Exit()]
    _end(scene, 0, 0)
    assert scene.group.finish(60.0)


def test_a_rank_is_known_by_its_process(scene: Scene) -> None:
    assert scene.group.pids == {0: os.getpid(), 1: os.getpid()}
    assert [note for note in scene.poll() if isinstance(note, Note)] == []


def test_each_keeper_of_torchruns_reports(tmp_path: Path) -> None:
    """There is one for each rank: one that has not reported has died."""
    group = WorkerGroup(RunDirectory(tmp_path), nproc=2, device="cpu")
    engine = FakeEngine()
    group.start(engine, {}, [], ())
    keepers = [connect(str(group.directory.socket)) for _ in range(2)]
    for keeper in keepers:
        keeper.send(AgentHello())
    for _ in range(5):
        group.poll(0)
    keepers[0].send(AgentDone())
    for keeper in keepers:
        keeper.close()
    engine.agent.dead = True
    (ended,) = [event for event in group.poll(0) if isinstance(event, GroupEnded)]
    assert ended.agent_died
    group.close()


def test_the_agents_end_wakes_the_group(scene: Scene) -> None:
    """Nobody waits for a poll to time out."""
    scene.engine.agent.fd, write_end = os.pipe()
    scene.poll()
    os.close(write_end)
    began = time.monotonic()
    scene.group.poll(HANG_S)
    assert within(time.monotonic() - began, 1.0)
    fd, scene.engine.agent.fd = scene.engine.agent.fd, -1
    scene.poll()
    os.close(fd)


def test_a_socket_that_cannot_be_created(tmp_path: Path) -> None:
    """The error names the place."""
    (tmp_path / "file").touch()
    group = WorkerGroup(RunDirectory(tmp_path / "file"), nproc=1, device="cpu")
    with pytest.raises(LaunchError, match=r"cannot create the ranks' socket in .*/file"):
        group.start(FakeEngine(), {}, [], ())
    group.close()

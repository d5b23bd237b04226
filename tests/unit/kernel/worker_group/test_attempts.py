"""A worker group whose ranks are restarted: fake ranks and a fake agent on a real socket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddp_magic.kernel.worker_group.group import WorkerGroup
from ddp_magic.kernel.worker_group.patience import Patience
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.channel import Channel, connect
from ddp_magic.wire.commands import Exit, Interrupt, SharedMemory
from ddp_magic.wire.events import AgentDone, AgentHello, WorkerExited
from ddp_magic.wire.kernel_events import GroupEnded, Restarted, RunEvent, Stream
from ddp_magic.wire.memory import Segment
from ddp_magic.wire.worker_events import Idle, WorkerHello
from tests.unit.fakes import exited
from tests.unit.kernel.scene import FakeEngine, FakeRank, Scene, notes_of


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A group that may be restarted twice, whose agent and two ranks are connected."""
    scene = Scene(tmp_path, max_restarts=2)
    yield scene
    scene.close()


def _fail(scene: Scene) -> None:
    """Let both ranks end, and the agent report it."""
    scene.agent.send(exited(0, 1))
    scene.agent.send(exited(1, -15))
    for rank in scene.ranks:
        rank.close()
    scene.ranks = []


def _connect(scene: Scene, attempt: int) -> None:
    scene.ranks = [FakeRank(scene.path, rank, attempt) for rank in range(2)]


def _kinds(events: list[RunEvent]) -> list[str]:
    return [type(event).__name__ for event in events]


def test_the_ranks_are_restarted(scene: Scene) -> None:
    """What the old ones had left comes first; then others take their places."""
    os.write(scene.ranks[1].pipe, b"last words")
    _fail(scene)
    scene.agent.send(AgentHello(attempt=1))
    _connect(scene, 1)
    events = scene.poll()
    begin = events.index(Restarted(number=1))
    assert {Stream(rank=1, text="last words", log_bytes=10), exited(0, 1), exited(1, -15)} <= {
        event for event in events[:begin] if isinstance(event, Stream | WorkerExited)
    }
    assert _kinds(events[begin:]) == ["Restarted", "AgentHello", "WorkerHello", "WorkerHello"]
    assert scene.is_unharmed()
    assert scene.notes == []


def test_a_rank_that_connects_before_the_agent_is_read(scene: Scene) -> None:
    """The agent's news is read first."""
    _fail(scene)
    scene.agent.send(AgentHello(attempt=1))
    _connect(scene, 1)
    scene.agent.send(exited(0, 3))
    events = scene.poll()
    assert _kinds(events).count("Restarted") == 1
    assert events.index(exited(0, 3)) > events.index(Restarted(number=1))
    assert scene.notes == []


def test_logs_are_appended_with_a_mark(scene: Scene) -> None:
    os.write(scene.ranks[0].pipe, b"one\n")
    scene.poll()
    _fail(scene)
    scene.agent.send(AgentHello(attempt=1))
    _connect(scene, 1)
    scene.poll()
    os.write(scene.ranks[0].pipe, b"two\n")
    scene.poll()
    log = scene.group.directory.rank_log(0).read_text()
    assert log == "one\n\n--- restart 1 of 2 ---\ntwo\n"


def test_commands_reach_the_new_ranks_alone(scene: Scene) -> None:
    """Shared memory is sent to them again."""
    segment = Segment.of([memoryview(b"abc")])
    scene.group.share(7, segment)
    scene.group.send(Exit())
    _fail(scene)
    scene.agent.send(AgentHello(attempt=1))
    scene.poll()
    scene.group.share(7, segment)
    segment.close()
    _connect(scene, 1)
    scene.poll()
    for rank in scene.ranks:
        assert rank.channel.receive() == [SharedMemory(number=7, sizes=(3,))]
        rank.channel.drop_fds()


def test_every_attempt_is_restarted_in_turn(scene: Scene) -> None:
    for attempt in (1, 2):
        _fail(scene)
        scene.agent.send(AgentHello(attempt=attempt))
        _connect(scene, attempt)
        assert Restarted(number=attempt) in scene.poll()
    assert scene.is_unharmed()


def test_there_are_no_more_restarts_than_asked_for(scene: Scene) -> None:
    """Neither does a stranger's hello begin one that is to come later."""
    for attempt in (2, 3):
        stranger = connect(str(scene.path))
        stranger.send(AgentHello(attempt=attempt))
        assert scene.poll() == []
        stranger.close()
    assert len(scene.notes) == 2
    assert f"AgentHello names attempt {attempt}; the ranks are in attempt 0" in scene.notes[1]
    assert scene.is_unharmed()


def test_a_group_without_restarts_has_none(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    stranger = connect(str(scene.path))
    stranger.send(AgentHello(attempt=1))
    assert Restarted(number=1) not in scene.poll()
    assert scene.is_unharmed()
    stranger.close()
    scene.close()


@pytest.mark.parametrize(
    "hello", [AgentHello(attempt=1), WorkerHello(rank=0, pid=1, marker="M;", attempt=1)]
)
def test_a_stranger_restarts_no_ranks_that_are_there(
    tmp_path: Path, hello: AgentHello | WorkerHello
) -> None:
    """It is disconnected, and they are unharmed."""
    scene = Scene(tmp_path, max_restarts=2, patience=Patience(attempt_end_s=0.0))
    stranger = connect(str(scene.path))
    stranger.send(hello)
    assert scene.poll() == []
    (note,) = scene.notes
    assert "it begins attempt 1 while rank 0 is connected" in note
    assert scene.is_unharmed()
    stranger.close()
    scene.close()


def test_a_late_hello_of_an_earlier_attempt_is_dropped(scene: Scene) -> None:
    """Its rank has ended: nobody needs to know."""
    _fail(scene)
    scene.agent.send(AgentHello(attempt=1))
    scene.poll()
    late = FakeRank(scene.path, 0, 0)
    assert scene.poll() == []
    assert scene.notes == []
    late.close()
    _connect(scene, 1)
    scene.poll()
    assert scene.is_unharmed()


def test_values_of_an_earlier_attempt_leave_no_descriptors(scene: Scene) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- a count
    for attempt in (1, 2):
        _fail(scene)
        scene.agent.send(AgentHello(attempt=attempt))
        _connect(scene, attempt)
        scene.poll()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 -- a count


def test_what_was_left_behind_in_every_attempt_is_counted(tmp_path: Path) -> None:
    """torchrun's keepers report for each attempt."""
    group, engine, keepers = _torchrun(tmp_path)
    for keeper in keepers:
        keeper.send(AgentDone(swept=1))
        keeper.close()
    more = _keepers(group, 1)
    assert Restarted(number=1) in _poll(group)
    for keeper in more:
        keeper.send(AgentDone(swept=2))
        keeper.close()
    engine.agent.dead = True
    (ended,) = [event for event in _poll(group) if isinstance(event, GroupEnded)]
    assert (ended.swept, ended.agent_died) == (6, False)
    group.close()


def test_a_keeper_that_did_not_report_has_died(tmp_path: Path) -> None:
    group, engine, keepers = _torchrun(tmp_path)
    keepers[0].send(AgentDone())
    for keeper in keepers:
        keeper.close()
    more = _keepers(group, 1)
    assert Restarted(number=1, agent_died=True) in _poll(group)
    for keeper in more:
        keeper.close()
    engine.agent.dead = True
    _poll(group)
    group.close()


def test_torchrun_does_not_restart_what_was_stopped(tmp_path: Path) -> None:
    """It does not know of Stop: it is ended with its new ranks."""
    group, engine, keepers = _torchrun(tmp_path)
    group.interrupt([], keep=False)
    for keeper in keepers:
        keeper.send(AgentDone())
        keeper.close()
    for keeper in _keepers(group, 1):
        keeper.close()
    _poll(group)
    assert engine.agent.dead
    group.close()


def test_a_rank_that_connects_after_stop_is_interrupted(tmp_path: Path) -> None:
    """It was starting when the others were."""
    group, engine, keepers = _torchrun(tmp_path)
    group.interrupt([0, 1], keep=False)
    rank = FakeRank(group.directory.socket, 0)
    _poll(group)
    assert rank.channel.receive() == [Interrupt()]
    rank.close()
    for keeper in keepers:
        keeper.close()
    engine.agent.dead = True
    group.close()


def test_agents_that_remain_serve_the_next_attempt(scene: Scene) -> None:
    """They are told to let the ranks answer."""
    _fail(scene)
    scene.agent.send(AgentHello(attempt=1))
    _connect(scene, 1)
    scene.poll()
    scene.group.interrupt([0], keep=False)
    assert scene.agent.receive() == [Interrupt()]
    scene.ranks[1].channel.send(Idle(rank=1, time=1.0))
    assert Idle(rank=1, time=1.0) in scene.poll()


def _torchrun(directory: Path) -> tuple[WorkerGroup, FakeEngine, list[Channel]]:
    group = WorkerGroup(RunDirectory(directory), nproc=2, device="cpu", max_restarts=1)
    engine = FakeEngine()
    group.start(engine, {}, [], ())
    keepers = _keepers(group, 0)
    _poll(group)
    return group, engine, keepers


def _keepers(group: WorkerGroup, attempt: int) -> list[Channel]:
    keepers = [connect(str(group.directory.socket)) for _ in range(2)]
    for keeper in keepers:
        keeper.send(AgentHello(attempt=attempt))
    return keepers


def _poll(group: WorkerGroup) -> list[RunEvent]:
    events = [event for _ in range(5) for event in group.poll(0)]
    assert notes_of(events) == []
    return events

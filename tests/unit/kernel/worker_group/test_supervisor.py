"""What a group does by itself: nobody has told it to."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ddp_magic.kernel.worker_group.outbox import Outbox
from ddp_magic.kernel.worker_group.patience import Patience
from ddp_magic.kernel.worker_group.supervisor import Supervisor
from ddp_magic.wire.channel import Channel
from ddp_magic.wire.commands import Command, Interrupt, Kill
from ddp_magic.wire.events import Event
from ddp_magic.wire.kernel_events import ConnectionLost
from ddp_magic.wire.specs import AgentSpec, WorkerSettings
from tests.unit.fakes import exited
from tests.unit.kernel.scene import Scene


def _received(channel: Channel) -> list[Command | Event]:
    return channel.receive() or []


def test_when_interrupted_ranks_have_ended_their_keepers_do(scene: Scene) -> None:
    """torchrun's wait for one another."""
    scene.group.interrupt([0, 1], keep=False)
    scene.agent.send(exited(0, 1))
    scene.agent.send(exited(1, 1))
    scene.poll()
    assert _received(scene.agent) == [Interrupt(), Kill()]


def test_a_rank_that_lost_its_connection_is_ended(tmp_path: Path) -> None:
    """Once its process has had time to end by itself, and nobody reported that it has."""
    scene = Scene(tmp_path, patience=Patience(lost_s=0.0))
    scene.ranks[1].channel.close()
    (lost,) = scene.poll()
    assert isinstance(lost, ConnectionLost)
    assert lost.rank == 1
    assert _received(scene.agent) == [Kill(ranks=(1,))]
    assert scene.poll() == []
    scene.close()


def test_a_rank_that_has_ended_did_not_lose_its_connection(tmp_path: Path) -> None:
    scene = Scene(tmp_path, patience=Patience(lost_s=0.0))
    scene.agent.send(exited(1, 0))
    scene.ranks[1].channel.close()
    assert scene.poll() == [exited(1, 0)]
    scene.close()


def test_ranks_whose_agent_died_did_not_lose_their_connections(tmp_path: Path) -> None:
    """Nobody can report their ends any more: they ended with it."""
    scene = Scene(tmp_path, patience=Patience(lost_s=0.0))
    scene.agent.close()
    scene.ranks[1].channel.close()
    assert scene.poll() == []
    scene.close()


@pytest.mark.parametrize(
    ("codes", "max_restarts", "ends"), [((0, 0), 2, True), ((0, 3), 0, True), ((0, 3), 2, False)]
)
def test_an_agent_that_outlives_its_ranks_is_ended(
    tmp_path: Path, codes: tuple[int, int], max_restarts: int, ends: bool
) -> None:
    """It hangs, or somebody has stopped it; unless it may start them again."""
    scene = Scene(tmp_path, patience=Patience(agent_end_s=0.0), max_restarts=max_restarts)
    scene.agent.send(exited(0, codes[0]))
    scene.poll()
    assert not scene.engine.agent.dead
    scene.agent.send(exited(1, codes[1]))
    scene.poll()
    time.sleep(0.01)
    scene.poll()
    assert scene.engine.agent.dead is ends
    scene.close()


def test_a_connection_that_has_just_ended_is_no_loss_yet(scene: Scene) -> None:
    """The news of its process's end is on its way."""
    scene.ranks[1].channel.close()
    assert scene.poll() == []


@pytest.mark.parametrize(("lost_s", "ends"), [(4.0, False), (6.0, True)])
def test_an_agent_that_does_not_report_the_end_of_a_rank_is_ended(
    lost_s: float, ends: bool
) -> None:
    """Somebody has stopped it; but it has some time."""
    ended: list[str] = []
    agents = SimpleNamespace(end=lambda: ended.append("agents"), killed=False)
    gone = SimpleNamespace(unconnected_since=time.monotonic() - lost_s, lives=lambda: False)
    connections = SimpleNamespace(lost_agent=False, members={1: gone})
    settings = WorkerSettings(socket="", directory="", device="cpu")
    spec = AgentSpec(run_id="run", kernel_pid=1, nproc=2, sys_path=(), worker=settings)
    patience = Patience(lost_s=2.0, report_s=3.0)
    supervisor = Supervisor(spec, connections, agents, Outbox({}, 2), patience)  # type: ignore[arg-type]
    assert supervisor.look() == []
    assert ended == ["agents"] * ends

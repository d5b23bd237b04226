"""The nodes of a group, of which some are lost: the engine places others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddp_magic.engines import Lost
from ddp_magic.kernel.worker_group.group import WorkerGroup
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.channel import Channel, connect
from ddp_magic.wire.commands import Exit, Kill
from ddp_magic.wire.events import AgentHello
from ddp_magic.wire.kernel_events import (
    GroupEnded,
    NodesGranted,
    Note,
    OutsideEnd,
    Restarted,
    RunEvent,
    Stream,
)
from ddp_magic.wire.specs import AgentSpec
from tests.unit.fakes import exited
from tests.unit.kernel.scene import FakeAgent, FakeRank

HOW = OutsideEnd(text="n2 was lost", time=1.0)


class Cluster:
    """A group on one or two nodes with one rank each, and the engine that places its agents.

    Attributes:
        specs: What the engine was asked for, in order.
    """

    def __init__(self, directory: Path, *, max_restarts: int, min_nodes: int) -> None:
        self.specs: list[AgentSpec] = []
        self.placed: list[FakeAgent] = []
        self._ends: list[Channel | FakeRank] = []
        self._path = directory / "socket"
        self.group = WorkerGroup(
            RunDirectory(directory),
            nproc=2,
            nnodes=2,
            min_nodes=min_nodes,
            device="cpu",
            max_restarts=max_restarts,
        )
        self.group.start(self, {}, [], ())

    def start(self, spec: AgentSpec, _env: dict[str, str]) -> FakeAgent:
        self.specs.append(spec)
        self.placed.append(FakeAgent())
        return self.placed[-1]

    def poll(self) -> list[RunEvent]:
        return [event for _ in range(5) for event in self.group.poll(0)]

    def agent(self, attempt: int = 0) -> Channel:
        """Let an agent connect."""
        channel = connect(str(self._path))
        channel.send(AgentHello(attempt=attempt))
        self._ends.append(channel)
        self.poll()
        return channel

    def up(self, nnodes: int, attempt: int = 0) -> list[RunEvent]:
        """Let the cluster give so many nodes, and their ranks connect; return what happens."""
        self.placed[-1].nodes = nnodes
        events = self.poll()
        for rank in range(nnodes):
            self.agent(attempt)
            self._ends.append(FakeRank(self._path, rank, attempt, f"n{rank + 1}"))
        return [*events, *self.poll()]

    def lose(self, name: str = "n2") -> list[RunEvent]:
        """Lose a node: all agents and ranks end, and their job; return what happens."""
        for end in self._ends:
            end.close()
        self._ends = []
        self.poll()
        self.placed[-1].loss = Lost((name,), HOW)
        self.placed[-1].dead = True
        return self.poll()

    def close(self) -> None:
        for end in self._ends:
            end.close()
        self.placed[-1].dead = True
        self.group.close()


@pytest.fixture
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    how = {"max_restarts": 2, "min_nodes": 1, **getattr(request, "param", {})}
    cluster = Cluster(tmp_path, **how)
    yield cluster
    cluster.close()


def _number(events: list[RunEvent], kind: type) -> int:
    return sum(isinstance(event, kind) for event in events)


def test_the_run_goes_on_without_it(cluster: Cluster) -> None:
    """As a restart, whose agents know that they are not the first; on fewer nodes."""
    assert NodesGranted(nnodes=2, nproc=2) in cluster.up(2)
    events = cluster.lose()
    (restarted,) = [event for event in events if isinstance(event, Restarted)]
    assert (restarted.number, restarted.lost) == (1, HOW)
    assert [(spec.attempt, spec.without) for spec in cluster.specs] == [(0, ()), (1, ("n2",))]
    assert not cluster.group.placed
    assert NodesGranted(nnodes=1, nproc=1) in cluster.up(1, attempt=1)
    assert cluster.group.placed
    assert not cluster.group.ended


def test_a_node_may_be_there_again_or_another_one(cluster: Cluster) -> None:
    """The next job may have more nodes than the one before; all that were lost are left out."""
    cluster.up(1)
    cluster.lose("n1")
    assert NodesGranted(nnodes=2, nproc=2) in cluster.up(2, attempt=1)
    cluster.lose("n3")
    assert cluster.specs[-1].without == ("n1", "n3")


def test_commands_are_for_the_new_ranks(cluster: Cluster) -> None:
    cluster.up(2)
    cluster.group.send(Exit())
    cluster.lose()
    cluster.up(1, attempt=1)
    cluster.group.send(Exit())
    rank = cluster._ends[-1]
    assert isinstance(rank, FakeRank)
    assert rank.channel.receive() == [Exit()]


def test_what_the_ranks_had_written_comes_first(cluster: Cluster) -> None:
    cluster.up(2)
    rank = cluster._ends[-1]
    assert isinstance(rank, FakeRank)
    os.write(rank.pipe, b"last words")
    cluster.placed[-1].loss, cluster.placed[-1].dead = Lost(("n2",), HOW), True
    rank.channel.close()
    events = cluster.group.poll(0)
    texts = [event.text for event in events if isinstance(event, Stream)]
    assert texts == ["last words"]
    assert isinstance(events[-1], Restarted)


def test_a_restart_that_an_agent_has_begun_for_it_is_the_same(cluster: Cluster) -> None:
    """The ranks of a node that is there fail first, since they have lost the others."""
    cluster.up(2)
    agent = cluster._ends[0]
    assert isinstance(agent, Channel)
    for rank in range(2):
        agent.send(exited(rank, 1))
    for end in cluster._ends:
        if isinstance(end, FakeRank):
            end.channel.close()
            os.close(end.pipe)
    cluster._ends = [end for end in cluster._ends if isinstance(end, Channel)]
    agent.send(AgentHello(attempt=1))
    assert Restarted(number=1) in cluster.poll()
    (again,) = [event for event in cluster.lose() if isinstance(event, Restarted)]
    assert (again.number, again.lost) == (1, HOW)
    assert cluster.specs[-1].attempt == 1
    cluster.up(1, attempt=1)
    (third,) = [event for event in cluster.lose("n1") if isinstance(event, Restarted)]
    assert third.number == 2


@pytest.mark.parametrize("cluster", [{"max_restarts": 1}], indirect=True)
def test_no_restart_is_left(cluster: Cluster) -> None:
    cluster.up(2)
    cluster.lose()
    cluster.up(1, attempt=1)
    assert _number(cluster.lose("n1"), GroupEnded) == 1
    assert len(cluster.specs) == 2


@pytest.mark.parametrize("cluster", [{"min_nodes": 0}, {"max_restarts": 0}], indirect=True)
def test_where_the_number_is_fixed_or_there_are_no_restarts_the_run_ends(cluster: Cluster) -> None:
    cluster.up(2)
    assert _number(cluster.lose(), GroupEnded) == 1
    assert len(cluster.specs) == 1


def test_a_node_that_is_lost_after_the_cell_is_not_needed(cluster: Cluster) -> None:
    cluster.up(2)
    agents = [end for end in cluster._ends if isinstance(end, Channel)]
    for rank, agent in enumerate(agents):
        agent.send(exited(rank, 0))
    assert _number(cluster.lose(), GroupEnded) == 1
    assert len(cluster.specs) == 1


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_a_run_that_is_stopped_is_not_placed_again(cluster: Cluster, how: str) -> None:
    cluster.up(2)
    if how == "kill":
        cluster.group.kill()
    else:
        cluster.group.interrupt([0, 1], keep=False)
    assert _number(cluster.lose(), GroupEnded) == 1
    assert len(cluster.specs) == 1


def test_an_agent_that_dies_ends_those_of_the_others(cluster: Cluster) -> None:
    """Those that are placed then are not told to end."""
    cluster.up(2)
    first = next(end for end in cluster._ends if isinstance(end, Channel))
    other = [end for end in cluster._ends if isinstance(end, Channel)][1]
    other.close()
    cluster.poll()
    assert first.receive() == [Kill()]
    cluster._ends.remove(other)
    cluster.lose()
    agent = cluster.agent(1)
    cluster.group._agents.send(Exit())
    assert agent.receive() == [Exit()]


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_the_end_of_agents_that_the_kernel_ends_is_no_news(cluster: Cluster, how: str) -> None:
    """One that ends by itself is told; so is one whose rank alone is killed."""
    cluster.up(2)
    ended = "the agent on n2 ended without a report, and its ranks with it"
    cluster.group.kill((1,))
    cluster.placed[-1].notes = [ended]
    assert Note(text=ended) in cluster.poll()
    if how == "kill":
        cluster.group.kill()
    else:
        cluster.group.interrupt([0], keep=False)
    cluster.placed[-1].notes = [ended]
    assert _number(cluster.poll(), Note) == 0

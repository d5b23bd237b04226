"""A worker group on two nodes: each has an agent with one rank."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ddp_magic.kernel.worker_group.group import WorkerGroup
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.channel import Channel, connect
from ddp_magic.wire.commands import Command, DumpStack, Kill
from ddp_magic.wire.events import AgentDone, AgentHello, Event
from ddp_magic.wire.kernel_events import NodesGranted, Rejoined, Restarted, RunEvent
from ddp_magic.wire.worker_events import WorkerHello
from tests.unit.fakes import exited
from tests.unit.kernel.scene import FakeEngine, FakeRank


class Nodes:
    """A group, its two agents and its two ranks."""

    def __init__(self, directory: Path) -> None:
        self.engine = FakeEngine()
        self.group = WorkerGroup(
            RunDirectory(directory), nproc=2, nnodes=2, device="cpu", max_restarts=2
        )
        self.group.start(self.engine, {}, [], ())
        self.path = directory / "socket"
        self.agents = [connect(str(self.path)) for _ in range(2)]
        for agent in self.agents:
            agent.send(AgentHello())
        self.poll()
        self.ranks = self.connect_ranks(0)

    def connect_ranks(self, attempt: int) -> list[FakeRank]:
        ranks = [FakeRank(self.path, rank, attempt, f"n{rank + 1}") for rank in range(2)]
        self.poll()
        return ranks

    def poll(self) -> list[RunEvent]:
        return [event for _ in range(5) for event in self.group.poll(0)]

    def received(self, node: int) -> list[Command | Event]:
        agent: Channel = self.agents[node]
        return agent.receive() or []


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path)
    yield nodes
    nodes.engine.agent.dead = True
    nodes.group.close()
    for end in (*nodes.agents, *nodes.ranks):
        end.close()


def test_a_failure_on_one_node_ends_the_other(nodes: Nodes) -> None:
    """Its agent would never hear of it."""
    nodes.agents[1].send(exited(1, 3))
    nodes.agents[1].send(AgentDone())
    nodes.poll()
    assert nodes.received(0) == [Kill()]


def test_an_agent_that_dies_ends_the_other_node(nodes: Nodes) -> None:
    nodes.agents[1].close()
    nodes.poll()
    assert nodes.received(0) == [Kill()]


def test_a_node_that_is_done_ends_nobody(nodes: Nodes) -> None:
    nodes.agents[1].send(exited(1, 0))
    nodes.agents[1].send(AgentDone())
    nodes.agents[0].send(exited(0, 0))
    nodes.agents[0].send(AgentDone())
    nodes.poll()
    nodes.engine.agent.dead = True
    nodes.poll()
    assert nodes.group.ended
    nodes.group.close()
    assert nodes.received(0) == nodes.received(1) == []  # the end of the stream


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("at_once", [True, False])
def test_all_nodes_together_restart_once(nodes: Nodes, first: int, at_once: bool) -> None:
    """Whichever says so first, and however close the other one is behind it."""
    for node, code in ((0, 7), (1, -15)):
        nodes.agents[node].send(exited(node, code))
        nodes.ranks[node].close()
    events: list[RunEvent] = []
    for node in (first, 1 - first):
        nodes.agents[node].send(AgentHello(attempt=1))
        events += [] if at_once else nodes.poll()
    events += nodes.poll()
    nodes.ranks = nodes.connect_ranks(1)
    assert [event for event in events if isinstance(event, Restarted)] == [Restarted(number=1)]
    assert not [event for event in events if "invalid" in str(event)]


def test_the_number_of_nodes_is_known_before_the_first_rank(tmp_path: Path) -> None:
    """Though all is read at once; ranks of nodes that were not given are refused."""
    engine = FakeEngine()
    group = WorkerGroup(
        RunDirectory(tmp_path), nproc=4, nnodes=2, min_nodes=1, device="cpu", max_restarts=2
    )
    group.start(engine, {}, [], ())
    agent = connect(str(tmp_path / "socket"))
    agent.send(AgentHello())
    ranks = [FakeRank(tmp_path / "socket", rank, 0, "n1") for rank in range(2)]
    engine.agent.nodes = 1
    events = [event for _ in range(5) for event in group.poll(0)]
    assert events[0] == NodesGranted(nnodes=1, nproc=2)
    assert [event.rank for event in events if isinstance(event, WorkerHello)] == [0, 1]
    ranks.append(FakeRank(tmp_path / "socket", 2, 0, "n2"))
    events = [event for _ in range(5) for event in group.poll(0)]
    assert "WorkerHello names rank 2; the last rank is 1" in str(events)
    engine.agent.dead = True
    group.close()
    for end in (agent, *ranks):
        end.close()


def test_a_rank_elsewhere_is_no_process_of_this_machine(nodes: Nodes) -> None:
    """Its pid belongs to another process here: its agent is asked for its stack."""
    assert nodes.group.pids == {}
    nodes.group.dump_stack(1)
    assert nodes.received(0) == nodes.received(1) == [DumpStack(rank=1)]
    rejoined = [event for event in nodes.group.rejoin() if isinstance(event, Rejoined)]
    assert [(event.rank, event.node) for event in rejoined] == [(0, "n1"), (1, "n2")]
    assert all(event.pid for event in rejoined)

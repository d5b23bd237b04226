"""The rendezvous of several nodes, as threads of one process."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousHandler

from ddp_magic.node.rendezvous import SeveralNodes
from ddp_magic.wire.specs import AgentSpec, WorkerSettings
from tests.limits import HANG_S

NNODES = 3


def _nodes(*, max_restarts: int) -> list[AgentSpec]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    settings = WorkerSettings(socket="", directory="", device="cpu")
    return [
        AgentSpec(
            run_id="run",
            kernel_pid=1,
            nproc=2,
            sys_path=(),
            worker=settings,
            max_restarts=max_restarts,
            nnodes=NNODES,
            node=node,
            head="127.0.0.1",
            head_port=port,
            head_fd=listener.detach() if node == 0 else -1,
        )
        for node in range(NNODES)
    ]


@pytest.fixture
def together() -> Iterator[Callable[[Callable[[Any], Any], list[Any]], list[Any]]]:
    """Calls a function for each node, all at the same time; returns the results."""
    with ThreadPoolExecutor(NNODES) as pool:
        yield lambda call, items: list(pool.map(call, items, timeout=HANG_S))


def test_every_node_has_its_number_and_one_store(together: Any) -> None:
    """And each attempt another store, on the same address."""
    nodes = together(SeveralNodes, _nodes(max_restarts=1))
    rounds = [together(SeveralNodes.next_rendezvous, nodes) for _ in range(2)]
    for found in rounds:
        assert [info.rank for info in found] == list(range(NNODES))
        assert {info.world_size for info in found} == {NNODES}
        assert {info.bootstrap_store_info.master_addr for info in found} == {"127.0.0.1"}
    first, second = ({i.bootstrap_store_info.master_port for i in found} for found in rounds)
    assert len(first) == len(second) == 1
    assert first != second


def test_a_node_that_restarts_calls_the_others(together: Any) -> None:
    """Which see that somebody waits; afterwards all are in the same attempt."""
    nodes = together(SeveralNodes, _nodes(max_restarts=1))
    together(SeveralNodes.next_rendezvous, nodes)
    assert [node.num_nodes_waiting() for node in nodes] == [0] * NNODES
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(nodes[2].next_rendezvous)
        while not nodes[0].num_nodes_waiting():
            pass
        assert nodes[1].num_nodes_waiting()
        together(SeveralNodes.next_rendezvous, nodes[:2])
        waiting.result(HANG_S)
    assert [node.restarts for node in nodes] == [1] * NNODES
    assert [node.num_nodes_waiting() for node in nodes] == [0] * NNODES


def test_nodes_may_take_the_places_of_others(together: Any) -> None:
    """Which had been restarted once, and were lost: theirs is the next attempt."""
    specs = [replace(spec, attempt=2) for spec in _nodes(max_restarts=3)]
    nodes = together(SeveralNodes, specs)
    together(SeveralNodes.next_rendezvous, nodes)
    assert [node.restarts for node in nodes] == [2] * NNODES


def test_all_are_done_when_the_last_one_is(together: Any) -> None:
    """Until then the agents stay, for their stores and for a restart."""
    nodes = together(SeveralNodes, _nodes(max_restarts=0))
    together(SeveralNodes.next_rendezvous, nodes)
    assert [node.all_done() for node in nodes] == [False, False, True]
    assert [node.all_done() for node in nodes] == [True] * NNODES


def test_nothing_abstract_is_left() -> None:
    """A torch that asks for more than 2.6 does shows here."""
    assert RendezvousHandler.__abstractmethods__ <= set(vars(SeveralNodes))

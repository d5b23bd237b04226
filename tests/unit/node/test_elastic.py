"""The private names of torch that `node/elastic.py` uses: they mean what they meant."""

from __future__ import annotations

import dis
import inspect
import signal
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.elastic.agent.server import api, local_elastic_agent
from torch.distributed.elastic.multiprocessing.api import LogsSpecs, PContext, SignalException
from torch.distributed.elastic.rendezvous import RendezvousHandler

from ddp_magic.node import elastic
from ddp_magic.node.ranks import TERM_GRACE_S


def _globals(function: Callable[..., Any]) -> set[str]:
    """Return the global names that a function looks up."""
    instructions = dis.get_instructions(inspect.unwrap(function))
    return {i.argval for i in instructions if i.opname == "LOAD_GLOBAL"}


def test_torchs_agent_starts_ranks_by_a_name_of_its_module() -> None:
    """So that our function can take its place."""
    agent = local_elastic_agent.LocalElasticAgent
    assert "start_processes" in _globals(agent._start_workers)


def test_what_starts_processes_is_given_what_a_context_takes() -> None:
    """All but what `elastic.run` leaves out."""
    given = set(inspect.signature(local_elastic_agent.start_processes).parameters)
    taken = set(inspect.signature(PContext.__init__).parameters)
    assert given - {"start_method", "numa_options"} <= taken


def test_torchs_agent_asks_for_the_machines_name_by_a_name_of_its_module() -> None:
    """With each event that it records."""
    assert "_get_fq_hostname" in _globals(api.SimpleElasticAgent._construct_event)


def test_what_a_context_is_made_of() -> None:
    """Its abstract methods are ours, and it keeps what these read."""
    assert PContext.__abstractmethods__ == {"_start", "_poll", "_close", "pids"}
    source = inspect.getsource(PContext.__init__)
    for name in ("envs", "nprocs", "error_files", "stdouts", "stderrs"):
        assert f"self.{name} " in source or f"self.{name}:" in source, name


def test_nothing_abstract_is_left() -> None:
    """A torch that asks for more than 2.6 does shows here."""
    assert RendezvousHandler.__abstractmethods__ <= set(vars(elastic.OneNode))
    assert LogsSpecs.__abstractmethods__ <= set(vars(elastic.NoLogs))


def test_torchs_agent_counts_the_restarts_in_the_ranks_environment() -> None:
    """Where `elastic.run` and the ranks read it."""
    source = inspect.getsource(local_elastic_agent.LocalElasticAgent._start_workers)
    assert '"TORCHELASTIC_RESTART_COUNT": str(restart_count)' in source
    assert "max_restarts - self._remaining_restarts" in source


def test_each_attempt_has_its_own_port() -> None:
    """Held by the agent and not by its ranks: the store of what they start can listen there."""
    rendezvous = elastic.OneNode("run")
    first, second = (rendezvous.next_rendezvous().bootstrap_store_info for _ in range(2))
    assert first.master_addr == second.master_addr == "127.0.0.1"
    assert first.master_port != second.master_port
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", second.master_port))
        other.listen()
    rendezvous.close_port()


def test_ranks_may_have_been_restarted_before() -> None:
    """By agents that were lost with a node."""
    rendezvous = elastic.OneNode("run", attempt=2)
    rendezvous.next_rendezvous()
    assert rendezvous.restarts == 2
    rendezvous.close_port()


def test_torchs_agent_waits_for_other_nodes_in_a_method_of_its_own() -> None:
    """When its ranks are done: ours has waited by then."""
    source = inspect.getsource(api.SimpleElasticAgent._invoke_run)
    assert "self._exit_barrier()" in source
    assert vars(elastic.Agent)["_exit_barrier"].__code__.co_argcount == 1


def test_torchs_agent_decides_on_a_restart_by_what_is_left() -> None:
    """A number that `elastic.run` sets, for a failure of any node counts."""
    source = inspect.getsource(api.SimpleElasticAgent._invoke_run)
    assert "if self._remaining_restarts > 0:" in source
    assert "self._remaining_restarts -= 1" in source


def test_ranks_have_time_to_save_if_their_agent_is_told_to_end() -> None:
    """As a cluster tells all processes of a job. After a rank's failure there is no time."""
    ends: list[tuple[int, float]] = []
    context = elastic.ForkContext.__new__(elastic.ForkContext)
    context._ranks = SimpleNamespace(end=lambda sig, grace_s: ends.append((sig, grace_s)))  # type: ignore[assignment]

    def told_to_end() -> None:
        try:
            raise SignalException("told to end", signal.SIGTERM)
        finally:
            context._close(signal.SIGTERM)

    with pytest.raises(SignalException):
        told_to_end()
    context._close(signal.SIGTERM)
    assert ends == [(signal.SIGTERM, 30), (signal.SIGTERM, TERM_GRACE_S)]

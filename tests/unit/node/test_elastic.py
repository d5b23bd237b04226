"""The private names of torch that `node/elastic.py` uses: they mean what they meant."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from typing import Any

from torch.distributed.elastic.agent.server import api, local_elastic_agent
from torch.distributed.elastic.multiprocessing.api import LogsSpecs, PContext
from torch.distributed.elastic.rendezvous import RendezvousHandler

from ddp_magic.node import elastic


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

"""An agent that waits to be forked, with an engine that only notes what it is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_magic.engines.forked_agent import ForkedAgent
from ddp_magic.engines.forkserver import unsupported
from ddp_magic.wire.specs import AgentSpec, WorkerSettings

pytestmark = pytest.mark.skipif(bool(unsupported()), reason="no forkserver here")


class Engine:
    """Notes who is dropped."""

    importing = "torch"

    def __init__(self) -> None:
        self.dropped: list[ForkedAgent] = []

    def look(self) -> None: ...

    def drop(self, agent: ForkedAgent) -> None:
        self.dropped.append(agent)

    def give_up_on(self, agent: ForkedAgent) -> None: ...


def _agent(tmp_path: Path) -> tuple[ForkedAgent, Engine]:
    settings = WorkerSettings(socket="", directory=str(tmp_path), device="cpu")
    spec = AgentSpec(run_id="r", kernel_pid=0, nproc=1, sys_path=(), worker=settings)
    engine = Engine()
    return ForkedAgent(engine, spec, {}), engine


def _process() -> tuple[subprocess.Popen[bytes], int]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    return process, os.pidfd_open(process.pid)


def test_it_waits_for_an_import(tmp_path: Path) -> None:
    """Until it is forked."""
    agent, _ = _agent(tmp_path)
    assert not agent.ended()
    assert agent.fileno() == -1
    assert agent.waits_for() == "importing torch"


def test_one_that_is_killed_before_it_is_forked_never_starts(tmp_path: Path) -> None:
    """The engine drops it."""
    agent, engine = _agent(tmp_path)
    agent.kill()
    assert agent.ended()
    assert engine.dropped == [agent]


def test_its_end_is_its_process_end(tmp_path: Path) -> None:
    """As the descriptor shows."""
    agent, _ = _agent(tmp_path)
    process, pidfd = _process()
    with process:
        agent.forked(pidfd)
        assert not agent.ended()
        assert agent.waits_for() == ""
        agent.kill()
        process.wait(60)
        assert agent.ended()
    agent.close()


def test_one_that_is_forked_too_late_is_killed(tmp_path: Path) -> None:
    """Stop was pressed meanwhile."""
    agent, _ = _agent(tmp_path)
    agent.kill()
    process, pidfd = _process()
    with process:
        agent.forked(pidfd)
        assert process.wait(60) < 0
    agent.close()


def test_a_note_is_handed_out_once(tmp_path: Path) -> None:
    """However often it is added."""
    agent, _ = _agent(tmp_path)
    agent.note("slow")
    agent.note("slow")
    assert agent.take_notes() == ["slow"]
    assert agent.take_notes() == []

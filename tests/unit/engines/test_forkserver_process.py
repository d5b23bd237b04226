"""A host's engine, with the forkserver that the notebook's was to fork for it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ddp_magic.engines.forkserver import current_rank_environment, unsupported
from ddp_magic.engines.forkserver_process import LentProcess
from ddp_magic.engines.local import LocalEngine
from ddp_magic.wire.channel import Channel
from ddp_magic.wire.commands import ForkAgent
from ddp_magic.wire.events import Forked, ForkserverHello, Preloaded
from ddp_magic.wire.specs import AgentSpec, WorkerSettings
from tests.limits import HANG_S
from tests.unit.engines.test_local import Elsewhere

pytestmark = pytest.mark.skipif(bool(unsupported()), reason="no forkserver here")


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _engine(tmp_path: Path) -> LocalEngine:
    """Return one whose own forkserver only leaves a file."""
    started = f"open({str(tmp_path / 'started')!r}, 'w').close(); import time; time.sleep(60)"
    return LocalEngine(Elsewhere(), [sys.executable, "-c", started])


def _spec(tmp_path: Path) -> AgentSpec:
    settings = WorkerSettings(socket="", directory=str(tmp_path), device="cpu")
    return AgentSpec(run_id="r", kernel_pid=0, nproc=1, sys_path=(), worker=settings)


def test_the_notebooks_forks_it(tmp_path: Path) -> None:
    """It is asked for an agent at once, and the host starts none of its own."""
    ours, theirs = socket.socketpair()
    engine = _engine(tmp_path)
    engine.adopt(ours.detach())
    lent = Channel(theirs)
    lent.send(ForkserverHello(pid=os.getpid()))
    lent.send(Preloaded(files={}, number=0))
    agent = engine.start(_spec(tmp_path), current_rank_environment())
    commands: list[object] = []
    _until(lambda: commands.extend(lent.receive() or ()) or commands)  # it may come in pieces
    assert [type(command) for command in commands] == [ForkAgent]
    lent.send(Forked(run_id="r"), fd=os.pidfd_open(os.getpid()))
    _until(lambda: agent.ended() or agent.fileno() >= 0)
    assert engine.describe().pid == os.getpid()
    assert not (tmp_path / "started").exists()
    assert agent.take_notes() == []
    agent.close()
    lent.close()


def test_without_it_the_host_starts_its_own(tmp_path: Path) -> None:
    """The notebook's is off, out of date or has died: no word about it."""
    ours, theirs = socket.socketpair()
    engine = _engine(tmp_path)
    engine.adopt(ours.detach())
    theirs.close()
    agent = engine.start(_spec(tmp_path), dict(os.environ))
    _until(lambda: agent.ended() or (tmp_path / "started").exists())
    assert agent.take_notes() == []
    assert not engine.off
    agent.kill()
    engine.close(at_once=True)


def test_an_engine_without_a_forkserver_lends_none(tmp_path: Path) -> None:
    """The host sees the end of the stream."""
    engine = _engine(tmp_path)
    ours, theirs = socket.socketpair()
    engine.lend(theirs, os.getpid(), dict(os.environ))
    ours.settimeout(HANG_S)
    assert ours.recv(1) == b""
    ours.close()


def test_one_that_is_not_up_is_ended_by_its_connection() -> None:
    ours, theirs = socket.socketpair()
    process = LentProcess(ours.detach())
    assert process.pid == 0
    process.kill()
    theirs.settimeout(HANG_S)
    assert theirs.recv(1) == b""
    assert process.wait(0.1) == 0
    process.channel.close()
    theirs.close()


def test_one_that_is_up_is_killed() -> None:
    """It is no child of the host: its exit code is not known."""
    ours, theirs = socket.socketpair()
    process = LentProcess(ours.detach())
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    process.is_up(sleeper.pid)
    assert process.wait(0.1) is None
    process.kill()
    assert sleeper.wait(HANG_S) < 0
    process.kill()  # once more does no harm
    process.channel.close()
    theirs.close()

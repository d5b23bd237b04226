"""The engine that has agents forked, with processes that only talk like a forkengine."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ddp_magic.engines.forkserver import unsupported
from ddp_magic.engines.local import LocalEngine
from ddp_magic.engines.preload_record import MAX_CULPRITS, MAX_DEATHS
from ddp_magic.wire.specs import AgentSpec, WorkerSettings
from tests.limits import HANG_S

TALK = """
    import itertools, json, os, pathlib, signal, socket, sys, time
    from ddp_magic.wire.channel import Channel
    from ddp_magic.wire.commands import ForkAgent, Preload
    from ddp_magic.wire.events import Forked, ForkObstacle, Importing, Preloaded

    start = json.loads(sys.stdin.read())
    channel = Channel(socket.socket(fileno=start["channel"]))
    with open(os.environ["LIVES"], "a") as file:
        file.write("x")
    life = os.path.getsize(os.environ["LIVES"])
"""


class Elsewhere:
    """Another engine, which notes what it is to place."""

    def __init__(self) -> None:
        self.placed: list[AgentSpec] = []

    def start(self, spec: AgentSpec, env: dict[str, str]) -> Placed:
        del env
        self.placed.append(spec)
        return Placed()


class Placed:
    """An agent that is never up."""

    def take_notes(self) -> list[str]:
        return []

    def fileno(self) -> int:
        return -1

    def ended(self) -> bool:
        return False

    def kill(self) -> None: ...

    def close(self) -> None: ...

    def waits_for(self) -> str:
        return ""

    def last_words(self) -> str:
        return ""

    def outside_end(self) -> None: ...


@pytest.fixture
def lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that each process of a test's makes a byte longer."""
    file = tmp_path / "lives"
    monkeypatch.setenv("LIVES", str(file))
    return file


def _engine(says: str) -> tuple[LocalEngine, Elsewhere]:
    fallback = Elsewhere()
    code = textwrap.dedent(TALK) + textwrap.dedent(says)
    return LocalEngine(fallback, [sys.executable, "-c", code]), fallback


def _spec(tmp_path: Path, run_id: str = "r") -> AgentSpec:
    settings = WorkerSettings(socket="", directory=str(tmp_path), device="cpu")
    return AgentSpec(run_id=run_id, kernel_pid=0, nproc=1, sys_path=(), worker=settings)


@pytest.mark.skipif(bool(unsupported()), reason="no forkserver here")
@pytest.mark.parametrize(
    "says",
    [
        "channel.send(ForkObstacle(module='always', reason='it starts threads'))",
        "channel.send(ForkObstacle(module=f'library{life}', reason='it starts threads'))",
        "channel.send(ForkObstacle(module='', reason='whatever is imported'))",
        "channel.send(Importing(module='lib')); os._exit(3)",
        "channel.send(Importing(module=f'library{life}')); "
        "channel.send(Preloaded(files={}, number=life)); "
        "channel.send(Importing(module=f'library{life}')); os._exit(3)",
        "os._exit(1)",
    ],
)
def test_whatever_it_says_it_is_not_started_for_ever(
    tmp_path: Path, lives: Path, says: str
) -> None:
    """After a few processes that were of no use the agent is placed by the other engine."""
    engine, fallback = _engine(says)
    agent = engine.start(_spec(tmp_path), dict(os.environ))
    deadline = time.monotonic() + 60
    while not fallback.placed:
        agent.ended()
        assert time.monotonic() < deadline, lives.read_text()
        time.sleep(0.01)
    assert engine.off
    assert len(lives.read_text()) <= MAX_CULPRITS + MAX_DEATHS
    engine.close()


@pytest.mark.skipif(bool(unsupported()), reason="no forkserver here")
def test_who_has_set_a_variable_is_decided_by_the_import(tmp_path: Path, lives: Path) -> None:
    """The same process serves the agent if the library that it imports just now has set it."""
    engine, _ = _engine("""
        while True:
            for command in channel.receive() or os._exit(0):
                if isinstance(command, Preload):
                    time.sleep(0.5)
                    report = {"environ": {"OF_A_LIBRARY": "x"}, "number": command.number}
                    channel.send(Preloaded(files={}, **report))
                if isinstance(command, ForkAgent):
                    spec = json.loads(command.spec)
                    channel.send(Forked(run_id=spec["run_id"]), fd=os.pidfd_open(os.getpid()))
                    pathlib.Path(spec["worker"]["directory"], "got").touch()
    """)
    env = {**os.environ, "A": "1"}
    engine.launch(env)
    engine.want(["lib"])
    agent = engine.start(_spec(tmp_path), {**env, "OF_A_LIBRARY": "x"})
    deadline = time.monotonic() + 60
    while not (tmp_path / "got").exists():
        agent.ended()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert lives.read_text() == "x"
    (tmp_path / "got").unlink()
    agent = engine.start(_spec(tmp_path), {**env, "A": "2", "OF_A_LIBRARY": "x"})  # the user's own
    while not (tmp_path / "got").exists():
        agent.ended()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert lives.read_text() == "xx"
    engine.close()


@pytest.mark.skipif(bool(unsupported()), reason="no forkserver here")
def test_agents_of_two_environments_at_once(tmp_path: Path, lives: Path) -> None:
    """The process that the first one needs forks it before another takes its place."""
    engine, _ = _engine("""
        channel.send(Preloaded(files={}, number=0))
        while True:
            for command in channel.receive() or os._exit(0):
                if isinstance(command, ForkAgent):
                    time.sleep(0.5)
                    pidfd = os.pidfd_open(os.getpid())
                    channel.send(Forked(run_id=json.loads(command.spec)["run_id"]), fd=pidfd)
    """)
    env = dict(os.environ)
    deadline = time.monotonic() + 60
    engine.launch(env)
    while engine.describe().state != "ready":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first = engine.start(_spec(tmp_path, "first"), env)
    second = engine.start(_spec(tmp_path, "second"), {**env, "A": "2"})
    while first.fileno() < 0 or second.fileno() < 0:
        first.ended()
        second.ended()
        engine.follow({})
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert lives.read_text() == "xx"
    engine.close()


@pytest.mark.skipif(bool(unsupported()), reason="no forkserver here")
def test_it_is_tried_again_in_another_environment(tmp_path: Path, lives: Path) -> None:
    """A variable that no interpreter starts with is taken back: the next cell has one again."""
    engine, fallback = _engine(
        "sys.exit(1) if os.environ.get('BROKEN') else [*iter(channel.receive, None)]"
    )
    broken = {**os.environ, "BROKEN": "1"}
    agent = engine.start(_spec(tmp_path), broken)
    deadline = time.monotonic() + HANG_S
    while not fallback.placed:
        agent.ended()
        assert time.monotonic() < deadline, lives.read_text()
        time.sleep(0.01)
    notes = agent.take_notes()
    assert [note for note in notes if "this start is slow" in note] == notes[:1]
    assert agent.take_notes() == []
    engine.start(_spec(tmp_path), broken)
    assert len(fallback.placed) == 2
    engine.start(_spec(tmp_path), dict(os.environ))
    assert not engine.off
    assert len(fallback.placed) == 2
    engine.close()


@pytest.mark.skipif(bool(unsupported()), reason="no forkserver here")
def test_a_forkserver_that_is_stopped_is_replaced(tmp_path: Path, lives: Path) -> None:
    """Somebody has sent it SIGSTOP: it would fork nothing, and the cell not end."""
    engine, _ = _engine(
        """
        if life == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        for message in itertools.chain.from_iterable(iter(channel.receive, None)):
            if isinstance(message, ForkAgent):
                spec = json.loads(message.spec)
                channel.send(Forked(run_id=spec["run_id"]), fd=os.pidfd_open(os.getpid()))
        """
    )
    agent = engine.start(_spec(tmp_path), dict(os.environ))
    deadline = time.monotonic() + HANG_S
    while agent.fileno() < 0:
        agent.ended()
        assert time.monotonic() < deadline, lives.read_text()
        time.sleep(0.01)
    assert lives.read_text() == "xx"
    assert agent.take_notes()[0] == "the forkserver was stopped (SIGSTOP), and is replaced"
    agent.close()
    engine.close(at_once=True)

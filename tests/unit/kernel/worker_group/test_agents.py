"""What a group's engine has placed: an agent and connections that are records."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from ddp_magic.kernel.worker_group.agents import KILL_PATIENCE_S, Agents
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.commands import Kill
from ddp_magic.wire.events import AgentDone
from ddp_magic.wire.kernel_events import Doing, Note
from ddp_magic.wire.specs import AgentSpec
from tests.unit.worker.fakes import FakeChannel


class FakePlaced:
    """An agent, and the engine that places it."""

    def __init__(self) -> None:
        self.where = "n1, n2"
        self.fd = -1
        self.over = False
        self.kills = 0
        self.is_closed = False
        self.words = ""
        self.notes: list[str] = []

    def start(self, _spec: AgentSpec, _env: dict[str, str]) -> FakePlaced:
        return self

    def fileno(self) -> int:
        return self.fd

    def ended(self) -> bool:
        return self.over

    def take_notes(self) -> list[str]:
        notes, self.notes = self.notes, []
        return notes

    def kill(self) -> None:
        self.kills += 1

    def close(self) -> None:
        self.is_closed = True

    def granted(self) -> int:
        return 1

    def lost(self) -> None: ...

    def waits_for(self) -> str:
        return self.words

    def last_words(self) -> str:
        return "no module named json"

    def outside_end(self) -> None: ...


def _agents(*channels: FakeChannel, started: bool = True) -> tuple[Agents, FakePlaced]:
    agents = Agents(cast("Any", list(channels)), RunDirectory(Path("/run/1")))
    placed = FakePlaced()
    if started:
        agents.start(cast("Any", placed), cast("AgentSpec", None), {})
    return agents, placed


def test_before_the_start_there_is_nothing() -> None:
    agents, _ = _agents(started=False)
    assert (agents.started, agents.placed, agents.where, agents.fileno()) == (False, False, "", -1)
    assert agents.news() == []
    assert agents.ended()
    agents.end()
    agents.close()


def test_the_news_of_its_start_come_once() -> None:
    agents, placed = _agents()
    placed.notes, placed.words = ["importing takes long"], "importing torch"
    assert agents.news() == [Note(text="importing takes long"), Doing(text="importing torch")]
    assert agents.news() == []
    placed.words = ""
    assert agents.news() == [Doing(text="")]


def test_it_is_placed_when_it_has_a_process_or_a_connection() -> None:
    agents, placed = _agents()
    assert not agents.placed
    placed.fd = 7
    assert agents.placed
    assert _agents(FakeChannel())[0].placed


def test_a_kill_goes_to_those_that_are_connected() -> None:
    """They have ranks to care for; one that has not connected is killed itself."""
    channels = FakeChannel(), FakeChannel()
    agents, placed = _agents(*channels)
    agents.kill((1,))
    assert [channel.sent for channel in channels] == [[Kill(ranks=(1,))]] * 2
    assert (placed.kills, agents.killed) == (0, False)
    agents, placed = _agents()
    agents.kill(())
    assert (placed.kills, agents.killed) == (1, True)


def test_one_that_does_not_obey_is_killed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    agents, placed = _agents(FakeChannel())
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    agents.kill(())
    assert not agents.ended()
    assert placed.kills == 0
    clock[0] += KILL_PATIENCE_S + 1
    assert not agents.ended()
    assert not agents.ended()
    assert placed.kills == 1
    placed.over = True
    assert agents.ended()


def test_what_they_say_at_their_end() -> None:
    """An agent, or a keeper of torchrun's, that says nothing has died."""
    agents, _ = _agents(FakeChannel(), FakeChannel())
    agents.take_report(AgentDone(swept=2))
    assert agents.died
    agents.take_report(AgentDone(swept=1, error="no port"))
    end = agents.end_event()
    assert (end.agent_died, end.agent_error, end.swept) == (False, "no port", 3)
    assert end.agent_words == "no module named json"


def test_an_attempt_begins_without_reports() -> None:
    """What was ended in earlier attempts is still counted."""
    agents, _ = _agents(FakeChannel())
    agents.take_report(AgentDone(swept=2))
    agents.begin_attempt()
    assert agents.died
    assert agents.end_event().swept == 2

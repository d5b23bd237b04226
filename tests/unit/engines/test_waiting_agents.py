"""Agents that wait for a forkserver."""

from __future__ import annotations

import os
from typing import Any

from ddp_magic.engines.waiting_agents import WaitingAgents


class Agent:
    """An agent that notes what happens to it."""

    def __init__(self, run_id: str) -> None:
        self.spec = type("Spec", (), {"run_id": run_id})
        self.notes: list[str] = []
        self.pidfd: int | None = None

    def note(self, text: str) -> None:
        self.notes.append(text)

    def forked(self, pidfd: int) -> None:
        self.pidfd = pidfd


def _with(*run_ids: str, undecided: bool) -> tuple[WaitingAgents, list[Any]]:
    waiting, agents = WaitingAgents(), [Agent(run_id) for run_id in run_ids]
    for agent in agents:
        waiting.add(agent, undecided=undecided)  # type: ignore[arg-type]
    return waiting, agents


def test_each_gets_its_own_process() -> None:
    waiting, (a, b) = _with("a", "b", undecided=False)
    waiting.forked("b", 5)
    assert (a.pidfd, b.pidfd, list(waiting)) == (None, 5, [a])


def test_the_process_of_one_that_is_gone_is_closed() -> None:
    waiting, (a,) = _with("a", undecided=False)
    waiting.remove(a)
    read, write = os.pipe()
    waiting.forked("a", write)
    assert os.read(read, 1) == b""
    os.close(read)


def test_the_undecided_come_after_the_others() -> None:
    waiting, (a,) = _with("a", undecided=False)
    b: Any = Agent("b")
    waiting.add(b, undecided=True)
    assert waiting.take_undecided() == []
    waiting.forked("a", 5)
    assert waiting.take_undecided() == [b]
    assert waiting.take_undecided() == []  # once
    waiting.leave_undecided([b])
    assert waiting.take_undecided() == [b]
    assert a.pidfd == 5


def test_one_that_is_gone_is_not_decided_on() -> None:
    waiting, (a, b) = _with("a", "b", undecided=True)
    waiting.remove(a)
    assert waiting.take_undecided() == [b]


def test_messages_are_for_the_one_that_waits_or_the_next() -> None:
    waiting = WaitingAgents()
    waiting.note("one")
    waiting.note("one")
    agent: Any = Agent("a")
    waiting.take_notes(agent)
    waiting.add(agent, undecided=False)
    waiting.note("two")
    assert agent.notes == ["one", "two"]

"""Agents that have been asked for and not been forked yet, and messages for the next of them."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ddp_magic.engines import Engine
from ddp_magic.engines.forked_agent import ForkedAgent


class WaitingAgents:
    """The agents that wait for a forkserver, in their order."""

    def __init__(self) -> None:
        self._agents: list[ForkedAgent] = []
        self._undecided: list[ForkedAgent] = []  # of these: not asked of the forkserver yet
        self._notes: list[str] = []  # for the next one

    def __bool__(self) -> bool:
        return bool(self._agents)

    def __iter__(self) -> Iterator[ForkedAgent]:
        return iter(list(self._agents))

    def __contains__(self, agent: object) -> bool:
        return agent in self._agents

    def note(self, text: str) -> None:
        """Keep a message for the agent that waits, or for the next one."""
        if self._agents:
            self._agents[0].note(text)
        elif text not in self._notes:
            self._notes.append(text)

    def take_notes(self, agent: ForkedAgent) -> None:
        """Give a new agent the messages that were kept."""
        while self._notes:
            agent.note(self._notes.pop(0))

    def add(self, agent: ForkedAgent, *, undecided: bool) -> None:
        """Add one.

        Args:
            agent: The agent.
            undecided: Whether it is not known yet if the forkserver is good for it.
        """
        self._agents.append(agent)
        if undecided:
            self._undecided.append(agent)

    def remove(self, agent: ForkedAgent) -> None:
        """Forget one that nobody waits for any more."""
        if agent in self._agents:
            self._agents.remove(agent)

    def forked(self, run_id: str, pidfd: int) -> None:
        """Hand an agent its process."""
        for agent in self._agents:
            if agent.spec.run_id == run_id:
                self._agents.remove(agent)
                agent.forked(pidfd)
                return
        os.close(pidfd)  # it was dropped, and ends because nobody listens on its socket

    def take_undecided(self) -> list[ForkedAgent]:
        """Return those that are to be decided on now: once the others have been forked."""
        found = [agent for agent in self._undecided if agent in self._agents]
        if len(found) < len(self._agents):
            self._undecided = found
            return []
        self._undecided = []
        return found

    def leave_undecided(self, agents: list[ForkedAgent]) -> None:
        """Decide on these later."""
        self._undecided = agents

    def place_with(self, engine: Engine) -> None:
        """Have all of them placed by another engine."""
        agents, self._agents, self._undecided = self._agents, [], []
        for agent in agents:
            agent.place_with(engine)

"""The kernel's handle of an agent that the forkserver forks."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Protocol

from ddp_magic.engines import Engine, PlacedAgent
from ddp_magic.system.entry_points import last_words
from ddp_magic.system.readable import readable
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.specs import AgentSpec

ANSWER_S = 120.0  # torch's import alone can take a minute, from a slow disk


class Owner(Protocol):
    """What an agent needs of the engine that has it forked."""

    def look(self) -> None:
        """Take the forkserver's reports."""

    def drop(self, agent: ForkedAgent) -> None:
        """Stop waiting for this agent."""

    def give_up_on(self, agent: ForkedAgent) -> None:
        """End the forkserver, which does not answer."""

    @property
    def importing(self) -> str:
        """The library that the forkserver is importing; empty if none."""


class ForkedAgent:
    """An agent that the forkserver forks, or has forked.

    Attributes:
        spec: What it is to run.
        env: Its environment.
    """

    def __init__(self, engine: Owner, spec: AgentSpec, env: dict[str, str]) -> None:
        self.spec = spec
        self.env = env
        self.where = ""
        self._engine = engine
        self._notes: list[str] = []
        self._asked_at = time.monotonic()
        self._pidfd = -1
        self._elsewhere: PlacedAgent | None = None
        self._dropped = False

    def forked(self, pidfd: int) -> None:
        """Take the process that has been forked."""
        self._pidfd = pidfd
        if self._dropped:
            self.kill()

    def place_with(self, engine: Engine) -> None:
        """Have it placed by another engine."""
        if not self._dropped:
            self._elsewhere = engine.start(self.spec, self.env)

    def note(self, text: str) -> None:
        """Add a message for the user, once."""
        if text not in self._notes:
            self._notes.append(text)

    def take_notes(self) -> list[str]:
        """Return the new messages for the user."""
        notes, self._notes = self._notes, []
        return notes if self._elsewhere is None else notes + self._elsewhere.take_notes()

    def fileno(self) -> int:
        """Return the process's pidfd, once there is one."""
        return self._pidfd if self._elsewhere is None else self._elsewhere.fileno()

    def ended(self) -> bool:
        """Return whether it has ended, or will never start."""
        if self._pidfd < 0:
            self._engine.look()
        if self._elsewhere is not None:
            return self._elsewhere.ended()
        if self._pidfd < 0:
            if time.monotonic() - self._asked_at > ANSWER_S:
                self._asked_at = time.monotonic()
                self._engine.give_up_on(self)
            return self._dropped
        return bool(readable([self._pidfd], 0))

    def kill(self) -> None:
        """End it at once; its ranks carry PDEATHSIG."""
        if self._elsewhere is not None:
            self._elsewhere.kill()
        elif self._pidfd < 0:
            self._dropped = True
            self._engine.drop(self)
        else:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def close(self) -> None:
        """Close the pidfd."""
        if self._elsewhere is not None:
            self._elsewhere.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
            self._dropped = True

    def granted(self) -> int:
        """Return 1: this machine."""
        return 1

    def lost(self) -> None:
        """Return None: this machine is here."""

    def waits_for(self) -> str:
        """Return what the forkserver is importing before it can fork."""
        name = self._engine.importing if self._pidfd < 0 else ""
        return f"importing {name}" if name else ""

    def last_words(self) -> str:
        """Return the end of its log."""
        return last_words(RunDirectory(Path(self.spec.worker.directory)).agent_log)

    def outside_end(self) -> None:
        """Return None: nobody says who has ended a process."""
